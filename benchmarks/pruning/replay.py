"""The common ground of all replays: what a method leaves behind, and how the clock runs.

One step of training is one tick. `NUM_WORKERS` trials run side by side; whoever is free first works next, the lowest number
first among equals. Restoring a paused trial costs nothing here: an adapter is a few MB, and the base stays where it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_WORKERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """A trial that reached the last rung."""

    spent_steps: int
    """Steps of all trials up to this moment."""
    curve: int
    """Index of the curve in the recording."""


Trial = Generator[int, None, None]
"""A trial as a worker lives it: yields the steps of each segment before it trains it, and reports when it is resumed."""


def run_side_by_side(next_trial: Callable[[], Trial | None], num_workers: int = NUM_WORKERS) -> None:
    """Let workers live through trials on a simulated clock.

    Args:
        next_trial: Gives the trial that a free worker takes on; None when there is none any more.
        num_workers: How many trials run at a time.
    """
    clock = [(0, worker) for worker in range(num_workers)]
    at_work: dict[int, Trial] = {}
    while clock:
        now, worker = heapq.heappop(clock)
        segment = next(at_work[worker], None) if worker in at_work else None
        while segment is None:
            trial = next_trial()
            if trial is None:
                at_work.pop(worker, None)
                break
            at_work[worker] = trial
            segment = next(trial, None)
        if segment is not None:
            heapq.heappush(clock, (now + segment, worker))
