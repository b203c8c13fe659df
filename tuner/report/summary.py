"""ReportData -> summary.json: every number that the page shows, for programs. Pure; runs on the driver.

`docs/summary.schema.json` is the schema of these classes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from tuner.front import GIB
from tuner.prediction import Phase, Verdict
from tuner.report import answers, foretold, reproduce
from tuner.report.data import Row, Standing
from tuner.report.findings.diagnoses import Diagnosis
from tuner.report.findings.held_out import Confirmation, Flattery
from tuner.report.findings.importance import Importances
from tuner.report.findings.intervals import Estimate, Gap, held_out_estimate
from tuner.report.findings.progress import Growth, Timeline
from tuner.report.settings import settings
from tuner.trial import Baseline, MemoryKind, Metric, ParamValue, StopReason, TrialState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuner.report.data import ReportData
    from tuner.report.findings.audit import Audit

VERSION = 2
"""Raised when a key changes its meaning or goes."""

Interval = tuple[float, float]
"""Low and high end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AtRung:
    """What a trial reported at a rung."""

    steps: int
    value: float | None
    """The sweep's metric; null where it is not finite."""
    standard_error: float | None
    loss: float | None
    """Validation cross entropy in nats."""
    train_loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A trial's memory as known before it began."""

    allocated_gib: float
    reserved_gib: float
    phase: Phase
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A trial, a baseline, an audit or a trial trained anew."""

    number: int
    """Below 0 beside the search."""
    state: TrialState
    standing: Standing
    seed: int
    learning_rate: float | None
    params: dict[str, ParamValue]
    """Searched parameter -> value."""
    baseline: Baseline | None
    audits: int | None
    """The stopped trial that it finishes."""
    confirms: int | None
    """The trial that it trains anew."""
    reason: str
    """What went wrong; may be empty."""
    stop: StopReason | None
    trainable_params: int | None
    peak_memory_gib: float | None
    train_s: float | None
    mean_rank: float | None
    """Over the layers that are adapted."""
    others: dict[str, float]
    """The task's other metrics at the last report."""
    curve: tuple[AtRung, ...]
    test: Estimate | None
    """Score on the test data, with its interval."""
    predicted: Predicted | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A recommended trial."""

    number: int
    rules: tuple[str, ...]
    """As `tuner export --pick` takes them."""
    validation: Estimate
    test: Estimate | None
    trainable_params: int
    share_of_model: float | None
    peak_memory_gib: float
    memory_kind: MemoryKind
    adapter_bytes: int
    train_s: float
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Two recommended trials."""

    one: int
    other: int
    gap: Gap
    """By how much the first is better."""
    is_clear: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """What stopping early has lost. An interval is null for a census."""

    num_stopped: int
    num_audited: int
    num_failed: int
    is_census: bool
    steps: int
    on_front: tuple[int, ...]
    share_on_front: float | None
    share_on_front_interval: Interval | None
    num_lost: float | None
    num_lost_interval: Interval | None
    hypervolume_loss: float
    mean_hypervolume_loss: float | None
    mean_hypervolume_loss_interval: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPoint:
    """The best finished trial of a rank and scale."""

    scale: float | None
    rank: float
    number: int
    num_trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Accuracy against rank."""

    points: tuple[RankPoint, ...]
    plateau_rank: float | None
    """From which nothing more is gained; null where the highest is better than all lower ones."""
    largest_gain: Gap | None
    """Of the best higher rank over the plateau's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Examples and their fingerprint."""

    num_train: int
    num_validation: int
    num_test: int
    majority_share: float
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Optimizer steps of the search."""

    spent: int
    without_pruning: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A sweep in numbers."""

    version: int
    name: str
    tuner_version: str
    metric: Metric
    objectives: tuple[str, ...]
    headline: str
    states: dict[TrialState, int]
    """Trials of the search."""
    steps: Steps
    train_s: float
    front: tuple[int, ...]
    """Cheapest first."""
    picks: dict[str, int]
    """Rule -> trial."""
    answers: tuple[Answer, ...]
    comparisons: tuple[Compared, ...]
    flattery: Flattery | None
    confirmations: tuple[Confirmation, ...]
    diagnoses: tuple[Diagnosis, ...]
    importances: Importances | None
    ranks: Ranks | None
    growth: Growth | None
    timeline: Timeline | None
    stops: dict[StopReason, int]
    audit: Audited | None
    memory_kind: MemoryKind | None
    prediction_errors: tuple[float, ...]
    """Measured over predicted peak, less 1."""
    data: Data
    settings: dict[str, str]
    reproduction: dict[str, str]
    trials: tuple[Trial, ...]


SUMMARY = TypeAdapter(Summary)


def summary_json(data: ReportData) -> str:
    """The sweep in numbers; the same bytes for the same data."""
    return SUMMARY.dump_json(build_summary(data), indent=1).decode() + "\n"


def schema() -> dict[str, Any]:
    """JSON schema of summary.json."""
    return SUMMARY.json_schema(mode="serialization")


