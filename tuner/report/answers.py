"""ReportData -> the answer: which adapter to ship, what it costs, and what can be told apart. Pure; runs on the driver."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.report import words
from tuner.report.findings.intervals import (
    Estimate,
    Gap,
    gap_of,
    held_out_estimate,
    validation_estimate,
    validation_gap,
)
from tuner.trial import MemoryKind
from tuner.workload import gpu_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.report.data import PickedRow, ReportData
    from tuner.report.findings.held_out import Confirmation, Spread
    from tuner.report.rows import Row

Pairs = tuple[tuple[str, str], ...]
"""(name, value)."""
BYTES_PER_PARAM = 4
"""Adapters are kept in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A recommended trial; one card where several rules choose the same."""

    rules: tuple[str, ...]
    """Words for the rules that chose it."""
    row: Row
    """The trial."""
    validation: Estimate
    """Its score on the data on which it was chosen."""
    test: Estimate | None
    """Its score on data that no decision has seen; None where there is none."""
    big: tuple[str, str]
    """The score that counts, and what it is: on the test data where there is any."""
    second: str
    """The validation score where another counts; else empty."""
    facts: Pairs
    """What it costs."""
    command: str
    """What exports it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two recommended trials, and whether they can be told apart."""

    one: Row
    other: Row
    gap: Gap
    """By how much the first is better."""


def build_cards(data: ReportData) -> tuple[Card, ...]:
    """The picks, each trial once."""
    rules: dict[int, list[PickedRow]] = {}
    for pick in data.picks:
        rules.setdefault(pick.row.number, []).append(pick)
    return tuple(_card(data, picks) for picks in rules.values())


def comparisons(data: ReportData) -> tuple[Comparison, ...]:
    """Every two of the recommended trials."""
    rows = {pick.row.number: pick.row for pick in data.picks}.values()
    return tuple(
        Comparison(one=one, other=other, gap=gap_between(data, one, other))
        for one, other in itertools.combinations(rows, 2)
    )


def gap_between(data: ReportData, one: Row, other: Row) -> Gap:
    """By how much one trial is better than another, both of which have reported."""
    assert one.last is not None  # noqa: S101 -- trials on the front have reported
    assert other.last is not None  # noqa: S101 -- as above
    return gap_of(data.metric, one.last, other.last, (data.tests.get(one.number), data.tests.get(other.number)))


def best_of(data: ReportData) -> Row | None:
    """The trial of the front with the best validation score; None without a front."""
    return next((pick.row for pick in data.picks if pick.rule == "most-accurate"), None)


def ringed(data: ReportData) -> tuple[int, ...]:
    """The best trial and those that it can't be told apart from, cheapest first; empty where it stands alone."""
    best = best_of(data)
    if best is None or not data.ties[best.number]:
        return ()
    return tuple(row.number for row in data.front if row.number in {best.number, *data.ties[best.number]})


def export_command(data: ReportData, number: int) -> str:
    """The command line that exports a trial, ready for a shell."""
    target = f"{data.config.name}-trial-{number}"
    return shlex.join(["tuner", "export", data.folder, "--to", target, "--pick", f"trial:{number}"])


def headline(data: ReportData) -> str:
    """The result in one to three sentences; no two trials are ranked that can't be told apart."""
    if not data.front:
        return _without_front(data)
    if len(data.front) == 1:
        return (
            f"Trial {data.front[0].number} is the whole front: no other finished trial is better in anything weighed."
        )
    return " ".join(_sentences(data))


def estimate_text(data: ReportData, estimate: Estimate) -> str:
    """`84.5% (80.7 to 87.7)`."""
    metric = data.metric
    span = metric_text.span(metric, estimate.low, estimate.high)
    return f"{metric_text.text(metric, estimate.value)} ({span})".replace(" ", metric_text.NO_BREAK_SPACE)


def gap_text(data: ReportData, gap: Gap) -> str:
    """`0.5 points (-2.1 to 3.0)`."""
    ends = " to ".join(_signed(data, end) for end in (gap.low, gap.high))
    return f"{_signed(data, gap.value)}{' points' if data.metric.is_share else ''} ({ends})"


