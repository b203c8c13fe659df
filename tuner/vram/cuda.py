"""What runs differently on a GPU than on meta tensors, as far as memory goes: kernels, fused operators, scratch, autocast.

Sources: torch 2.13 (`sdp_utils.cpp`, `SoftMax.cu`, `Dropout.cu`, `Indexing.cu`, `autocast_mode.h`, flash and memory-efficient
attention's `*_bwd`), bitsandbytes 0.50 (`backends/cuda/ops.py`). Sizes of scratch are read from there, none is fitted.
B is rows, H heads, T tokens, D width of a head, N tokens that are learned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 -- everybody's name for it
from torch.overrides import TorchFunctionMode

from tuner.sizes import FUSED_TOKENS, MOST_HEAD_WIDTH, rounded_up
from tuner.vram import indexing
from tuner.vram.tracker import Handler, Tracker

if TYPE_CHECKING:
    from tuner.gpus import Gpu
    from tuner.workload import Workload

LOW = frozenset(
    {
        torch.matmul,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.__rmatmul__,
        torch.mm,
        torch.Tensor.mm,
        torch.bmm,
        torch.Tensor.bmm,
        F.linear,
        torch.addmm,
        torch.Tensor.addmm,
        torch.baddbmm,
        torch.Tensor.baddbmm,
        torch.einsum,
    }
)
"""What autocast computes in 16 bits."""
HIGH = frozenset(
    {
        F.softmax,
        torch.softmax,
        torch.Tensor.softmax,
        F.log_softmax,
        torch.log_softmax,
        F.layer_norm,
        F.cross_entropy,
        F.nll_loss,
        torch.pow,
        torch.Tensor.pow,
        torch.sum,
        torch.Tensor.sum,
        torch.rsqrt,
        torch.exp,
        torch.norm,
        torch.cumsum,
        torch.Tensor.cumsum,
    }
)
"""What autocast computes in float32."""
HALVES = (torch.float16, torch.bfloat16)


class Autocast(TorchFunctionMode):
    """`torch.autocast`, which does nothing to meta tensors, done by hand.

    Args:
        dtype: What it casts to; None where it is off.
    """

    high = HIGH
    """What the device computes in float32."""
    is_announced = True
    """Whether `torch.is_autocast_enabled()`, which without a device asks about CUDA, tells of it."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._depth = 0
        self._casts: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """The context; casts of weights are kept until its end."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Begin the context."""
        self._depth += 1

    def leave(self) -> None:
        """End the context."""
        self._depth -= 1
        if self._depth == 0:
            self._casts.clear()

    @property
    def is_cast(self) -> bool:
        """Whether there is anything to cast to."""
        return self._dtype is not None

    @property
    def is_on(self) -> bool:
        """Whether it casts now."""
        return self._dtype is not None and self._depth > 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self.is_on and (func in LOW or func is F.scaled_dot_product_attention):
            args, kwargs = tuple(map(self._low, args)), {key: self._low(value) for key, value in kwargs.items()}
        elif self.is_on and func in self.high and "dtype" not in kwargs:
            args = tuple(value.float() if _is_half(value) else value for value in args)
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function whose arguments have their types."""
        return func(*args, **kwargs)

    def _low(self, value: Any) -> Any:
        if (
            not isinstance(value, torch.Tensor)
            or value.dtype not in (torch.float32, *HALVES)
            or value.dtype == self._dtype
        ):
            return value
        if not (value.requires_grad and value.is_leaf and value.dtype == torch.float32):
            return value.to(self._dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self._dtype)
        return self._casts[id(value)]


class CudaFunctions(Autocast):
    """Functions that on a GPU allocate in another way.

    Args:
        dtype: What autocast casts to; None where it is off.
        has_flash: Whether the card runs flash attention.
    """

    def __init__(self, dtype: torch.dtype | None, *, has_flash: bool) -> None:
        super().__init__(dtype)
        self._has_flash = has_flash

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function whose arguments have their types."""
        if func is F.scaled_dot_product_attention:
            return _attention(*args, has_flash=self._has_flash, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func is F.softmax and kwargs.get("dtype") == torch.float32 and args[0].dtype == torch.float16:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            return torch._softmax(args[0], dim, half_to_float=True)  # noqa: SLF001 -- CUDA fuses the cast; of float16 only
        return func(*args, **kwargs)


def functions(gpu: Gpu, workload: Workload) -> CudaFunctions:
    """The functions of a card."""
    dtype = getattr(torch, workload.dtype) if workload.autocast else None
    return CudaFunctions(dtype, has_flash=gpu.has_flash_attention)


def handlers(workload: Workload) -> Mapping[Any, Handler]:
    """Operators whose kernels take memory of their own."""
    aten = torch.ops.aten
    return {
        **indexing.handlers(workload),
        aten._softmax_backward_data.default: _softmax_backward,  # noqa: SLF001
        aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,  # noqa: SLF001
        aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,  # noqa: SLF001
        torch.ops.bitsandbytes.gemm_4bit.default: _multiply_4bit,
    }


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in HALVES


def _dropout(value: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
    del inplace
    if not training or p == 0:
        return value
    kept: torch.Tensor = torch.native_dropout(value, p, True)[0]  # noqa: FBT003 -- keeps a mask of one byte a number
    return kept


def _attention(  # noqa: PLR0913, PLR0917 -- as torch declares it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002 -- as torch declares it
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
    *,
    has_flash: bool,
) -> torch.Tensor:
    """Flash attention for 16 bits without a mask, memory-efficient attention for the rest."""
    width = query.shape[-1]
    if has_flash and attn_mask is None and query.dtype in HALVES and width <= MOST_HEAD_WIDTH:
        return _flash(query, key, value, dropout_p, scale or width**-0.5, is_causal=is_causal)
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attn_mask is not None:
        attn_mask = _as_bias(attn_mask, query, key)
    has_gradient = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(  # noqa: SLF001
        query, key, value, attn_mask, has_gradient, dropout_p, is_causal, scale=scale
    )[0]
    return out


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float, scale: float, *, is_causal: bool
) -> torch.Tensor:
    width = query.shape[-1]
    if missing := -width % 8:
        query, key, value = (F.pad(one, (0, missing)) for one in (query, key, value))
    flash = torch.ops.aten._scaled_dot_product_flash_attention  # noqa: SLF001
    out: torch.Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]  # noqa: FBT003
    return out[..., :width] if missing else out


