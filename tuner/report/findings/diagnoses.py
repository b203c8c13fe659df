"""What may be wrong with a sweep, in words, each with its evidence and what to do. Pure; runs on the driver.

A diagnosis is made by a test or by a number with its noise, never by the order of two results that can't be told apart.
"""

from __future__ import annotations

import enum
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.dimensions import Choices, Range
from tuner.front import is_candidate, objectives_of
from tuner.picking import RECOMMENDED, Pick
from tuner.report.findings.held_out import seed_deviation_of
from tuner.report.findings.intervals import Gap, num_to_tell_apart, validation_estimate, validation_gap
from tuner.space import dimensions
from tuner.trial import Metric, param_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tuner.config import SweepConfig
    from tuner.report.findings.held_out import Confirmation, Flattery
    from tuner.space import Searched
    from tuner.trial import HeldOut, Inspection, Metrics, TrialRecord

EDGE_SHARE = 0.1
"""Outer share of a range, on its scale, that counts as its edge."""
MIN_TESTED = 3
"""Trials that a test needs on either side; with fewer the best of each side are compared."""
LEVEL = 0.05
"""Of tests."""
MOST_FAULTS = 5
"""That are told one by one."""
MOST_EXAMPLES = 200_000
"""Trials that more examples than this would be needed for are as good as equal."""


class Kind(enum.StrEnum):
    """What is wrong; the value is its heading."""

    RANK_AT_EDGE = "Rank at the edge of the space"
    LEARNING_RATE_AT_EDGE = "Learning rate at the edge of the space"
    UNSTABLE = "Loss spikes"
    UNDER_TRAINED = "Under-trained"
    OVERFITTING = "Overfitting"
    TOO_FEW_EXAMPLES = "Evaluation set too small"
    NOTHING_LEARNED = "Nothing learned"
    FLATTERED = "Validation score flattered"
    SEEDS = "Seeds move more than choices"
    FAULTS = "Faults on the way"


_LEAST = {Kind.RANK_AT_EDGE: 1}
"""Below which nothing can be searched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """One thing that may be wrong."""

    kind: Kind
    """Its heading."""
    evidence: str
    """What was seen, with numbers."""
    advice: str
    """What to try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """All that a diagnosis is made from."""

    config: SweepConfig
    """The sweep."""
    inspection: Inspection
    """What a worker found in the data."""
    trials: tuple[TrialRecord, ...]
    """Trials of the search."""
    front: tuple[TrialRecord, ...]
    """Those on the front, cheapest first."""
    tests: Mapping[int, HeldOut]
    """Trial number -> scores on the test data."""
    confirmations: tuple[Confirmation, ...]
    """Trials trained anew from other seeds."""
    flattery: Flattery | None
    """How much selection flattered."""

    @property
    def metric(self) -> Metric:
        """The sweep's."""
        return self.config.metric

    @property
    def finished(self) -> list[TrialRecord]:
        """Finished trials, the best first."""
        known = [record for record in self.trials if is_candidate(record) and math.isfinite(last_of(record).accuracy)]
        return sorted(known, key=lambda record: (self.metric.loss(last_of(record).accuracy), record.number))

    def validation_gap(self, one: TrialRecord, other: TrialRecord) -> Gap:
        """By how much one is better on the data on which both were chosen."""
        return validation_gap(self.metric, last_of(one), last_of(other))


def last_of(record: TrialRecord) -> Metrics:
    """The newest report of a trial that has one."""
    assert record.last is not None  # noqa: S101 -- asked of finished trials only
    return record.last


def at_edge(seen: Seen) -> Iterator[Diagnosis]:
    """The best results lie where the space ends."""
    for name, dimension in dimensions(seen.config.search.space).items():
        if name == "r" or name.startswith("rank_pattern."):
            yield from _edge_of(seen, name, dimension, Kind.RANK_AT_EDGE)
        elif name == "learning_rate":
            yield from _edge_of(seen, name, dimension, Kind.LEARNING_RATE_AT_EDGE)


def too_few_examples(seen: Seen) -> Iterator[Diagnosis]:
    """Trials that are recommended for different reasons can't be told apart on the data on which they were chosen."""
    objectives = objectives_of(seen.config)
    if not seen.front:
        return
    picks = (Pick(rule=rule).of(seen.front, objectives) for rule in RECOMMENDED)
    for one, other in itertools.combinations({record.number: record for record in picks}.values(), 2):
        num, have = num_to_tell_apart(seen.metric, last_of(one), last_of(other)), last_of(one).num_validation
        if num is None or not have < num <= MOST_EXAMPLES or seen.validation_gap(one, other).is_clear:
            continue
        apart = metric_text.gap(seen.metric, abs(last_of(one).accuracy - last_of(other).accuracy))
        yield Diagnosis(
            kind=Kind.TOO_FEW_EXAMPLES,
            evidence=(
                f"Trials {one.number} and {other.number} are {apart} apart on {have:,} validation examples, "
                "which is within the noise."
            ),
            advice=f"About {_rounded(num):,} would show a difference of that size four times in five.",
        )
        return


def nothing_learned(seen: Seen) -> Iterator[Diagnosis]:
    """The best trial is no better than the commonest answer."""
    if not seen.finished or seen.metric not in {Metric.ACCURACY, Metric.EXACT_MATCH}:
        return
    best = validation_estimate(seen.metric, last_of(seen.finished[0]))
    floor = seen.inspection.majority_share
    if best.low <= floor:
        yield Diagnosis(
            kind=Kind.NOTHING_LEARNED,
            evidence=(
                f"The highest score is {metric_text.text(seen.metric, best.value)}: no better, beyond the noise, than the "
                f"commonest answer alone ({metric_text.text(seen.metric, floor)})."
            ),
            advice="Look at the data and the prompts first; then at more steps and higher learning rates.",
        )


