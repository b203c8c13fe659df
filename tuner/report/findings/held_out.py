"""What the test data and other seeds say of the trials that were chosen on validation data. Pure; runs on the driver."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.report.findings.intervals import Gap, flattery
from tuner.trial import HeldOut, TrialState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuner.trial import Metric, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Scores of the same spec from several seeds."""

    scores: tuple[float, ...]
    """In the metric's unit, by seed."""
    mean: float
    """Of them."""
    deviation: float | None
    """Sample standard deviation; None for a single seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """A trial of the front trained anew from other seeds. The trial itself is not among them: it was chosen for its score."""

    number: int
    """The trial."""
    seeds: tuple[int, ...]
    """The other seeds that finished."""
    num_failed: int
    """Other seeds that failed."""
    validation: Spread
    """Of the other seeds."""
    test: Spread | None
    """The same; None where nothing was put aside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flattery:
    """How much better chosen trials look on validation data than on test data, in the metric's unit."""

    best: Gap
    """Of the one with the best validation score."""
    best_number: int
    """Which one that is."""
    mean: Gap
    """Mean over the front. Its trials share the examples, so the interval is that of one trial: on the safe side."""
    num_trials: int
    """Trials of the front that were scored on the test data."""


def held_out_of(records: Sequence[TrialRecord]) -> dict[int, HeldOut]:
    """Trial or baseline number -> its scores on the test data."""
    found = {}
    for record in records:
        if (
            record.state is TrialState.COMPLETE
            and record.last
            and record.last.held_out
            and record.spec.confirms is None
        ):
            number = record.number if record.spec.scores is None else record.spec.scores
            found[number] = record.last.held_out
    return found


def confirmations_of(records: Sequence[TrialRecord]) -> tuple[Confirmation, ...]:
    """One per trial that was trained anew, in the order in which that began; those of which no seed has finished are left out."""
    numbers = dict.fromkeys(
        record.spec.confirms for record in records if record.spec.confirms is not None and not record.state.is_open
    )
    found = (_confirmation(number, records) for number in numbers)
    return tuple(one for one in found if one is not None)


def flattery_of(metric: Metric, front: Sequence[TrialRecord], tests: Mapping[int, HeldOut]) -> Flattery | None:
    """How much selection flattered; None where nothing of the front was scored on test data."""
    scored = [(record, record.last, tests[record.number]) for record in front if record.last and record.number in tests]
    if not scored:
        return None
    gaps = {record.number: flattery(metric, last, held_out) for record, last, held_out in scored}
    best = min((record for record, _, _ in scored), key=lambda record: _loss(metric, record))
    mean = statistics.fmean(gap.value for gap in gaps.values())
    half = statistics.fmean((gap.high - gap.low) / 2 for gap in gaps.values())
    return Flattery(
        best=gaps[best.number],
        best_number=best.number,
        mean=Gap(value=mean, low=mean - half, high=mean + half, is_paired=False),
        num_trials=len(scored),
    )


def seed_deviation_of(confirmations: Sequence[Confirmation]) -> float | None:
    """By how much another seed moves a score: the standard deviations over seeds, pooled; None where there are none."""
    spreads = [(one.test or one.validation).scores for one in confirmations]
    known = [scores for scores in spreads if len(scores) > 1]
    if not known:
        return None
    degrees = sum(len(scores) - 1 for scores in known)
    return math.sqrt(sum((len(scores) - 1) * statistics.variance(scores) for scores in known) / degrees)


def _confirmation(number: int, records: Sequence[TrialRecord]) -> Confirmation | None:
    ended = [record for record in records if record.spec.confirms == number and not record.state.is_open]
    finished = [(record, record.last) for record in ended if record.state is TrialState.COMPLETE and record.last]
    if not finished:
        return None
    tests = [last.held_out.accuracy for _, last in finished if last.held_out]
    return Confirmation(
        number=number,
        seeds=tuple(record.spec.seed for record, _ in finished),
        num_failed=len(ended) - len(finished),
        validation=_spread([last.accuracy for _, last in finished]),
        test=_spread(tests) if len(tests) == len(finished) else None,
    )


def _spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(scores=tuple(values), mean=statistics.fmean(values), deviation=deviation)


def _loss(metric: Metric, record: TrialRecord) -> float:
    assert record.last is not None  # noqa: S101 -- trials on the front have reported
    return metric.loss(record.last.accuracy)