def flattery_text(data: ReportData) -> str:
    """How much selection flattered, in one or two sentences; empty where nothing was put aside."""
    found = data.flattery
    if found is None:
        return ""
    of = f"the {found.num_trials} trials on the front" if found.num_trials > 1 else "the trial on the front"
    verdict = {
        True: "Selection flattered the validation scores beyond the noise.",
        False: "That selection flattered the scores is not shown; a difference of this size may be chance.",
    }
    mean = gap_text(data, found.mean)
    return (
        f"The validation score is better than the test score by {mean}, mean over {of}. {verdict[found.mean.low > 0]}"
    )


def confirmation_text(data: ReportData, found: Confirmation) -> str:
    """What other seeds gave, in one sentence."""
    seeds = ", ".join(map(str, found.seeds))
    test = f"; test {_spread_text(data, found.test)}" if found.test else ""
    failed = f" ({found.num_failed} more failed)" if found.num_failed else ""
    return f"seeds {seeds}{failed}: validation {_spread_text(data, found.validation)}{test}"


def rank_text(data: ReportData) -> str:
    """From which rank nothing more is gained, by the test; empty without two ranks to compare."""
    effect = data.rank_effect
    if effect is None:
        return ""
    mixed = "scales mixed, for no scale has enough ranks by itself"
    where = mixed if effect.tested.scale is None else f"at {words.scale_text(effect.tested.scale)}"
    found = effect.plateau
    if found is None:
        highest = effect.tested.best[-1].rank
        return f"Each rank below {highest:g}, the highest that finished ({where}), is worse than a higher one, beyond the noise."
    seeds = (
        "the spread over seeds allowed for" if effect.seed_deviation else "one seed each, whose luck is not allowed for"
    )
    paired = f", {found.num_paired} of them paired on the test data" if found.num_paired else ""
    return (
        f"From rank {found.rank:g} on no gain is shown ({where}; {words.counted(found.num_compared, 'higher rank')}{paired}; the "
        f"best trial of each, {seeds}; 95% for all comparisons together). A gain of up to "
        f"{metric_text.gap(data.metric, max(0.0, found.largest_gain.high))} is not excluded: rank {found.largest_rank:g} differs "
        f"by {gap_text(data, found.largest_gain)}."
    )


def growth_text(data: ReportData) -> str:
    """Whether more trials are likely to help; empty before any has finished."""
    growth = data.growth
    if growth is None:
        return ""
    if growth.expected_gain is None or growth.is_likely_to_help is None:
        return "Too few trials have finished to tell whether more would help."
    share = f"{100 * growth.expected_gain:.2g}% of the hypervolume"
    gain = f"One more finished trial like these adds {share} on average, noise taken off"
    finished = words.counted(growth.num_since, "trial")
    since = f"; {finished} {'has' if growth.num_since == 1 else 'have'} finished since the last that entered the front"
    verdict = (
        "More trials are likely to help." if growth.is_likely_to_help else "More trials are unlikely to help much."
    )
    return f"{gain}{since if growth.num_since else ''}. {verdict}"


def failed_scores_text(data: ReportData) -> tuple[str, ...]:
    """Trials of the front that could not be scored on the test data, and why."""
    return tuple(
        f"Trial {record.spec.scores} could not be scored on the test data: {words.last_line(record.outcome.detail)}"
        for record in data.failed_scores
        if record.outcome
    )


def _card(data: ReportData, picks: list[PickedRow]) -> Card:
    row = picks[0].row
    assert row.last is not None  # noqa: S101 -- trials on the front have reported
    held_out = data.tests.get(row.number)
    validation = validation_estimate(data.metric, row.last)
    test = held_out_estimate(data.metric, held_out) if held_out else None
    value, _, span = estimate_text(data, test or validation).partition(metric_text.NO_BREAK_SPACE)
    name = metric_text.name(data.metric)
    return Card(
        rules=tuple(pick.words for pick in picks),
        row=row,
        validation=validation,
        test=test,
        big=(value, f"{span} {'test' if test else 'validation'} {name}"),
        second=f"{estimate_text(data, validation)} validation {name}" if test else "",
        facts=tuple(_facts(data, row)),
        command=export_command(data, row.number),
    )


