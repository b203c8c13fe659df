"""LoRA on a CPU without detours. Runs on the worker.

PEFT (0.21) asks whether autocast is on without saying where, which means on CUDA. So on a CPU it casts what each adapter sees to
float32, and autocast casts it back; its 4-bit layers also copy the base's result. Here neither happens, and the scale goes to
the r numbers of a token between A and B in place of all that come out. DoRA and other variants stay with PEFT.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer

if TYPE_CHECKING:
    from torch import nn


class _Direct:
    """Goes before a layer of PEFT's in the order of its classes."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401 -- as PEFT's
        """W x + B (s A x)."""
        if args or kwargs or not _is_plain(self):
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # PEFT's
            return result
        (key,) = self.active_adapters
        result = self.base_layer(x)
        seen = self.lora_dropout[key](x)
        if not torch.is_autocast_enabled(x.device.type):
            seen = seen.to(self.lora_A[key].weight.dtype)
        part: torch.Tensor = self.lora_B[key](self.lora_A[key](seen) * self.scaling[key])
        return (result + part).to(result.dtype)


def take_over_lora(model: nn.Module) -> None:
    """Have the adapters of a model on a CPU compute directly."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and hasattr(module, "base_layer") and not isinstance(module, _Direct):
            module.__class__ = _directly(type(module))


@functools.cache
def _directly(kind: type) -> type:
    return type(kind.__name__, (_Direct, kind), {"__module__": kind.__module__})


def _is_plain(layer: Any) -> bool:  # noqa: ANN401 -- PEFT's layers have no common type
    """Whether it has one adapter, which is on, and no more than A, B and a scale."""
    keys = layer.active_adapters
    return (
        not layer.disable_adapters
        and not layer.merged
        and len(keys) == 1
        and keys[0] in layer.lora_A
        and keys[0] not in layer.lora_variant
        and layer.lora_B[keys[0]].bias is None
    )
