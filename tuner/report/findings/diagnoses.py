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
from tuner.front import RECOMMENDED, Pick, is_candidate, objectives_of
from tuner.report.findings.intervals import Gap, gap_of, num_to_tell_apart, validation_estimate
from tuner.space import dimensions
from tuner.trial import param_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tuner.config import SweepConfig
    from tuner.report.findings.held_out import Confirmation, Flattery
    from tuner.space import Searched
    from tuner.trial import HeldOut, Inspection, Metric, Metrics, TrialRecord

EDGE_SHARE = 0.1
"""Outer share of a range, on its scale, that counts as its edge."""
NUM_BEST = 3
"""Best trials that must all lie at an edge where the gap alone is not clear."""
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

    def gap(self, one: TrialRecord, other: TrialRecord) -> Gap:
        """By how much one is better."""
        tests = self.tests.get(one.number), self.tests.get(other.number)
        return gap_of(self.metric, last_of(one), last_of(other), tests)


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
    """Trials that are recommended for different reasons can't be told apart."""
    objectives = objectives_of(seen.config)
    if not seen.front:
        return
    picked = {record.number: record for record in (Pick(rule=rule).of(seen.front, objectives) for rule in RECOMMENDED)}
    for one, other in itertools.combinations(picked.values(), 2):
        num = num_to_tell_apart(seen.metric, last_of(one), last_of(other))
        gap = seen.gap(one, other)
        if gap.is_clear or num is None:
            continue
        have = last_of(one).num_validation
        apart = metric_text.gap(seen.metric, abs(last_of(one).accuracy - last_of(other).accuracy))
        if num > MOST_EXAMPLES:
            continue
        yield Diagnosis(
            kind=Kind.TOO_FEW_EXAMPLES,
            evidence=(
                f"Trials {one.number} and {other.number} are {apart} apart on {have:,} validation examples, "
                "which is within the noise."
            ),
            advice=f"About {_rounded(num):,} validation examples would tell them apart, if the gap stays as it is.",
        )
        return


def nothing_learned(seen: Seen) -> Iterator[Diagnosis]:
    """The best trial is no better than answering without having learned."""
    if not seen.finished or not seen.metric.is_hit_rate:
        return
    best = validation_estimate(seen.metric, last_of(seen.finished[0]))
    floor = seen.inspection.majority_share
    if best.low <= floor:
        yield Diagnosis(
            kind=Kind.NOTHING_LEARNED,
            evidence=(
                f"The best trial has {metric_text.text(seen.metric, best.value)}, and the commonest answer alone "
                f"{metric_text.text(seen.metric, floor)}: within the noise of each other."
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
    """Another seed changes more than the choice between the recommended trials."""
    spreads = {
        one.number: one.validation.deviation for one in seen.confirmations if one.validation.deviation is not None
    }
    if len(spreads) < 2:  # noqa: PLR2004 -- trials to choose between
        return
    means = [one.validation.mean for one in seen.confirmations]
    between, within = max(means) - min(means), max(spreads.values())
    if within > between:
        yield Diagnosis(
            kind=Kind.SEEDS,
            evidence=(
                f"Over other seeds a trial's score has a standard deviation of up to {metric_text.gap(seen.metric, within)}; "
                f"the means of the trials that were trained anew lie {metric_text.gap(seen.metric, between)} apart."
            ),
            advice="Choose by cost, not by these scores; or raise confirm.seeds.",
        )


def _rounded(num: int) -> int:
    """To two digits: nobody knows the gap better than that."""
    return int(float(f"{num:.1e}"))


def _edge_of(seen: Seen, name: str, dimension: Searched, kind: Kind) -> Iterator[Diagnosis]:
    known = [record for record in seen.finished if name in dict(record.spec.params)]
    if not known:
        return
    values = {record.number: float(dict(record.spec.params)[name]) for record in known}
    side = _side(values[known[0].number], dimension)
    if not side:
        return
    inner = next((record for record in known if _side(values[record.number], dimension) != side), None)
    gap = seen.gap(known[0], inner) if inner else None
    are_all_there = len(known) >= NUM_BEST and all(
        _side(values[one.number], dimension) == side for one in known[:NUM_BEST]
    )
    if not (are_all_there or (gap is not None and gap.low > 0)):
        return
    end = "upper" if side > 0 else "lower"
    yield Diagnosis(
        kind=kind, evidence=_edge_words(seen, name, known[0], end, inner, gap), advice=_edge_advice(name, end)
    )


def _edge_words(seen: Seen, name: str, best: TrialRecord, end: str, inner: TrialRecord | None, gap: Gap | None) -> str:
    value = param_text(dict(best.spec.params)[name])
    first = f"The best finished trial ({best.number}) has {name} {value}, at the {end} end of what was searched."
    if inner is None or gap is None:
        return f"{first} No trial away from that end has finished."
    apart = metric_text.gap(seen.metric, abs(gap.value))
    if gap.low > 0:
        return f"{first} The best away from that end (trial {inner.number}) is {apart} worse, beyond the noise."
    return f"{first} So have the {NUM_BEST} best; trial {inner.number}, away from it, is within the noise of them."


def _edge_advice(name: str, end: str) -> str:
    if name == "learning_rate":
        return f"Widen search.space.learning_rate at its {end} end."
    key = f"search.space.{name}"
    return f"Let {key} go {'higher' if end == 'upper' else 'lower'}."


def _side(value: float, dimension: Searched) -> int:
    """-1 at the lower edge, 1 at the upper, 0 between. A dimension of one or two choices is all edge, and has none."""
    match dimension:
        case Range(low=low, high=high, log=log):
            place = (
                math.log(value / low) / math.log(high / low)
                if log and high > low
                else (value - low) / ((high - low) or 1)
            )
            return -1 if place <= EDGE_SHARE else 1 if place >= 1 - EDGE_SHARE else 0
        case Choices(choices=choices) if len(choices) > 2:  # noqa: PLR2004 -- something must lie between
            low, high = min(map(float, choices)), max(map(float, choices))
            return -1 if value == low else 1 if value == high else 0
        case _:
            return 0
