"""A small base and token ids in memory, for tests of what trains on them."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tests.models import tiny_llama_config
from tuner.config import ModelConfig
from tuner.worker.model import BaseModel
from tuner.worker.token_files import Ragged, Tokenized

CPU = torch.device("cpu")


def tiny_base() -> BaseModel:
    """A Llama of a few thousand weights, always the same."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(use_cache=False))
    model.requires_grad_(requires_grad=False)
    return BaseModel(
        model=model,
        tokenizer=type("Tokenizer", (), {"pad_token_id": 0})(),
        device=CPU,
        compute_dtype=torch.float32,
        config=ModelConfig(name="tiny", quantization="none"),
    )


def tokens_of(lengths: list[tuple[int, int]], seed: int = 0) -> Tokenized:
    """Random examples of (prompt, completion) tokens."""
    draw = np.random.default_rng(seed)
    rows = [list(map(int, draw.integers(7, 50, prompt + completion))) for prompt, completion in lengths]
    masks = [[False] * prompt + [True] * completion for prompt, completion in lengths]
    return Tokenized(input_ids=Ragged.of(rows, np.int32), is_target=Ragged.of(masks, np.bool_))
