"""Which finished trials stand on the front. Pure; runs on the driver."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import numpy as np

from tuner.pareto import FloatArray, non_dominated_mask
from tuner.trial import Metric, Metrics, TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.config import SweepConfig

GIB = 2**30


class Objective(enum.StrEnum):
    """What a front may weigh; the value is the column's name in every table."""

    ACCURACY = Metric.ACCURACY
    MACRO_F1 = Metric.MACRO_F1
    EXACT_MATCH = Metric.EXACT_MATCH
    CHOICE_ACCURACY = Metric.CHOICE_ACCURACY
    TOKEN_ACCURACY = Metric.TOKEN_ACCURACY
    PERPLEXITY = Metric.PERPLEXITY
    TRAINABLE_PARAMS = "trainable_params"
    PEAK_MEMORY_GIB = "peak_memory_gib"

    @property
    def metric(self) -> Metric | None:
        """The metric that it is; None for a cost."""
        return None if self in _COSTS else Metric(self.value)

    def of(self, metrics: Metrics) -> float:
        """The objective's value, in its own direction and unit.

        Args:
            metrics: Of a trial of a sweep with this objective: a metric's value stands in `metrics.accuracy`.
        """
        match self:
            case Objective.TRAINABLE_PARAMS:
                return float(metrics.trainable_params)
            case Objective.PEAK_MEMORY_GIB:
                return metrics.peak_memory_bytes / GIB
            case _:
                return metrics.accuracy

    def loss_of(self, metrics: Metrics) -> float:
        """The objective's value, turned so that lower is better."""
        value = self.of(metrics)
        return value if self.metric is None else self.metric.loss(value)

    @property
    def is_maximized(self) -> bool:
        """Metrics go up (perplexity goes down), costs go down."""
        return self.metric is not None and self.metric.is_maximized


_COSTS = frozenset({Objective.TRAINABLE_PARAMS, Objective.PEAK_MEMORY_GIB})


def objectives_of(config: SweepConfig) -> tuple[Objective, ...]:
    """What a sweep weighs: its metric first, then the costs."""
    goals = config.objectives
    costs = ((Objective.TRAINABLE_PARAMS, goals.trainable_params), (Objective.PEAK_MEMORY_GIB, goals.memory.weigh))
    return (Objective(config.metric.value), *(cost for cost, is_asked in costs if is_asked))


def front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> tuple[TrialRecord, ...]:
    """The finished trials of the search that no other dominates, cheapest first; baselines and audits stand beside it.

    Raises:
        ValueError: Finished trials had their memory measured in different ways, so that they can't be compared.
    """
    finished = [record for record in records if is_candidate(record) and _has_place(record, objectives)]
    if len({record.last.memory_kind for record in finished if record.last}) > 1:
        msg = "two kinds of memory can't share a front"
        raise ValueError(msg)
    mask = non_dominated_mask(losses_of(finished, objectives))
    on_front = [record for record, is_on in zip(finished, mask, strict=True) if is_on]
    return tuple(sorted(on_front, key=lambda record: _cost_order(record, objectives)))


def _has_place(record: TrialRecord, objectives: Sequence[Objective]) -> bool:
    """Whether all that is weighed is finite; a perplexity may be too large for a float."""
    return record.last is not None and all(math.isfinite(goal.of(record.last)) for goal in objectives)


def is_candidate(record: TrialRecord) -> bool:
    """Whether a trial may stand on the front: of the search, and fully trained."""
    return record.state is TrialState.COMPLETE and record.last is not None and record.spec.is_searched


def has_begun(record: TrialRecord) -> bool:
    """Whether anything was trained; one that was known not to fit before that is none of the sweep's `num_trials`."""
    ran_out = record.outcome is not None and record.outcome.reason is not None
    return record.state is not TrialState.INFEASIBLE or record.last is not None or ran_out


def _cost_order(record: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Sort key: the costs that the sweep weighs, then those that it does not, then accuracy, then number."""
    if record.last is None:
        return (record.number,)
    weighed = (goal.of(record.last) for goal in objectives if goal.metric is None)
    costs = (*weighed, record.last.trainable_params, record.last.peak_memory_bytes)
    return (*costs, objectives[0].loss_of(record.last), record.number)


def losses_of(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> FloatArray:
    """`(num_records, num_objectives)` at their last reports, lower is better."""
    rows = [[goal.loss_of(record.last) for goal in objectives] for record in records if record.last]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))
