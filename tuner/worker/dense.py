"""4-bit weights kept dequantized beside themselves, on a CPU that has room for them. Runs on the worker.

bitsandbytes 0.50 has no kernel that multiplies by 4-bit weights on a CPU and can be trained through: each pass dequantizes them
anew, forward and backward. With a copy at hand the same numbers come out, bit for bit, sooner. What a trial needs is measured
without the copies, for it is to be known for a device that keeps none.
"""

from __future__ import annotations

import contextlib
import logging
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import bitsandbytes
import psutil
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

SHARE_OF_FREE = 0.1
"""The copies may take so much of the memory that is free: other workers on the machine keep theirs too."""
CGROUP = Path("/sys/fs/cgroup")


class Dense:
    """A copy; hangs on a weight's quantization state, which all trees of a base share.

    Args:
        weight: (out, in).
    """

    num_unused = 0
    """How many have asked that no copy be used."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


class OurLinear4bit(Linear4bit):
    """Computes with the copy, if there is one; leaves a bias in the type that it is trained in, which bitsandbytes does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply in the layer's compute type, and add the bias."""
        quantized: Any = self.weight
        state, bias = quantized.quant_state, cast("torch.Tensor | None", self.bias)
        dtype: torch.dtype = self.compute_dtype or x.dtype
        narrow, narrow_bias = x.to(dtype), None if bias is None else bias.to(dtype)
        dense: Dense | None = getattr(state, "dense", None)
        if dense is None or Dense.num_unused:
            multiply: Any = bitsandbytes.matmul_4bit  # type: ignore[attr-defined]  # its public name
            result: torch.Tensor = multiply(narrow, quantized, bias=narrow_bias, quant_state=state)
            return result.to(x.dtype)
        return torch.nn.functional.linear(narrow, dense.weight, narrow_bias).to(x.dtype)


def take_over(model: nn.Module) -> list[Any]:
    """Have all 4-bit layers compute our way; returns them."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.__class__ = OurLinear4bit
    return layers


def keep_copies(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep copies of all 4-bit weights, if there is room.

    Args:
        model: On a CPU.
        dtype: What it computes in.
    """
    layers = take_over(model)
    num_bytes = sum(layer.weight.quant_state.shape.numel() for layer in layers) * dtype.itemsize
    free_bytes = _free_bytes()
    if num_bytes > SHARE_OF_FREE * free_bytes:
        log.info("no dequantized copies: they take %.2f GB of %.2f GB that are free", num_bytes / 1e9, free_bytes / 1e9)
        return
    for layer in layers:
        state = layer.weight.quant_state
        state.dense = Dense(dequantize_4bit(layer.weight.data, state).to(dtype))
    log.info("%d dequantized copies, %.2f GB", len(layers), num_bytes / 1e9)


@contextlib.contextmanager
def without_copies() -> Iterator[None]:
    """Inside, weights are dequantized anew each time, as on a device that keeps no copies."""
    Dense.num_unused += 1
    try:
        yield
    finally:
        Dense.num_unused -= 1


def _free_bytes() -> float:
    """Memory that this process may still take, as far as the system tells; 0 where its address space is limited."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return 0.0
    free = [float(psutil.virtual_memory().available)]
    with contextlib.suppress(OSError, ValueError):
        limit = (CGROUP / "memory.max").read_text(encoding="ascii")
        free.append(float(limit) - float((CGROUP / "memory.current").read_text(encoding="ascii")))
    return max(0.0, min(free))