def flattered(seen: Seen) -> Iterator[Diagnosis]:
    """The best trial looks better than it is."""
    if seen.flattery is not None and seen.flattery.best.low > 0:
        found = seen.flattery
        yield Diagnosis(
            kind=Kind.FLATTERED,
            evidence=(
                f"Trial {found.best_number} scores {metric_text.gap(seen.metric, found.best.value)} worse on the test data "
                "than on the validation data on which it was chosen, beyond the noise."
            ),
            advice="Trust the test score. More validation examples, or fewer trials, flatter less.",
        )


def moved_by_seeds(seen: Seen) -> Iterator[Diagnosis]:
    """Trials that were trained anew can't be told apart from what another seed does to each of them."""
    from scipy.stats import f_oneway  # noqa: PLC0415 -- takes a second to import

    groups = [one.validation.scores for one in seen.confirmations if len(one.validation.scores) > 1]
    deviation = seed_deviation_of(seen.confirmations)
    if len(groups) < 2 or not deviation:  # noqa: PLR2004 -- trials to choose between
        return
    p = float(f_oneway(*groups).pvalue)
    if p >= LEVEL:
        numbers = ", ".join(str(one.number) for one in seen.confirmations)
        yield Diagnosis(
            kind=Kind.SEEDS,
            evidence=(
                f"Another seed moves a score by {metric_text.gap(seen.metric, deviation)} (standard deviation); over their seeds "
                f"trials {numbers} can't be told apart (one-way ANOVA, p = {p:.2g})."
            ),
            advice="Weigh cost before these scores, or raise confirm.seeds.",
        )


def faults(seen: Seen) -> Iterator[Diagnosis]:
    """What befell trials and left their results as they are: damaged checkpoints, processes that hung."""
    told = [
        f"trial {record.number}, by step {metrics.steps}: {remark}"
        for record in seen.trials
        for metrics in record.curve
        for remark in metrics.remarks
    ]
    if told:
        more = f"; and {len(told) - MOST_FAULTS} more" if len(told) > MOST_FAULTS else ""
        yield Diagnosis(
            kind=Kind.FAULTS,
            evidence=f"{'; '.join(told[:MOST_FAULTS])}{more}.",
            advice="The results are those of a sweep without faults. Should it happen often, look at workers' logs and disks.",
        )


def _rounded(num: int) -> int:
    """To two digits: nobody knows the gap better than that."""
    return int(float(f"{num:.1e}"))


def _edge_of(seen: Seen, name: str, dimension: Searched, kind: Kind) -> Iterator[Diagnosis]:
    known = [record for record in seen.finished if name in dict(record.spec.params)]
    if not known:
        return
    sides = {record.number: _side(float(dict(record.spec.params)[name]), dimension) for record in known}
    value, side = dict(known[0].spec.params)[name], sides[known[0].number]
    if not side or (side < 0 and value == _LEAST.get(kind)):
        return
    there = [record for record in known if sides[record.number] == side]
    inside = [record for record in known if sides[record.number] != side]
    if not inside or (found := _edge_evidence(seen, there, inside)) is None:
        return
    end = "upper" if side > 0 else "lower"
    lies = f"has {name} {param_text(value)}, at the {end} end of what was searched"
    evidence = f"Trial {known[0].number}, which scores highest, {lies}. {found}"
    yield Diagnosis(kind=kind, evidence=evidence, advice=_edge_advice(name, end))


def _edge_evidence(seen: Seen, there: Sequence[TrialRecord], inside: Sequence[TrialRecord]) -> str | None:
    """That trials at an edge are better than the others: by a test of all where there are enough, else by the best of each."""
    if min(len(there), len(inside)) < MIN_TESTED:
        gap = seen.validation_gap(there[0], inside[0])
        apart = metric_text.gap(seen.metric, abs(gap.value))
        words = f"The best away from it, trial {inside[0].number}, is {apart} worse, beyond the noise."
        return words if gap.low > 0 else None
    p = _p_better(seen, there, inside)
    words = f"The {len(there)} finished trials there score higher than the {len(inside)} others"
    return f"{words} (Mann-Whitney U, p = {p:.2g})." if p < LEVEL else None


def _p_better(seen: Seen, there: Sequence[TrialRecord], inside: Sequence[TrialRecord]) -> float:
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 -- takes a second to import

    losses = [[seen.metric.loss(last_of(record).accuracy) for record in group] for group in (there, inside)]
    return float(mannwhitneyu(*losses, alternative="less").pvalue)


def _edge_advice(name: str, end: str) -> str:
    if name == "learning_rate":
        return f"Widen search.space.learning_rate at its {end} end."
    key = f"search.space.{name}"
    return f"Let {key} go {'higher' if end == 'upper' else 'lower'}."


def _side(value: float, dimension: Searched) -> int:
    """-1 at the lower edge, 1 at the upper, 0 between. A dimension of one or two choices is all edge, and has none."""
    match dimension:
        case Range(low=low, high=high, log=log):
            place = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
            return -1 if place <= EDGE_SHARE else 1 if place >= 1 - EDGE_SHARE else 0
        case Choices(choices=choices) if len(choices) > 2:  # noqa: PLR2004 -- something must lie between
            low, high = min(map(float, choices)), max(map(float, choices))
            return -1 if value == low else 1 if value == high else 0
        case _:
            return 0
