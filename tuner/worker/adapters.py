"""A LoraSpec as a PEFT adapter on the shared base: attached before a trial, gone without a trace after it.

Runs on the worker.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer

from tuner.worker.model import BaseModel, block_linears

if TYPE_CHECKING:
    from torch import nn

    from tuner.trial import LoraSpec

HEADS = ("classifier", "score")
"""Names of classification heads; PEFT trains and saves these for the task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """The base with what one trial trains on it."""

    model: nn.Module
    """What to call: a PeftModel, or the base itself where only the head is trained."""
    base: BaseModel
    """The shared base."""
    original_heads: Mapping[str, nn.Module]
    """The base's own heads by name, to be put back."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def num_trainable(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    def detach(self) -> None:
        """Leave the base as it was before `attach`."""
        if isinstance(self.model, PeftModel):
            self.model.unload()
        for name, head in self.original_heads.items():
            self.base.model.set_submodule(name, head)
        self.base.model.requires_grad_(requires_grad=False)


def attach(base: BaseModel, lora: LoraSpec | None, seed: int) -> Adapted:
    """Put a fresh adapter and a fresh head on the base.

    Args:
        base: Without an adapter.
        lora: None trains the head alone.
        seed: Start of the draws of head and adapter weights.

    Raises:
        ValueError: A target module names no linear layer of the model.
    """
    heads = {name: base.model.get_submodule(name) for name in HEADS if hasattr(base.model, name)}
    torch.manual_seed(seed)
    for name, head in heads.items():
        base.model.set_submodule(name, _fresh_head(base, head))
    model = base.model if lora is None else _with_lora(base.model, lora)
    adapted = Adapted(model=model, base=base, original_heads=heads)
    if lora is None:
        for name in heads:
            base.model.get_submodule(name).requires_grad_(requires_grad=True)
    return adapted


def resolve_ranks(names: Iterable[str], ranks: Mapping[str, int]) -> dict[str, int]:
    """Find the linear layers that the targets mean.

    A target means each layer that it names or whose dotted name ends in it; of several targets that fit a layer the longest
    wins, so that `output.dense` and `attention.output.dense` can have ranks of their own.

    Args:
        names: Full names of the layers that may be adapted.
        ranks: Target -> rank.

    Returns:
        Full name -> rank, in the order of `names`.

    Raises:
        ValueError: A target fits no layer.
    """
    resolved = {}
    unused = set(ranks)
    for name in names:
        fitting = [target for target in ranks if name == target or name.endswith(f".{target}")]
        unused -= set(fitting)
        if fitting:
            resolved[name] = ranks[max(fitting, key=len)]
    if unused:
        msg = f"no linear layer is named {', '.join(sorted(unused))}"
        raise ValueError(msg)
    return resolved


def _fresh_head(base: BaseModel, head: nn.Module) -> nn.Module:
    """A float32 copy with new weights, drawn as transformers draws them."""
    fresh = copy.deepcopy(head).to(torch.float32)
    std = getattr(base.model.config, "initializer_range", 0.02)
    for module in fresh.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return fresh


def _with_lora(model: nn.Module, lora: LoraSpec) -> PeftModel:
    ranks = resolve_ranks(block_linears(model), lora.ranks())
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=lora.r,
        lora_alpha=_whole(lora.lora_alpha),  # type: ignore[arg-type]  # PEFT divides; fractions are fine
        lora_dropout=lora.lora_dropout,
        target_modules=list(ranks),
        rank_pattern={_anchored(name): r for name, r in ranks.items() if r != lora.r},
        alpha_pattern={_anchored(name): _whole(lora.scale * r) for name, r in ranks.items() if r != lora.r},
    )
    wrapped = get_peft_model(model, config)
    _check_realised(wrapped, ranks, lora.scale)
    return wrapped


def _anchored(name: str) -> str:
    return f"^{re.escape(name)}"


def _whole(alpha: float) -> float:
    """16 rather than 16.0: serving engines read alpha as an integer where it is one."""
    return int(alpha) if alpha == int(alpha) else alpha


def _check_realised(wrapped: PeftModel, ranks: Mapping[str, int], scale: float) -> None:
    """PEFT takes patterns by regular expression; make sure that each layer got what the spec says."""
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in wrapped.named_modules()
        if isinstance(layer, LoraLayer)
    }
    realised = {name: layer.r["default"] for name, layer in layers.items()}
    scales = {layer.scaling["default"] for layer in layers.values()}
    if realised != dict(ranks) or not all(math.isclose(got, scale) for got in scales):
        msg = f"PEFT built ranks {realised} at scales {scales}; asked for {dict(ranks)} at {scale}"
        raise AssertionError(msg)
