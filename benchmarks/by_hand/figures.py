"""The benchmark's figures from what was measured: arrays and values in, numbers out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from tuner.pareto import FloatArray, hypervolume

WIDENED = 0.1
"""The hypervolume's box reaches this share of its width beyond the full sweep's worst values, as in benchmarks/pruning."""
Finish = tuple[float, float, float, float]
"""(seconds since the begin, accuracy, trainable parameters, bytes at the peak) of a trial that was trained to the end."""


def losses(finishes: Sequence[Finish]) -> FloatArray:
    """`(num_finishes, 3)`: error, log10 of the parameters, GiB; lower is better."""
    rows = [(1 - accuracy, math.log10(params), memory / 2**30) for _, accuracy, params, memory in finishes]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 3)


def shares(finishes: Sequence[Finish], full: Sequence[Finish]) -> list[tuple[float, float]]:
    """(seconds, share of the full sweep's hypervolume) after each finished trial.

    Args:
        finishes: By rising time.
        full: A sweep whose trials were all trained to the end; its best and worst values span the box.
    """
    reference = losses(full)
    low, high = reference.min(axis=0), reference.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    corner = np.ones(3) + WIDENED
    whole = hypervolume((reference - low) / width, corner)
    found = (losses(finishes) - low) / width
    return [(finish[0], hypervolume(found[: place + 1], corner) / whole) for place, finish in enumerate(finishes)]


def time_to(share: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """Seconds until a share of the hypervolume is reached; None where it is not."""
    return next((seconds for seconds, reached in curve if reached >= share), None)


def trials_per_hour(ends_s: Sequence[float]) -> float:
    """From the command's begin to the last trial's end."""
    return len(ends_s) / max(ends_s) * 3600


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "repeats": len(values)}
