"""What a CPU does with memory: its own kernels, so that a prediction can be held against bytes that were really allocated.

Only for that: a sweep on a CPU is told what its trials would need on a GPU. Sources: torch 2.13 (`FlashAttentionKernel.cpp`,
`Dropout.cpp`), bitsandbytes 0.50 (`backends/default/ops.py`: 4-bit weights are always dequantized as a whole).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 -- everybody's name for it

from tuner.vram import indexing
from tuner.vram.cuda import Autocast, masked_by_adding, multiply_dequantized
from tuner.vram.tracker import Handler, Tracker

if TYPE_CHECKING:
    from tuner.workload import Workload

ROUNDING = 64
"""torch aligns what it gets on a CPU to so many bytes."""


class CpuFunctions(Autocast):
    """Functions that on a CPU allocate in another way than on meta tensors."""

    high = frozenset({F.cross_entropy, F.nll_loss})
    """Softmax, norms and sums stay in 16 bits, unlike on a GPU. Seen by running torch 2.13."""
    is_announced = False
    """PEFT (0.21, `lora/bnb.py`) asks, and then turns the input of 4-bit layers into the adapter's float32 itself."""

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function whose arguments have their types."""
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def functions(workload: Workload) -> CpuFunctions:
    """The functions of a CPU."""
    return CpuFunctions(getattr(torch, workload.dtype) if workload.autocast else None)


def handlers(workload: Workload) -> Mapping[Any, Handler]:
    """Operators whose kernels take memory of their own."""
    return {**indexing.handlers(workload), torch.ops.bitsandbytes.gemm_4bit.default: _multiply_4bit}


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 -- as torch declares it
    **kwargs: Any,
) -> torch.Tensor:
    """Flash attention, which on a CPU takes masks and groups of keys."""
    attn_mask = attn_mask if attn_mask is None else masked_by_adding(attn_mask, query.dtype)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    scale = kwargs.get("scale")
    out: torch.Tensor = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _multiply_4bit(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    del func
    return multiply_dequantized(tracker, args, kwargs)
