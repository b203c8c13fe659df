"""Which trials to stop early: (what is known at a rung) -> Decision. Pure; runs on the driver.

The rule keeps the cheap end of the front: a trial is stopped only if another one, at the same rung, costs no more and is
better beyond the noise. Ranking by accuracy alone would keep the largest ranks and stop small ones that nothing dominates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from tuner.config import PruningConfig
from tuner.front import Objective
from tuner.trial import Metrics


def is_dominated(
    candidate: Metrics, others: Iterable[Metrics], pruning: PruningConfig, objectives: Sequence[Objective]
) -> bool:
    """Tell whether a trial should be stopped at the rung that it has just reached.

    Args:
        candidate: The trial's report.
        others: Reports of other trials at the same rung; those that failed later count too.
        pruning: The sweep's section.
        objectives: The sweep's; the metric first, then the costs that count.

    Returns:
        True if another trial costs no more, has a lower loss, and is better in the metric at the section's confidence.
        Always False with method `none`.
    """
    if pruning.method == "none":
        return False
    z = NormalDist().inv_cdf(pruning.confidence)
    metric, *costs = objectives
    return any(
        _costs_no_more(other, candidate, costs) and _is_better(other, candidate, metric, z=z) for other in others
    )


def _costs_no_more(other: Metrics, candidate: Metrics, costs: Iterable[Objective]) -> bool:
    return all(cost.of(other) <= cost.of(candidate) for cost in costs)


def _is_better(other: Metrics, candidate: Metrics, metric: Objective, *, z: float) -> bool:
    """Better in the metric by more than z standard errors of the difference, and a lower loss.

    The two are scored on the same examples, so the errors are taken as independent at most: the test is on the safe side.
    """
    error = math.hypot(other.standard_error, candidate.standard_error)
    return other.loss < candidate.loss and metric.loss_of(candidate) - metric.loss_of(other) > z * error
