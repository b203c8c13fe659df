"""Attention on a CPU, written out where that is faster than torch's own function. Runs on the worker.

In bfloat16 the backward pass of torch's CPU attention (2.13) is slow for short texts: 8 rows of 48 tokens took 8.0 ms forward
and backward, and take 1.8 ms as two products and a softmax; 96 tokens 16.7 and 5.1 ms, 192 tokens 32 and 20 ms. In float32 it
is as fast. Where weights are dropped, torch writes it out too, and draws slowly (`dropout.py`). Written out it keeps the weights
for the backward pass, which a card's attention does not, so peaks are measured without.

B is rows, T tokens of the longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuner.worker.dense import Dense
from tuner.worker.dropout import dropped

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

NAME = "tuner_cpu"
"""By which transformers finds it."""
MOST_TOKENS = 256
"""It pays up to so many, and where a backward pass follows."""


def register(name: str, forward: Callable[..., tuple[torch.Tensor, None]]) -> None:
    """Have transformers find an attention by a name, and give it the masks that torch's function takes."""
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)


def take_over_attention(model: PreTrainedModel) -> None:
    """Have a model on a CPU attend our way, if it would by torch's function."""
    register(NAME, attention_forward)
    if model.config._attn_implementation == "sdpa":  # noqa: SLF001 -- no public name
        model.set_attn_implementation(NAME)


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 -- transformers' own
) -> tuple[torch.Tensor, None]:
    """(B, heads, T, width of a head) -> (B, T, heads, width)."""
    if not _pays(query, key, dropout) or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    groups = query.shape[1] // key.shape[1]
    scaling: float = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = query @ repeat_kv(key, groups).transpose(2, 3) * scaling
    mask = attention_mask
    if mask is None and _is_causal(module, kwargs):
        mask = torch.ones(scores.shape[2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    if (
        mask is not None
    ):  # padding far from all text sees nothing where attention is local: no infinity, or it would spread
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, hidden) if mask.dtype == torch.bool else (scores + mask).clamp(min=hidden)
    weights = scores.softmax(-1)
    if dropout:
        weights = dropped(weights, dropout)
    return (weights @ repeat_kv(value, groups)).transpose(1, 2).contiguous(), None


def _pays(query: torch.Tensor, key: torch.Tensor, dropout: float) -> bool:
    if query.is_cuda:
        return False
    if dropout:
        return True
    is_short_in_16_bits = query.dtype is torch.bfloat16 and key.shape[2] <= MOST_TOKENS
    return is_short_in_16_bits and torch.is_grad_enabled() and not Dense.num_unused


def _is_causal(module: nn.Module, given: dict[str, Any]) -> bool:
    asked = given.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)
