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
from tuner.vram.cuda import HALVES, LOW, Autocast, multiply_dequantized
from tuner.vram.tracker import Handler, Tracker

if TYPE_CHECKING:
    from tuner.workload import Workload

ROUNDING = 64
"""torch aligns what it gets on a CPU to so many bytes."""
HIGH = frozenset({F.cross_entropy, F.nll_loss})
"""What autocast computes in float32; softmax, norms and sums stay in 16 bits, unlike on a GPU. Seen by running torch 2.13."""


class CpuFunctions(Autocast):
    """Functions that on a CPU allocate in another way than on meta tensors."""

    @property
    def is_on(self) -> bool:
        """False, as `torch.is_autocast_enabled()` says on a CPU: without a device it asks about CUDA.

        PEFT (0.21, `lora/bnb.py`) asks so, and then turns the input of 4-bit layers into the adapter's float32 itself.
        """
        return False

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function, its arguments cast by a CPU's rules."""
        if self.is_cast and self._depth:
            args, kwargs = self._cast(func, args, kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if func in LOW or func is F.scaled_dot_product_attention:
            return tuple(map(self._low, args)), {key: self._low(value) for key, value in kwargs.items()}
        return tuple(map(_high, args)) if func in HIGH else args, kwargs


def functions(workload: Workload) -> CpuFunctions:
    """The functions of a CPU."""
    return CpuFunctions(getattr(torch, workload.dtype) if workload.autocast else None)


def handlers(workload: Workload) -> Mapping[Any, Handler]:
    """Operators whose kernels take memory of their own."""
    return {**indexing.handlers(workload), torch.ops.bitsandbytes.gemm_4bit.default: _multiply_4bit}


def _high(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALVES else value


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
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        lowest = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
        attn_mask = torch.where(attn_mask, 0.0, lowest)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    scale = kwargs.get("scale")
    out: torch.Tensor = flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _multiply_4bit(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    del func
    return multiply_dequantized(tracker, args, kwargs)
