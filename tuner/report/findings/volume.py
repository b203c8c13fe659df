"""Trials as points, and the hypervolume of a front in a box that all points share. Pure; runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuner.front import Objective
from tuner.pareto import BoolArray, FloatArray, hypervolume, non_dominated_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.trial import Metrics, TrialRecord

WIDENED = 0.1
"""The worst still counts: the hypervolume's box reaches this share of its width beyond the worst value of each objective."""


class Box:
    """Measures hypervolume with every objective in [0, 1] over some points, and 1 beyond the worst.

    Args:
        points: `(num_points, num_objectives)`, lower is better; those that are not finite count for nothing.
    """

    def __init__(self, points: FloatArray) -> None:
        finite = points[is_finite(points)]
        if len(finite) == 0:
            finite = np.zeros((1, points.shape[1]))
        self._low = finite.min(axis=0)
        width = finite.max(axis=0) - self._low
        self._width = (1 + WIDENED) * np.where(width > 0, width, 1.0)

    def volume(self, points: FloatArray) -> float:
        """Share of the box that the points dominate, in [0, 1]."""
        scaled = (points[is_finite(points)] - self._low) / self._width
        return hypervolume(scaled, np.ones(points.shape[1]))

    def loss(self, kept: FloatArray, added: FloatArray) -> float:
        """Share of the hypervolume of all points that is missing without those added."""
        before, after = self.volume(kept), self.volume(np.vstack([kept, added]))
        return (after - before) / after if after > 0 else 0.0


def points_of(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> FloatArray:
    """`(num_records, num_objectives)` at their last reports, lower is better; trainable parameters as their logarithm."""
    rows = [[_place(goal, record.last) for goal in objectives] for record in records if record.last]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def is_finite(points: FloatArray) -> BoolArray:
    """`(num_points,)`: whether each has a place."""
    return np.asarray(np.isfinite(points).all(axis=1), dtype=np.bool_)


def would_stand(kept: FloatArray, one: FloatArray) -> bool:
    """Whether a point is on the front of others and itself; a perplexity too large for a float is not."""
    points = np.vstack([kept, one])
    finite = is_finite(points)
    return bool(finite[-1]) and bool(non_dominated_mask(points[finite])[-1])


def _place(objective: Objective, report: Metrics) -> float:
    loss = objective.loss_of(report)
    return float(np.log10(max(1.0, loss))) if objective is Objective.TRAINABLE_PARAMS else loss
