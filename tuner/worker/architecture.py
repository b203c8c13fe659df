"""What a transformers model is made of, found by looking at it: blocks, attention, MLP, heads. Runs on the worker.

Nothing here knows a model by its name. Repeated blocks stand in a `ModuleList`; a linear layer in a block belongs to
attention if a module around it is an attention class, and to the MLP else, provided that what is left has the form of an
MLP: one layer that widens and one that narrows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from tuner.layers import Group, Layer, ModelFacts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

AUTO_CLASSES = {"classification": AutoModelForSequenceClassification, "causal-lm": AutoModelForCausalLM}
"""Task -> what builds its model."""

ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
"""In the class names of attention modules, of all architectures looked at."""


def skeleton(model_config: PretrainedConfig, task: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model without weights, on the meta device.

    Raises:
        ValueError: transformers has no model of this kind for the task.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(  # type: ignore[no-untyped-call]
            model_config, trust_remote_code=trust_remote_code
        )
    return model


def facts_of(model: PreTrainedModel) -> ModelFacts:
    """What a search must know of a model; on the meta device it takes well under a second for 7B."""
    layers = layers_of(model)
    heads = head_names(model)
    in_head = tuple(f"{head}." for head in heads)
    biases = (
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.endswith(".bias") and not name.startswith(in_head)
    )
    is_clear = {layer.group for layer in layers} == set(Group)
    return ModelFacts(
        layers=layers,
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        hidden_size=int(getattr(model.config.get_text_config(), "hidden_size", 0) or 0),
        family=str(model.config.model_type),
        head_params=sum(parameter.numel() for head in heads for parameter in model.get_submodule(head).parameters()),
        bias_params=sum(biases),
        tree="" if is_clear else module_tree(model),
    )


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Linear layers inside the repeated blocks: what can be quantized and adapted.

    Linear layers outside of them (pooler, head) are not in it: a head that is trained must not be quantized, and a target
    `dense` must not reach a pooler.
    """
    found = [(name, module, _block_of(model, name)) for name, module in model.named_modules() if _is_linear(module)]
    inside = [(name, module, block) for name, module, block in found if block is not None]
    attention = {name for name, _, (block, _, _) in inside if _is_attention(model, name, block)}
    rest = Group.MLP if attention and _is_mlp(_features(m) for name, m, _ in inside if name not in attention) else None
    return tuple(
        Layer(
            name=name,
            group=Group.ATTENTION if name in attention else rest,
            block=number,
            num_blocks=num_blocks,
            in_features=_features(module)[0],
            out_features=_features(module)[1],
            has_bias=module.bias is not None,
        )
        for name, module, (_, number, num_blocks) in inside
    )


def head_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Children that hold weights beside the base: what a task adds. Empty for causal language models."""
    if "SequenceClassification" not in type(model).__name__:
        return ()
    children = ((name, child) for name, child in model.named_children() if any(True for _ in child.parameters()))
    return tuple(name for name, child in children if child is not model.base_model)


def outer_linears(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers outside of the repeated blocks."""
    return tuple(
        name for name, module in model.named_modules() if _is_linear(module) and _block_of(model, name) is None
    )


def module_tree(model: nn.Module) -> str:
    """The modules as an indented list of name and class, of each stack the first block only."""
    lines = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if name and not any(part.isdecimal() and part != "0" for part in parts):
            lines.append(f"{'  ' * len(parts)}{parts[-1]}: {type(module).__name__}")
    return "\n".join(lines)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, Conv1D))


def _features(module: nn.Module) -> tuple[int, int]:
    """(width of the input, width of the output)."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features  # type: ignore[return-value]  # nn.Linear, quantized or not


def _block_of(model: nn.Module, name: str) -> tuple[str, int, int] | None:
    """(full name of the block, its number, blocks in its stack) of the outermost stack around a module."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        stack = model.get_submodule(".".join(parts[:end]))
        if isinstance(stack, torch.nn.ModuleList):
            return ".".join(parts[: end + 1]), int(parts[end]), len(stack)
    return None


def _is_attention(model: nn.Module, name: str, block: str) -> bool:
    return any(ATTENTION.search(type(model.get_submodule(path)).__name__) for path in _ancestors(name, block))


def _ancestors(name: str, block: str) -> Iterator[str]:
    """Modules between a block and a layer in it, both left out."""
    inner = name.removeprefix(f"{block}.").split(".")[:-1]
    return itertools.islice(itertools.accumulate([block, *inner], lambda path, part: f"{path}.{part}"), 1, None)


def _is_mlp(shapes: Iterable[tuple[int, int]]) -> bool:
    """Whether layers of these shapes (input, output) widen and narrow, as those of an MLP do."""
    shapes = tuple(shapes)
    return any(out > into for into, out in shapes) and any(out < into for into, out in shapes)
