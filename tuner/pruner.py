"""Which trials to stop early: (what is known at a rung) -> Stop or None. Pure; runs on the driver.

The rule keeps the cheap end of the front: a trial is stopped only if another one, at the same rung, costs no more and is
better beyond the noise. Ranking by accuracy alone would keep the largest ranks and stop small ones that nothing dominates.
Which of the others goes on first is `promotion`'s question.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from tuner.trial import Stop, StopReason

if TYPE_CHECKING:
    from tuner.forecast import Outlook
    from tuner.ladder import IntArray, Rung

MEDIAN_STARTUP_TRIALS = 5
"""Trials that must have finished before the median stops anyone; Optuna's default."""


def rivals_of(rung: Rung, row: int) -> IntArray:
    """Rows that could dominate a trial: they stand on the rung's front and cost no more.

    Only those on the front, so that a dominated trial never changes what happens to another.
    """
    is_rival = rung.is_front & np.all(rung.costs <= rung.costs[row], axis=1) & (rung.loss < rung.loss[row])
    is_rival[row] = False
    return np.flatnonzero(is_rival)


def dominator(rung: Rung, row: int, rivals: IntArray, outlook: Outlook, confidence: float) -> int | None:
    """The row that stops a trial, if there is one.

    It costs no more and has a lower cross entropy; it is better in the metric beyond the noise of the evaluation; and it is
    expected to stay so to the end, beyond the error of the forecast. Beyond the noise is z standard errors of the difference,
    where z makes up for how many rivals the trial is held against (Bonferroni). The scores come from the same validation
    examples, so that to take their errors as independent is on the safe side.

    Args:
        rung: All reports at the trial's rung.
        row: The trial's place in it.
        rivals: `(num_rivals,)` rows, from `rivals_of`.
        outlook: What is expected of the rivals and, last, of the trial.
        confidence: That the other is really better, in [0.5, 1).

    Returns:
        The clearest dominator's row; None if the trial goes on.
    """
    if len(rivals) == 0:
        return None
    z = NormalDist().inv_cdf(1 - (1 - confidence) / len(rivals))
    now = rung.metric[row] - rung.metric[rivals] - z * np.hypot(rung.error[rivals], rung.error[row])
    later = outlook.metric[-1] - outlook.metric[:-1] - z * np.hypot(outlook.error[:-1], outlook.error[-1])
    lead = np.minimum(now, later)
    best = int(np.argmax(lead))
    return int(rivals[best]) if lead[best] > 0 else None


def is_below_floor(rung: Rung, row: int, floor: float, confidence: float) -> bool:
    """Tell whether a trial is no better than a floor that another one at its rung has left behind beyond the noise.

    Args:
        rung: All reports at the trial's rung.
        row: The trial's place in it.
        floor: Of the metric, turned so that lower is better.
        confidence: That the other one is really above the floor.
    """
    z = NormalDist().inv_cdf(confidence)
    return bool(rung.metric[row] >= floor) and bool(np.any(rung.metric + z * rung.error < floor))


def asha_stops(rung: Rung, row: int, reduction_factor: int) -> bool:
    """Tell whether asynchronous successive halving stops a trial: by the metric alone, it is not among the best 1 / factor.

    The first one at a rung goes on, for nothing stands beside it yet. Trials that came later do not count.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning (MLSys 2020), in the stopping form of Ray Tune's
    `_Bracket.on_result` (ray 2.60): the quantile is interpolated over the reports before this one.
    """
    before = rung.metric[:row]
    if len(before) == 0:
        return False
    return bool(rung.metric[row] > np.quantile(before, 1 / reduction_factor))


def median_stops(rung: Rung, row: int, best: float, finished: frozenset[int]) -> bool:
    """Tell whether a trial's best metric so far is worse than the median of finished trials at the same rung.

    Args:
        rung: All reports at the trial's rung.
        row: The trial's place in it.
        best: The trial's best metric up to this rung, turned so that lower is better.
        finished: Numbers of trials that reached the last rung.

    Source: Golovin et al., Google Vizier (KDD 2017), as in optuna's `MedianPruner` (5.0) with its five start-up trials.
    """
    others = [place for number in finished if (place := rung.places.get(number, row)) != row]
    if len(finished) < MEDIAN_STARTUP_TRIALS or not others:
        return False
    return best > float(np.median(rung.metric[others]))


def stop_by_dominance(rung: Rung, row: int, other: int) -> Stop:
    """The stop of a trial that another dominates, with its evidence."""
    lead = rung.metric[row] - rung.metric[other]
    error = math.hypot(rung.error[other], rung.error[row])
    detail = f"trial {rung.numbers[other]} costs no more and leads by {lead:.3g} ± {error:.2g}"
    return Stop(reason=StopReason.DOMINATED, detail=detail)
