"""A LoraSpec as a PEFT adapter on the shared base: attached before a trial, gone without a trace after it.

Runs on the worker.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from transformers.pytorch_utils import Conv1D

from tuner.layers import ranks_of
from tuner.lora import Bias, Init, LoraSpec
from tuner.worker.architecture import head_names, layers_of
from tuner.worker.starts import ADAPTER, BASE, keep_weights, lora_layers, save_as_lora, start_eva, start_loftq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from tuner.worker.batches import Batch
    from tuner.worker.model import BaseModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapted:
    """The base with what one trial trains on it."""

    model: nn.Module
    """What to call: a PeftModel, or the base itself where no adapter is trained."""
    base: BaseModel
    """The shared base."""
    original_heads: Mapping[str, nn.Module]
    """The base's own heads by name, to be put back."""
    original_weights: Mapping[str, torch.Tensor]
    """The base's own values of what this trial changes in it, to be put back; on the CPU."""
    initial: Mapping[str, torch.Tensor]
    """A and B as they started, by name, where the base gave a part of its weights to them."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def num_trainable(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.trainable().values())

    def adapter_at(self, name: str) -> nn.Module | None:
        """PEFT's layer or head in the place of a module of the base; None where it is not adapted."""
        found = self.model.get_submodule(f"{BASE}{name}")
        return found if isinstance(found, LoraLayer | ModulesToSaveWrapper) else None

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format, for the base as it was before."""
        assert isinstance(self.model, PeftModel)  # noqa: S101 -- baselines without an adapter are not saved
        if self.initial:
            save_as_lora(self.model, self.initial, folder)
        else:
            self.model.save_pretrained(str(folder))

    def detach(self) -> None:
        """Leave the base as it was before `attach`."""
        if isinstance(self.model, PeftModel):
            self.model.unload()
        for name, head in self.original_heads.items():
            self.base.model.set_submodule(name, head)
        for name, value in self.original_weights.items():
            self.base.model.get_parameter(name).data = value.to(self.base.device)
        self.base.model.requires_grad_(requires_grad=False)


def attach(base: BaseModel, lora: LoraSpec | None, seed: int, batches: Sequence[Batch] = ()) -> Adapted:
    """Put a fresh adapter and a fresh head on the base.

    Args:
        base: Without an adapter.
        lora: None trains the head alone; a model without a head stays as it is.
        seed: Start of the draws of head and adapter weights.
        batches: Training data, looked at where the adapter starts from the layers' inputs.

    Raises:
        ValueError: A target or a key of the rank pattern means no linear layer of the model.
    """
    heads = _put_fresh_heads(base, seed)
    if lora is None:
        for name in heads:
            base.model.get_submodule(name).requires_grad_(requires_grad=True)
        return Adapted(model=base.model, base=base, original_heads=heads, original_weights={}, initial={})
    return _with_lora(base, lora, heads, batches)


def attach_saved(base: BaseModel, lora: LoraSpec, folder: Path) -> Adapted:
    """Put a saved adapter on the base, as whoever uses it would.

    Args:
        base: Without an adapter.
        lora: What was saved.
        folder: In PEFT's format.

    Raises:
        OSError: The folder holds no adapter.
        ValueError: The adapter does not fit the base.
    """
    heads = {name: base.model.get_submodule(name) for name in head_names(base.model)}
    ranks = ranks_of(layers_of(base.model), lora)
    changed = keep_weights(base.model, ranks, lora, tuple(heads))
    for name in changed:
        _in_float32(base.model.get_parameter(name))
    model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=True)
    return Adapted(model=model, base=base, original_heads=heads, original_weights=changed, initial={})


def attach_nothing(base: BaseModel, seed: int) -> Adapted:
    """Train all weights of a base, with a fresh head; they can't be put back: the base must be loaded anew afterwards."""
    _put_fresh_heads(base, seed)
    base.model.requires_grad_(requires_grad=True)
    return Adapted(model=base.model, base=base, original_heads={}, original_weights={}, initial={})


def _put_fresh_heads(base: BaseModel, seed: int) -> dict[str, nn.Module]:
    """Replace the heads; returns those that were there, by name."""
    heads = {name: base.model.get_submodule(name) for name in head_names(base.model)}
    torch.manual_seed(seed)
    for name, head in heads.items():
        base.model.set_submodule(name, _fresh_head(base, head))
    return heads


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


def _with_lora(base: BaseModel, lora: LoraSpec, heads: Mapping[str, nn.Module], batches: Sequence[Batch]) -> Adapted:
    ranks = ranks_of(layers_of(base.model), lora)
    changed = keep_weights(base.model, ranks, lora, tuple(heads))
    wrapped = get_peft_model(base.model, lora_config(base.model, lora, ranks, tuple(heads)))
    if lora.init_lora_weights is Init.EVA:
        start_eva(base, wrapped, batches)
    if lora.init_lora_weights is Init.LOFTQ:
        start_loftq(base, wrapped)
    for name in changed:
        _in_float32(_parameter(wrapped, name))
    _check_realised(wrapped, ranks, lora, tuple(heads))
    return Adapted(
        model=wrapped,
        base=base,
        original_heads=heads,
        original_weights=changed,
        initial=_initial(wrapped) if lora.init_lora_weights.is_base_changed else {},
    )


