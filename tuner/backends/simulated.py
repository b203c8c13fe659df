"""Trials on a simulated clock: workers that answer at once, whose reports arrive in the order in which they would have.

So that a whole sweep of many workers is a matter of milliseconds, for tests and for comparing rules on recorded curves.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.backends import StudyVerbs, TrialWorker, hand_in
from tuner.trial import Decision, Inspection, Metrics, Result, TrialSpec

if TYPE_CHECKING:
    from tuner.config import SweepConfig


@dataclass
class SimulatedBackend:
    """Carries out trials side by side on a clock of its own.

    Args:
        build: Makes a worker.
        num_workers: How many there are.
        cost_s: (metrics before, metrics now or the failure) -> simulated seconds between the two; by default what `train_s` says.
    """

    build: Callable[[SweepConfig, Path | None], TrialWorker]
    num_workers: int
    cost_s: Callable[[Metrics | None, Result], float] = field(default_factory=lambda: _train_s)
    now_s: float = 0.0
    """The clock."""

    def inspect(self, config: SweepConfig) -> Inspection:
        """Look at model and data."""
        return self.build(config, None).inspect()

    def run(self, config: SweepConfig, folder: Path, study: StudyVerbs) -> None:
        """Work until the study gives out no more trials and all that were given out are told."""
        free = [_Slot(self.build(config, folder)) for _ in range(self.num_workers)]
        busy: list[tuple[float, int, _Slot, Result]] = []
        order = itertools.count()
        while True:
            while free and (spec := study.ask()) is not None:
                slot = free.pop(0)
                slot.begin(spec)
                heapq.heappush(busy, self._advanced(slot, next(order)))
            if not busy:
                return
            self.now_s, _, slot, result = heapq.heappop(busy)
            if hand_in(study, slot.number, result) is Decision.CONTINUE:
                heapq.heappush(busy, self._advanced(slot, next(order)))
            else:
                free.append(slot)

    def close(self) -> None:
        """Nothing to give back."""

    def _advanced(self, slot: _Slot, place: int) -> tuple[float, int, _Slot, Result]:
        """The slot's next report: when it comes, and its place among equals."""
        before = slot.last
        result = slot.advance()
        return self.now_s + self.cost_s(before, result), place, slot, result


class _Slot:
    """A worker and what it is at."""

    def __init__(self, worker: TrialWorker) -> None:
        self._worker = worker
        self.number = -1
        self.last: Metrics | None = None

    def begin(self, spec: TrialSpec) -> None:
        self._worker.start(spec)
        self.number, self.last = spec.number, None

    def advance(self) -> Result:
        result = self._worker.advance()
        self.last = result if isinstance(result, Metrics) else self.last
        return result


def _train_s(before: Metrics | None, now: Result) -> float:
    """Seconds of training and evaluation between two reports; a failure comes at once."""
    if not isinstance(now, Metrics):
        return 0.0
    return now.train_s - (before.train_s if before else 0.0)
