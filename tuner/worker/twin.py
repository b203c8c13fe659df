"""A second module tree over the same weights: adapters are put on it, and the first tree stays as it was. Runs on the worker.

A tree costs Python objects alone, a few hundred KB. So trials that train side by side in one process each have a tree of their
own, with an ordinary PEFT adapter on it, and one copy of the base serves them all.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn.modules import Params4bit

if TYPE_CHECKING:
    from tuner.worker.model import BaseModel


def twin_of(base: BaseModel) -> BaseModel:
    """The same base with modules of its own.

    Parameters are objects of their own over the same memory: to give one another tensor changes this tree alone. Biases have
    memory of their own, for some adapters train them in place.

    Args:
        base: Without an adapter; not in int8, whose state stands beside the parameters.
    """
    shared: dict[int, Any] = {}
    for name, parameter in base.model.named_parameters():
        shared[id(parameter)] = _parameter(parameter, is_own=name.endswith(".bias"))
        if (state := getattr(parameter, "quant_state", None)) is not None:
            shared[id(state)] = state
    for buffer in base.model.buffers():
        shared[id(buffer)] = buffer
    return dataclasses.replace(base, model=copy.deepcopy(base.model, shared))


def _parameter(parameter: torch.nn.Parameter, *, is_own: bool) -> torch.nn.Parameter:
    if isinstance(parameter, Params4bit):
        return copy.copy(parameter)
    data = parameter.detach()
    return torch.nn.Parameter(data.clone() if is_own else data, requires_grad=False)
