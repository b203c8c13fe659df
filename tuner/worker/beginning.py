"""The beginning that all texts of a batch have in common, computed once. Runs on the worker.

Chats begin with the same system prompt and the same words of a template. Its keys and values are those of one row for all;
gradients come back to it from all rows. Losses and gradients are those of a whole pass, up to rounding. Not done where dropout is
drawn, which would be the same for all rows, nor where blocks are checkpointed or peaks are measured, nor on a card: a pass of its
own may cost more there than it saves, which was not measured.

B is rows, T tokens of the longest, P tokens of the beginning, N tokens that are learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from tuner.worker.dense import Dense

if TYPE_CHECKING:
    from transformers import Cache

    from tuner.worker.batches import Batch
    from tuner.worker.model import BaseModel

FAMILIES = frozenset({"llama", "qwen2", "qwen3", "phi", "phi3", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "mistral"})
"""transformers' `model_type` of models that were tried."""
LEAST_SAVED = 0.35
"""Share of the batch's tokens that must fall away, for a second pass costs something too. SmolLM2-135M, 8 rows, one core: where
30 % fell away a step took as long as before, with 51 % 1.28 times as many steps were made, with 63 % 1.8, with 72 % 2.7 times."""


def is_shared(base: BaseModel, model: nn.Module, batch: Batch) -> bool:
    """Whether the beginning of a batch is worth a pass of its own, and may have one."""
    rows, tokens = batch.input_ids_BT.shape
    if base.device.type != "cpu" or Dense.num_unused or (rows - 1) * batch.num_common < LEAST_SAVED * rows * tokens:
        return False
    config = base.model.config
    window = getattr(config, "sliding_window", None)
    if base.config.quantization == "int8":
        return False  # which columns bitsandbytes keeps in 16 bits depends on all rows that it sees at once
    if config.model_type not in FAMILIES or (window is not None and window < tokens):
        return False
    return not model.training or not (base.model.is_gradient_checkpointing or _drops(base, model))


def _drops(base: BaseModel, model: nn.Module) -> bool:
    config = base.model.config
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0):
        return True
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def cached(model: nn.Module, batch: Batch) -> Cache:
    """Keys and values of the beginning, for each row."""
    beginning = batch.input_ids_BT[:1, : batch.num_common]
    cache: Cache = model(input_ids=beginning, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(batch.input_ids_BT))
    return cache


def rest(batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(arguments of the model, places of what predicts the learned tokens) after the beginning."""
    assert batch.attention_mask_BT is not None  # noqa: S101 -- packed batches have no common beginning
    assert batch.places_N is not None  # noqa: S101 -- of a causal language model
    tokens, num = batch.input_ids_BT.shape[1], batch.num_common
    positions = torch.arange(num, tokens, device=batch.input_ids_BT.device)[None]
    inputs = {
        "input_ids": batch.input_ids_BT[:, num:],
        "attention_mask": batch.attention_mask_BT,
        "position_ids": positions,
    }
    return inputs, batch.places_N // tokens * (tokens - num) + batch.places_N % tokens - num