def masked_by_adding(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of truth values as numbers to add; one of numbers as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.full((), float("-inf"), dtype=dtype, device=mask.device))


def _as_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask as the kernel adds it: a number each, rows padded to a multiple of 8."""
    mask = masked_by_adding(mask, query.dtype)
    if missing := -mask.shape[-1] % 8:
        mask = F.pad(mask, (0, missing))[..., : mask.shape[-1]]
    return mask.expand(*query.shape[:3], key.shape[2])


def _softmax_backward(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    gradient, output = args[:2]
    out = func(*args, **kwargs)
    tracker.add(out, operator="softmax_backward")
    product = output.numel() * torch.promote_types(gradient.dtype, output.dtype).itemsize
    tracker.scratch(product, "softmax_backward")  # gradient times output
    return out


def _flash_backward(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    query, key = args[1:3]
    B, H, T, D = query.shape
    rows, columns = rounded_up(T, 128), rounded_up(D, 32 if D <= 128 else 64)  # noqa: PLR2004 -- the kernel's tiles
    scratch = B * H * rows * columns * 4 + B * H * rows * 4  # float32 sums of dQ, and of dO times O
    if key.shape[1] != H:  # dK and dV for each head before they are summed over the groups
        scratch += 2 * B * key.shape[2] * H * D * query.element_size()
    tracker.scratch(scratch, "flash attention's backward")
    return func(*args, **kwargs)


def _efficient_backward(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    B, H, T, D = args[1].shape
    tracker.scratch(
        B * H * T * (D + 1) * 4, "memory-efficient attention's backward"
    )  # float32 sums of dQ, and of dO times O
    return func(*args, **kwargs)


def _multiply_4bit(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A few tokens are multiplied by packed weights."""
    inputs = args[0]
    if inputs.numel() // inputs.shape[-1] <= FUSED_TOKENS:
        return func(*args, **kwargs)
    return multiply_dequantized(tracker, args, kwargs)


def multiply_dequantized(tracker: Tracker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Multiply by a 4-bit weight that is dequantized as a whole, its scales before it."""
    names = ("A", "B", "shapeB", "absmax", "blocksize", "quant_type", "bias", "absmax_8bit")
    given = dict(zip(names, args, strict=False)) | kwargs
    inputs = given["A"]
    with tracker:
        if (scales := given.get("absmax_8bit")) is not None:
            scales = torch.empty_like(scales, dtype=torch.float32) + 1.0
        weight = torch.empty(tuple(given["shapeB"]), dtype=inputs.dtype, device="meta")
        return F.linear(inputs, weight, given.get("bias"))
