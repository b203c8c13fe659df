"""Follows every tensor's storage while a step runs without data: what is allocated when, and what lives at the peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuner.prediction import Part, Phase
from tuner.vram.allocator import Event

Handler = Callable[["Tracker", Any, tuple[Any, ...], dict[str, Any]], Any]
"""Runs an operator with what it allocates on the device: (tracker, operator, args, kwargs) -> what the operator returns."""


@dataclass(slots=True, eq=False)
class Storage:
    """Memory that tensors share."""

    num_bytes: int
    """With rounding."""
    part: Part
    """What it is for."""
    text: str
    """Operator, shape and type, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The most that lived at the same time in a phase."""

    num_bytes: int
    """Sum over the storages."""
    at: int
    """Events until then."""
    text: str
    """What was allocated at last."""


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no modes
    """Sees each operator on meta tensors, those of the backward pass included.

    Args:
        handlers: Operator -> how to run it instead.
        rounding: Bytes that every allocation is a multiple of.
        vocabulary: Width of the logits, by which they are told from other activations; 0 where there are none.
    """

    def __init__(self, handlers: Mapping[Any, Handler], *, rounding: int, vocabulary: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handlers = handlers
        self._rounding = rounding
        self._vocabulary = vocabulary
        self._live: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self.num_bytes = 0
        """What lives now."""
        self.storages: list[Storage] = []
        """All that ever were; the events' numbers count them from 1."""
        self.events: list[Event] = []
        """What was allocated and freed so far."""
        self.peaks: dict[Phase, Peak] = {}
        """Of each phase, when it ran last."""
        self.phase: Phase | None = None
        """None while what lives from step to step is put in place."""
        self.is_recomputing = False
        """Whether a checkpointed block runs forward again."""

    def begin(self, phase: Phase) -> None:
        """Look for a phase's peak from here on."""
        self.phase = phase
        self.peaks.pop(phase, None)
        self._look("what lives from step to step")

    def add(self, tensor: torch.Tensor, part: Part | None = None, operator: str = "") -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._live or storage.nbytes() == 0:
            return
        text = f"{operator} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}".lstrip()
        number = self._allocate(storage.nbytes(), part or self._part_of(tensor), text)
        self._live[key] = number, weakref.ref(storage, lambda _: self._free(self._live.pop(key)[0]))

    def assign(self, tensor: torch.Tensor, part: Part) -> None:
        """Say what a tensor is for that was counted already."""
        number, _ = self._live[id(tensor.untyped_storage())]
        self.storages[number - 1].part = part

    def scratch(self, num_bytes: int, text: str) -> None:
        """A kernel takes memory for itself and gives it back."""
        self._free(self._allocate(num_bytes, Part.SCRATCH, f"{text} (scratch)"))

    def living_at(self, peak: Peak) -> list[Storage]:
        """What lived at a peak."""
        living = {abs(number): number > 0 for number, _ in self.events[: peak.at] if number}
        return [self.storages[number - 1] for number, is_alive in living.items() if is_alive]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        handler = self._handlers.get(func)
        out = handler(self, func, args, kwargs or {}) if handler else func(*args, **(kwargs or {}))
        for tensor in _tensors_in(out):
            self.add(tensor, operator=func.overloadpacket.__name__)
        return out

    def _allocate(self, num_bytes: int, part: Part, text: str) -> int:
        size = -(-num_bytes // self._rounding) * self._rounding
        self.storages.append(Storage(size, part, text))
        number = len(self.storages)
        self.events.append((number, size))
        self.num_bytes += size
        self._look(text)
        return number

    def _free(self, number: int) -> None:
        self.events.append((-number, 0))
        self.num_bytes -= self.storages[number - 1].num_bytes

    def _look(self, text: str) -> None:
        """Keep the peak, if this is one."""
        if self.phase and (self.phase not in self.peaks or self.num_bytes > self.peaks[self.phase].num_bytes):
            self.peaks[self.phase] = Peak(num_bytes=self.num_bytes, at=len(self.events), text=text)

    def _part_of(self, tensor: torch.Tensor) -> Part:
        if self._vocabulary and tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary:
            return Part.LOGITS
        is_passing = self.phase in {Phase.BACKWARD, Phase.OPTIMIZER} and not self.is_recomputing
        return Part.SCRATCH if is_passing else Part.ACTIVATIONS


def _tensors_in(out: Any) -> Iterator[torch.Tensor]:
    leaves = (out,) if isinstance(out, torch.Tensor) else tree_leaves(out)
    return (leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_meta)