def lora_config(model: nn.Module, lora: LoraSpec, ranks: Mapping[str, int], heads: tuple[str, ...]) -> LoraConfig:
    """The adapter as PEFT describes it; patterns by anchored full names.

    Args:
        model: The base, for the layout of its weights.
        lora: The adapter.
        ranks: Full name -> rank of every layer that is adapted.
        heads: Modules that are trained with it and saved.
    """
    other = {name: r for name, r in ranks.items() if r != lora.r}
    alphas = {} if lora.use_rslora else {_anchored(name): _whole(lora.alpha_at(r)) for name, r in other.items()}
    is_transposed = any(isinstance(model.get_submodule(name), Conv1D) for name in ranks)
    return LoraConfig(
        task_type=TaskType.SEQ_CLS if heads else TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=_whole(lora.lora_alpha),  # type: ignore[arg-type]  # PEFT divides; fractions are fine
        lora_dropout=lora.lora_dropout,
        target_modules=list(ranks),
        rank_pattern={_anchored(name): r for name, r in other.items()},
        alpha_pattern=alphas,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=_init_word(lora.init_lora_weights),  # type: ignore[arg-type]  # one of its words
        bias=lora.bias.value,
        modules_to_save=list(heads) or None,
        fan_in_fan_out=is_transposed,
    )


def _init_word(init: Init) -> bool | str:
    """PEFT's own word; EVA's and LoftQ's starts are put in place afterwards, from data and from the base as it is."""
    return True if init in {Init.DEFAULT, Init.EVA, Init.LOFTQ} else init.value


def _anchored(name: str) -> str:
    return f"^{re.escape(name)}"


def _whole(alpha: float) -> float:
    """16 rather than 16.0: serving engines read alpha as an integer where it is one."""
    return int(alpha) if alpha == int(alpha) else alpha


def _parameter(wrapped: PeftModel, name: str) -> nn.Parameter:
    """A parameter of the base by its name there; an adapted layer keeps its own under `base_layer`."""
    module, _, last = name.rpartition(".")
    owner = wrapped.get_submodule(f"{BASE}{module}")
    parameter: nn.Parameter = getattr(owner.get_base_layer() if isinstance(owner, LoraLayer) else owner, last)
    return parameter


def _in_float32(parameter: nn.Parameter) -> None:
    """Biases are trained in float32, whatever the base computes in; norms take theirs in the type of their weight only."""
    if parameter.dim() == 1:
        parameter.data = parameter.data.float()


def _initial(wrapped: PeftModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in wrapped.named_parameters() if ".lora_" in name}


def _check_realised(wrapped: PeftModel, ranks: Mapping[str, int], lora: LoraSpec, heads: tuple[str, ...]) -> None:
    """PEFT takes patterns by regular expression; make sure that each layer got what the spec says, and nothing else."""
    layers = {name.removeprefix(BASE): layer for name, layer in lora_layers(wrapped).items()}
    realised = {name: _rank_of(layer) for name, layer in layers.items()}
    wrong = {
        name: layer.scaling[ADAPTER]
        for name, layer in layers.items()
        if not math.isclose(layer.scaling[ADAPTER], lora.scaling_at(layer.r[ADAPTER]))
    }
    if realised != dict(ranks) or wrong:
        msg = f"PEFT built ranks {realised}, asked for {dict(ranks)}; layers with another scale than asked for: {wrong}"
        raise AssertionError(msg)
    trained = {name.removeprefix(BASE) for name, value in wrapped.named_parameters() if value.requires_grad}
    strange = [name for name in trained if not _is_expected(name, heads, lora.bias)]
    if strange:
        msg = f"PEFT trains more than was asked for: {', '.join(sorted(strange))}"
        raise AssertionError(msg)


def _rank_of(layer: Any) -> int:  # noqa: ANN401 -- a PEFT layer
    """The rank that a layer's weights really have; -1 where they don't agree with each other or with PEFT's books."""
    found = {layer.r[ADAPTER], layer.lora_A[ADAPTER].weight.shape[0], layer.lora_B[ADAPTER].weight.shape[1]}
    return int(found.pop()) if len(found) == 1 else -1


def _is_expected(name: str, heads: tuple[str, ...], bias: Bias) -> bool:
    is_bias = bias is not Bias.NONE and name.endswith(".bias")
    return ".lora_" in name or is_bias or name.startswith(tuple(f"{head}.modules_to_save." for head in heads))
