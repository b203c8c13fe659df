"""Which finished trials stand on the front, and which of them to pick. Pure; runs on the driver."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.errors import PickError
from tuner.pareto import FloatArray, knee_index, non_dominated_mask
from tuner.trial import Metric, Metrics, TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.config import SweepConfig

GIB = 2**30
RECOMMENDED = ("knee", "most-accurate", "cheapest-within:1se")
"""What is recommended of a front, as `Pick` takes it: the compromise, the best, the cheapest within the noise of the best."""
ROUNDING = 1e-9
"""Two accuracies nearer than this are equal: 0.9 - 0.3 is a little more than 0.6 in binary."""


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
    mask = non_dominated_mask(_losses(finished, objectives))
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


def worth_confirming(
    front: Sequence[TrialRecord], objectives: Sequence[Objective], num_trials: int
) -> tuple[TrialRecord, ...]:
    """The trials of a front that are trained anew from other seeds: those that are recommended, then the best.

    Args:
        front: The front, cheapest first.
        objectives: The sweep's, the metric first.
        num_trials: Most to return.
    """
    if not front:
        return ()
    picked = [Pick(rule=rule).of(front, objectives) for rule in RECOMMENDED]
    best = sorted(front, key=lambda record: objectives[0].loss_of(record.last) if record.last else math.inf)
    by_number = {record.number: record for record in (*picked, *best)}
    return tuple(by_number.values())[:num_trials]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A rule that chooses one trial of a front."""

    rule: str
    """As written: `knee`, `most-accurate`, `trial:7`, `cheapest-within:0.01` or `cheapest-within:1se`.

    `1se` is one standard error of the best trial's score. Source: the one-standard-error rule of Breiman, Friedman, Olshen,
    Stone, Classification and Regression Trees (1984), section 3.4.3.
    """

    def of(self, front: Sequence[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord:
        """Choose.

        Args:
            front: The front, cheapest first.
            objectives: The sweep's.

        Raises:
            PickError: The rule is none of these, or names a trial that is not on the front, or the front is empty.
        """
        if not front:
            msg = "no trial has finished, so there is nothing to pick from"
            raise PickError(msg)
        name, _, argument = self.rule.partition(":")

        def loss(record: TrialRecord) -> float:
            return objectives[0].loss_of(record.last) if record.last else math.inf

        match name:
            case "knee" if not argument:
                return front[knee_index(_losses(front, objectives))]
            case "most-accurate" if not argument:
                return min(front, key=loss)
            case "trial" if argument.isdecimal():
                return self._numbered(front, int(argument))
            case "cheapest-within" if (margin := _margin(argument, min(front, key=loss))) is not None:
                best = min(map(loss, front))
                return next(record for record in front if loss(record) <= best + margin + ROUNDING)
        words = "knee, most-accurate, trial:N or cheapest-within:MARGIN (0 or more, or 1se)"
        msg = f"pick must be {words}, got {self.rule!r}"
        raise PickError(msg)

    def _numbered(self, front: Sequence[TrialRecord], number: int) -> TrialRecord:
        for record in front:
            if record.number == number:
                return record
        kept = ", ".join(str(record.number) for record in front)
        msg = f"trial {number} is not on the front, and only the front's adapters are kept: {kept}"
        raise PickError(msg)


def _margin(text: str, best: TrialRecord) -> float | None:
    """How far from the best; `2se` is two of its standard errors."""
    if text.endswith("se") and best.last is not None:
        num = _margin(text.removesuffix("se"), best)
        return None if num is None else num * best.last.standard_error
    try:
        margin = float(text)
    except ValueError:
        return None
    return margin if 0 <= margin < math.inf else None


def _cost_order(record: TrialRecord, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Sort key: the costs that the sweep weighs, then those that it does not, then accuracy, then number."""
    if record.last is None:
        return (record.number,)
    weighed = (goal.of(record.last) for goal in objectives if goal.metric is None)
    costs = (*weighed, record.last.trainable_params, record.last.peak_memory_bytes)
    return (*costs, objectives[0].loss_of(record.last), record.number)


def _losses(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> FloatArray:
    rows = [[goal.loss_of(record.last) for goal in objectives] for record in records if record.last]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))
