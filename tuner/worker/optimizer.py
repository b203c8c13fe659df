"""What moves a trial's weights, and by which rates. Runs on the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.optim.adamw import PagedAdamW8bit

if TYPE_CHECKING:
    from torch import nn

    from tuner.trial import TrialSpec


def build_optimizer(model: nn.Module, spec: TrialSpec, name: str) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' paged one with 8-bit state; B learns faster than A by the spec's ratio.

    Args:
        model: With what is trained.
        spec: Gives learning rate, weight decay and ratio.
        name: `adamw` or `paged_adamw_8bit`.
    """
    nothing = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]  # zero-shot; an optimizer must hold something
    groups = parameter_groups(model, spec) or nothing
    if name == "paged_adamw_8bit":
        paged: torch.optim.Optimizer = PagedAdamW8bit(groups, lr=spec.learning_rate)  # type: ignore[no-untyped-call]
        return paged
    is_on_gpu = groups[0]["params"][0].is_cuda  # a kernel or two for all parameters; a few for each otherwise
    return torch.optim.AdamW(groups, lr=spec.learning_rate, fused=is_on_gpu or None)


def parameter_groups(model: nn.Module, spec: TrialSpec) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and weight decay: B apart from the rest, biases and norms without decay.

    PEFT's `create_loraplus_optimizer` (0.21) would raise the rate of biases and magnitudes with that of B.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = spec.learning_rate * (spec.lora_plus_ratio if ".lora_B." in name else 1.0)
            decay = spec.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
