"""A trial's work as a chain of steps, which somebody else may make: alone, or together with those of other trials.

Runs on the worker.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tuner.worker.evaluation import num_learned

if TYPE_CHECKING:
    from tuner.worker.batches import Batch
    from tuner.worker.training import TrialRun


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeded:
    """A batch of a step."""

    batch: Batch
    seed: int
    """Where the draws of its dropout masks start."""


def num_taught(plan: Sequence[Seeded]) -> int:
    """Classes or tokens that a step teaches, over which its loss is a mean."""
    return sum(num_learned(seeded.batch) for seeded in plan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """An optimizer step that was made."""

    loss: float
    """Mean before it."""
    seconds: float
    """What it took, or the trial's share of it."""


T = TypeVar("T")
Steps = Generator["TrialRun", Stepped | None, T]
"""Work that stops before each of its steps; sent None it makes the step itself, else somebody has made it."""


def alone(steps: Steps[T]) -> T:
    """To the end, each step made by itself."""
    try:
        while True:
            next(steps)
    except StopIteration as ended:
        result: T = ended.value
        return result