def build_summary(data: ReportData) -> Summary:
    """Gather what the page shows."""
    counts = Counter(row.stop for row in data.trials)
    found = data.inspection
    return Summary(
        version=VERSION,
        name=data.config.name,
        tuner_version=data.version,
        metric=data.metric,
        objectives=tuple(objective.value for objective in data.objectives),
        headline=answers.headline(data),
        states=data.num_by_state,
        steps=Steps(spent=data.budget.steps, without_pruning=data.budget.steps_without_pruning),
        train_s=round(data.budget.train_s, 3),
        front=tuple(row.number for row in data.front),
        picks={pick.rule: pick.row.number for pick in data.picks},
        answers=tuple(_answers(data)),
        comparisons=tuple(
            Compared(one=pair.one.number, other=pair.other.number, gap=pair.gap, is_clear=pair.gap.is_clear)
            for pair in answers.comparisons(data)
        ),
        flattery=data.flattery,
        confirmations=data.confirmations,
        diagnoses=data.diagnoses,
        importances=data.importances,
        ranks=_ranks(data),
        growth=data.growth,
        timeline=data.timeline,
        stops={reason: counts[reason] for reason in StopReason},
        audit=_audit(data.audit) if data.audit else None,
        memory_kind=data.memory_kind,
        prediction_errors=tuple(foretold.measured_errors(data.trials)),
        data=Data(
            num_train=found.num_train,
            num_validation=found.num_validation,
            num_test=found.num_test,
            majority_share=found.majority_share,
            fingerprint=found.data_fingerprint,
        ),
        settings=dict(settings(data)),
        reproduction=dict(reproduce.facts(data)),
        trials=tuple(_trial(data, row) for row in data.rows),
    )


def _answers(data: ReportData) -> Iterator[Answer]:
    rules: dict[int, list[str]] = {}
    for pick in data.picks:
        rules.setdefault(pick.row.number, []).append(pick.rule)
    for card in answers.build_cards(data):
        last, num = card.row.last, data.inspection.model.num_params
        assert last is not None  # noqa: S101 -- trials on the front have reported
        yield Answer(
            number=card.row.number,
            rules=tuple(rules[card.row.number]),
            validation=card.validation,
            test=card.test,
            trainable_params=last.trainable_params,
            share_of_model=last.trainable_params / num if num else None,
            peak_memory_gib=round(last.peak_memory_bytes / GIB, 6),
            memory_kind=last.memory_kind,
            adapter_bytes=answers.adapter_bytes(card.row, data.inspection.model.head_params),
            train_s=round(last.train_s, 3),
            command=card.command,
        )


def _trial(data: ReportData, row: Row) -> Trial:
    last, spec, held_out = row.last, row.record.spec, _held_out(data, row)
    return Trial(
        number=row.number,
        state=row.record.state,
        standing=row.standing,
        seed=spec.seed,
        learning_rate=row.learning_rate,
        params=row.params,
        baseline=row.baseline,
        audits=row.audits,
        confirms=spec.confirms,
        reason=row.reason,
        stop=row.stop,
        trainable_params=last.trainable_params if last else None,
        peak_memory_gib=round(last.peak_memory_bytes / GIB, 6) if last else None,
        train_s=round(last.train_s, 3) if last else None,
        mean_rank=data.mean_ranks.get(row.number),
        others={name: value for name, value in last.others if math.isfinite(value)} if last else {},
        curve=tuple(
            AtRung(
                steps=at.steps,
                value=_finite(at.accuracy),
                standard_error=_finite(at.standard_error),
                loss=_finite(at.loss),
                train_loss=_finite(at.train_loss),
            )
            for at in row.record.curve
        ),
        test=held_out,
        predicted=_predicted(row),
    )


def _held_out(data: ReportData, row: Row) -> Estimate | None:
    found = data.tests.get(row.number) or (row.last.held_out if row.last else None)
    return held_out_estimate(data.metric, found) if found else None


def _predicted(row: Row) -> Predicted | None:
    found = row.record.prediction
    if found is None:
        return None
    allocated, reserved = round(found.allocated_bytes / GIB, 6), round(found.reserved_bytes / GIB, 6)
    return Predicted(allocated_gib=allocated, reserved_gib=reserved, phase=found.phase, verdict=found.verdict)


def _ranks(data: ReportData) -> Ranks | None:
    effect = data.rank_effect
    if effect is None:
        return None
    points = (
        RankPoint(scale=band.scale, rank=at.rank, number=at.record.number, num_trials=at.num_trials)
        for band in effect.bands
        for at in band.best
    )
    found = effect.plateau
    return Ranks(
        points=tuple(points),
        plateau_rank=found.rank if found else None,
        largest_gain=found.largest_gain if found else None,
    )


def _audit(audit: Audit) -> Audited:
    return Audited(
        num_stopped=audit.num_stopped,
        num_audited=audit.num_audited,
        num_failed=audit.num_failed,
        is_census=audit.is_census,
        steps=audit.num_steps,
        on_front=tuple(trial.stopped.number for trial in audit.trials if trial.is_on_front),
        share_on_front=audit.share,
        share_on_front_interval=audit.share_interval,
        num_lost=audit.num_lost,
        num_lost_interval=audit.num_lost_interval,
        hypervolume_loss=audit.hypervolume_loss,
        mean_hypervolume_loss=audit.mean_loss,
        mean_hypervolume_loss_interval=audit.mean_loss_interval,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
