"""How many trials should make their steps together: measured, for neither a card nor a CPU tells. Runs on the worker."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tuner.worker.lockstep import Lockstep
from tuner.worker.sliced import NotTogetherError

if TYPE_CHECKING:
    from tuner.worker.training import TrialRun

log = logging.getLogger(__name__)

SIZES = (2, 4, 8)
"""Tried one after another, as long as each is worth it."""
WORTH = 1.05
"""So many times the steps a second of the size before; less is noise, and a larger team asks for more trials early."""
NUM_REPEATS = 3
"""Timed steps of each size, after one that warms up."""


def best_size(run: TrialRun, lockstep: Lockstep, copies: Iterator[TrialRun]) -> int:
    """The number of trials at a time that makes most steps a second.

    Args:
        run: A trial before its next step; it makes none here.
        lockstep: What makes steps together.
        copies: Trials like it, which are worn out here.
    """
    probes = [next(copies), next(copies)]
    if not lockstep.agrees(probes):
        return 1
    best, seconds = 1, _typical([probes[0].step().seconds for _ in range(NUM_REPEATS + 1)])
    for size in SIZES:
        probes += [next(copies) for _ in range(size - len(probes))]
        taken = _together_s(lockstep, probes)
        log.info("%s: %d at a time take %s s a step and trial, alone %.3f", run.spec.label, size, taken, seconds)
        if taken is None or taken * WORTH > seconds:
            break
        best, seconds = size, taken
    lockstep.forget()
    return best


def _together_s(lockstep: Lockstep, probes: Sequence[TrialRun]) -> float | None:
    """Seconds of a step and trial; None if the device has no room for so many."""
    try:
        return _typical([lockstep.step(probes)[0].seconds for _ in range(NUM_REPEATS + 1)])
    except (NotTogetherError, RuntimeError) as error:
        log.info("%d trials don't fit: %s", len(probes), error)
        return None


def _typical(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[1:])
