"""Which trials to stop early: (what is known at a rung) -> Decision. Pure; runs on the driver.

The rule keeps the cheap end of the front: a trial is stopped only if another one, at the same rung, costs no more and is
better beyond the noise. Ranking by accuracy alone would keep the largest ranks and stop small ones that nothing dominates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

from tuner.config import ObjectivesConfig, PruningConfig
from tuner.trial import Metrics


def is_dominated(
    candidate: Metrics, others: Iterable[Metrics], pruning: PruningConfig, objectives: ObjectivesConfig
) -> bool:
    """Tell whether a trial should be stopped at the rung that it has just reached.

    Args:
        candidate: The trial's report.
        others: Reports of other trials at the same rung; those that failed later count too.
        pruning: The sweep's section.
        objectives: Which costs count.

    Returns:
        True if another trial costs no more, has a lower loss, and a higher accuracy at the section's confidence.
        Always False with method `none`.
    """
    if pruning.method == "none":
        return False
    z = NormalDist().inv_cdf(pruning.confidence)
    return any(_costs_no_more(other, candidate, objectives) and _is_better(other, candidate, z=z) for other in others)


def _costs_no_more(other: Metrics, candidate: Metrics, objectives: ObjectivesConfig) -> bool:
    fewer = not objectives.trainable_params or other.trainable_params <= candidate.trainable_params
    smaller = not objectives.memory or other.peak_memory_bytes <= candidate.peak_memory_bytes
    return fewer and smaller


def _is_better(other: Metrics, candidate: Metrics, *, z: float) -> bool:
    """Higher accuracy by more than z standard errors of the difference, and a lower loss.

    The two are scored on the same examples, so the errors are taken as independent at most: the test is on the safe side.
    """
    error = math.hypot(other.standard_error, candidate.standard_error)
    return other.loss < candidate.loss and other.accuracy - candidate.accuracy > z * error