def _facts(data: ReportData, row: Row) -> Iterator[tuple[str, str]]:
    last, model = row.last, data.inspection.model
    assert last is not None  # noqa: S101 -- trials on the front have reported
    share = f" ({last.trainable_params / model.num_params:.2%} of the model)" if model.num_params else ""
    yield "Not told apart from", words.numbers_text(data.ties[row.number]) or "none: clearly apart from all"
    yield "Trainable parameters", f"{last.trainable_params:,}{share}"
    yield (
        "Peak memory",
        ", ".join(filter(None, (words.memory_unit(data).text(last), last.memory_kind.value, gpu_name(data)))),
    )
    yield "Adapter file", f"about {words.size_text(adapter_bytes(row, model.head_params))}"
    yield "Training and evaluation", words.duration(last.train_s)


def gpu_name(data: ReportData) -> str:
    """The card that the peaks are of: the one that was measured, or the one that they are predicted for; empty on a CPU."""
    cards = {MemoryKind.CUDA_ALLOCATED: data.inspection.gpu, MemoryKind.PREDICTED: gpu_of(data.config)}
    card = cards.get(data.memory_kind) if data.memory_kind else None
    return card.name if card else ""


def adapter_bytes(row: Row, head_params: int) -> int:
    """Size of a trial's adapter on disk, but for a few kilobytes of names.

    One that took something out of the base is kept at twice its rank.
    """
    last, lora = row.last, row.record.spec.lora
    assert last is not None  # noqa: S101 -- trials on the front have reported
    has_twice = lora is not None and lora.init_lora_weights.is_base_changed
    return BYTES_PER_PARAM * (last.trainable_params + (last.trainable_params - head_params if has_twice else 0))


def _without_front(data: ReportData) -> str:
    counts = data.num_by_state
    rest = ", ".join(f"{counts[state]} {text}" for state, text in words.STATES.items() if counts[state])
    return f"No trial has finished yet ({rest})." if rest else "No trial has finished yet."


def _sentences(data: ReportData) -> Iterator[str]:
    """What validation data says, on which trials were chosen; then what the test data adds."""
    best = best_of(data)
    assert best is not None  # noqa: S101 -- there is a front
    assert best.last is not None  # noqa: S101 -- trials on the front have reported
    last, others = best.last, [row for row in data.front if row.number != best.number]
    tied = [row for row in others if row.last and not validation_gap(data.metric, last, row.last).is_clear]
    score = f"{words.result(data, last)} on {last.num_validation:,} validation examples"
    if not tied:
        yield f"Trial {best.number} scores higher than all others on the front, beyond the noise: {score}."
    else:
        names = words.numbers_text([row.number for row in tied])
        yield f"Trial {best.number} ({score}) can't be told apart from {names} there."
        yield from _cheapest(data, best, tied)
    yield from _tested(data, best, others)


def _cheapest(data: ReportData, best: Row, tied: Sequence[Row]) -> Iterator[str]:
    cheapest = tied[0]
    if cheapest.last and best.last and data.front.index(cheapest) < data.front.index(best):
        savings = " and ".join(words.savings(best.last, cheapest.last, data.objectives))
        yield f"The cheapest of these, trial {cheapest.number}, has {savings or 'the same cost'}."


def _tested(data: ReportData, best: Row, others: Sequence[Row]) -> Iterator[str]:
    """Which of the others the test data sets apart from the best."""
    gaps = {row.number: gap_between(data, best, row) for row in others}
    paired = {number: gap for number, gap in gaps.items() if gap.is_paired}
    if not paired:
        return
    better = words.numbers_text([number for number, gap in paired.items() if gap.high < 0])
    worse = words.numbers_text([number for number, gap in paired.items() if gap.low > 0])
    if better:
        yield f"On test data that no decision has seen {better} scores higher, beyond the noise."
    if worse:
        yield f"On test data that no decision has seen {worse} scores lower, beyond the noise."
    if not better and not worse:
        yield "Test data that no decision has seen does not set them apart either."


def _spread_text(data: ReportData, spread: Spread) -> str:
    metric = data.metric
    mean = metric_text.text(metric, spread.mean)
    if spread.deviation is None:
        return mean
    return f"{mean} on average, standard deviation {metric_text.gap(metric, spread.deviation)}"


def _signed(data: ReportData, value: float) -> str:
    return f"{'+' if value >= 0 else '−'}{metric_text.number(data.metric, abs(value))}"  # noqa: RUF001 -- a minus sign
