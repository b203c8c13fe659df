"""Which waiting trial goes on first: the one that may add most to the front at its rung. Pure; runs on the driver.

A trial's worth is the hypervolume that it adds, at its rung, to what has gone on from there already. So a small trial is held
against what small trials can do, and the cheap end of the front is finished along with the accurate end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuner.pareto import hypervolume, non_dominated_mask

if TYPE_CHECKING:
    from tuner.forecast import Outlook
    from tuner.ladder import IntArray, Rung
    from tuner.pareto import FloatArray

MARGIN = 0.1
"""The worst of a rung still counts: the reference point lies this share of the rung's width beyond it."""
OPTIMISM = 1.0
"""Standard errors by which a forecast is bettered: what may turn out well is tried before what surely will not."""


def worthiest(rung: Rung, waiting: IntArray, gone_on: IntArray, outlook: Outlook | None) -> tuple[int, float]:
    """The waiting trial that may add most to those that went on.

    Args:
        rung: All reports at the rung.
        waiting: `(num_waiting,)` rows of the trials that wait there, at least one.
        gone_on: `(num_gone_on,)` rows of those that went on from there.
        outlook: What is expected of `waiting` and then `gone_on`; without one their cross entropy stands for it, which tells
            earlier than the metric which will be good.

    Returns:
        (place in `waiting`, share of the box that it would add), the first of equals. The box spans the rung: what is expected,
        and the costs on a log scale.
    """
    rows = np.concatenate([waiting, gone_on])
    expected = rung.loss[rows] if outlook is None else outlook.metric - OPTIMISM * outlook.error
    points = _scaled(np.column_stack([expected, np.log(np.maximum(rung.costs[rows], 1e-9))]))
    candidates, done = points[: len(waiting)], points[len(waiting) :]
    done = done[non_dominated_mask(done)]
    reference = np.full(points.shape[1], 1 + MARGIN)
    before = hypervolume(done, reference)
    places = np.flatnonzero(non_dominated_mask(candidates))  # a dominated one never adds more than its dominator
    added = np.array([hypervolume(np.vstack([done, candidates[place]]), reference) - before for place in places])
    best = int(np.argmax(added))
    return int(places[best]), float(added[best]) / (1 + MARGIN) ** points.shape[1]


def _scaled(points: FloatArray) -> FloatArray:
    """Every column in [0, 1] over the rows, 0 is best."""
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - low) / np.where(high > low, high - low, 1.0))
