"""Trial records -> ReportData: everything that a report shows, as values. Pure; runs on the driver."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.front import Objective, front, has_begun, objectives_of
from tuner.picking import RECOMMENDED, Pick
from tuner.report.findings.audit import Audit, build_audit
from tuner.report.findings.diagnoses import Diagnosis, Seen
from tuner.report.findings.doctor import diagnose
from tuner.report.findings.held_out import (
    Confirmation,
    Flattery,
    confirmations_of,
    flattery_of,
    held_out_of,
    seed_deviation_of,
)
from tuner.report.findings.importance import Importances, importances
from tuner.report.findings.intervals import ties_of
from tuner.report.findings.progress import Growth, Timeline, growth_of, timeline_of
from tuner.report.findings.ranks import RankEffect, mean_ranks, rank_effect
from tuner.report.rows import STANDINGS, Row, Standing
from tuner.trial import (
    HeldOut,
    Inspection,
    MemoryKind,
    Metric,
    TrialRecord,
    TrialState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuner.config import SweepConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PickedRow:
    """A trial that the report recommends."""

    rule: str
    """As `tuner export --pick` takes it."""
    words: str
    """The rule for people."""
    row: Row
    """The trial."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What some trials cost."""

    steps: int
    """Optimizer steps up to the last rung that each trial reported."""
    steps_without_pruning: int
    """The same, had no trial been stopped early."""
    train_s: float
    """Seconds of training and evaluation, summed over the trials."""

    @property
    def saved_share(self) -> float:
        """Share of the steps that stopping early saved, in [0, 1]."""
        return 1 - self.steps / self.steps_without_pruning if self.steps_without_pruning else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything that the page, the picture and the tables show."""

    config: SweepConfig
    """The sweep."""
    inspection: Inspection
    """What a worker found in the data."""
    folder: str
    """The sweep's folder, as a command names it."""
    version: str
    """tuner's."""
    rows: tuple[Row, ...]
    """Every trial by number, then what was trained beside the search: baselines, audits, other seeds."""
    front: tuple[Row, ...]
    """Those on the front, cheapest first."""
    picks: tuple[PickedRow, ...]
    """One per rule of `pick_rules`; empty without a front."""
    objectives: tuple[Objective, ...]
    """What the front weighs; the metric first."""
    others: tuple[Metric, ...]
    """The task's other metrics, as far as trials reported them."""
    memory_kind: MemoryKind | None
    """How the peaks were found; None before any trial reported."""
    peak_memory_bytes: int
    """The largest peak of all trials, baselines and audits; 0 before any reported."""
    budget: Budget
    """What the search cost."""
    baseline_budget: Budget
    """What the baselines cost beside it."""
    audit: Audit | None
    """What stopping early has lost; None where no audit has ended."""
    tests: Mapping[int, HeldOut]
    """Trial or baseline number -> its scores on the test data, of the front and the baselines."""
    confirmations: tuple[Confirmation, ...]
    """Trials of the front that were trained anew from other seeds."""
    flattery: Flattery | None
    """How much selection flattered; None where nothing was scored on test data."""
    importances: Importances | None
    """How much each choice mattered; None with too few trials."""
    mean_ranks: Mapping[int, float]
    """Trial number -> mean rank of the layers that it adapts."""
    rank_effect: RankEffect | None
    """Accuracy against rank; None with fewer than two ranks."""
    growth: Growth | None
    """How the front grew; None before any trial has finished."""
    timeline: Timeline | None
    """What the workers did; None where the journal holds no times."""
    diagnoses: tuple[Diagnosis, ...]
    """What may be wrong."""
    ties: Mapping[int, tuple[int, ...]]
    """Trial on the front -> the others on it that it can't be told apart from, on the test data where both were scored there."""
    failed_scores: tuple[TrialRecord, ...]
    """Scorings on the test data that failed."""

    @property
    def metric(self) -> Metric:
        """What `Metrics.accuracy` holds."""
        return self.config.metric

    @property
    def trials(self) -> tuple[Row, ...]:
        """The trials of the search, by number."""
        return tuple(row for row in self.rows if row.is_searched)

    @property
    def num_begun(self) -> int:
        """Trials of the search that were begun; the others were known not to fit."""
        return sum(has_begun(row.record) for row in self.trials)

    @property
    def baselines(self) -> tuple[Row, ...]:
        """The baselines, in the order in which they ran."""
        return tuple(row for row in self.rows if row.baseline)

    @property
    def audits(self) -> tuple[Row, ...]:
        """The audits, in the order in which they ran."""
        return tuple(row for row in self.rows if row.audits is not None)

    @property
    def confirmed(self) -> tuple[Row, ...]:
        """Trials trained again from other seeds, in the order in which they ran."""
        return self.rows_of(Standing.CONFIRMED)

    @property
    def stopped(self) -> tuple[Row, ...]:
        """The trials of the search that were stopped early."""
        return self.rows_of(Standing.STOPPED)

    @property
    def failed(self) -> tuple[Row, ...]:
        """All with which something went wrong, out of memory included."""
        return tuple(row for row in self.rows if row.reason)

    @property
    def num_by_state(self) -> dict[TrialState, int]:
        """How many trials of the search are in each state, zeros included."""
        counts = Counter(row.record.state for row in self.trials)
        return {state: counts[state] for state in TrialState}

    def rows_of(self, *standings: Standing) -> tuple[Row, ...]:
        """The trials of these standings, in the order of `rows`."""
        return tuple(row for row in self.rows if row.standing in standings)


def build_report_data(
    config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord], *, folder: str, version: str
) -> ReportData:
    """Gather what a report shows.

    Args:
        config: The sweep.
        inspection: What a worker found in the data.
        records: Every trial, baseline and audit of the study, in any order.
        folder: The sweep's folder, as a command would name it.
        version: tuner's.

    Raises:
        ValueError: Trials had their memory measured in different ways, so that they can't be compared.
    """
    objectives = objectives_of(config)
    best = front(records, objectives)
    on_front = {record.number for record in best}
    trained = [record for record in records if record.spec.scores is None]
    rows = tuple(_row(record, on_front) for record in sorted(trained, key=lambda record: record.place))
    by_number = {row.number: row for row in rows}
    found = _findings(config, inspection, records, best)
    return ReportData(
        config=config,
        inspection=inspection,
        folder=folder,
        version=version,
        rows=rows,
        front=tuple(by_number[record.number] for record in best),
        picks=_picks(config.metric, best, objectives, by_number),
        objectives=objectives,
        others=tuple(dict.fromkeys(Metric(name) for row in rows if row.last for name, _ in row.last.others)),
        memory_kind=_memory_kind(records),
        peak_memory_bytes=max((record.last.peak_memory_bytes for record in trained if record.last), default=0),
        budget=_budget([record for record in records if record.spec.is_searched], config.training.max_steps),
        baseline_budget=_budget([record for record in records if record.spec.baseline], config.training.max_steps),
        audit=build_audit(records, objectives),
        tests=found.tests,
        confirmations=found.confirmations,
        flattery=found.flattery,
        importances=importances(records, config),
        mean_ranks=mean_ranks((row.record for row in rows), inspection.model.layers),
        rank_effect=rank_effect(
            config.metric, found.finished, inspection.model.layers, found.tests, seed_deviation_of(found.confirmations)
        ),
        growth=growth_of(records, objectives),
        timeline=timeline_of(records),
        diagnoses=diagnose(found),
        ties=ties_of(config.metric, best, found.tests),
        failed_scores=_failed_scores(records, found.tests),
    )


def pick_words(metric: Metric) -> dict[str, str]:
    """Rule -> words for it, of the trials that a report recommends."""
    knee, accurate, near = RECOMMENDED
    return {
        knee: "Recommended: the knee of the front",
        accurate: f"{'Highest' if metric.is_maximized else 'Lowest'} validation {metric_text.name(metric)}",
        near: "Cheapest within one standard error of that",
    }


def _findings(
    config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord], best: Sequence[TrialRecord]
) -> Seen:
    tests = held_out_of(records)
    return Seen(
        config=config,
        inspection=inspection,
        trials=tuple(record for record in records if record.spec.is_searched),
        front=tuple(best),
        tests=tests,
        confirmations=confirmations_of(records),
        flattery=flattery_of(config.metric, best, tests),
    )


def _failed_scores(records: Sequence[TrialRecord], tests: Mapping[int, HeldOut]) -> tuple[TrialRecord, ...]:
    """Of each trial the last, if none has worked out."""
    failed = {record.spec.scores: record for record in records if record.state is TrialState.FAIL}
    return tuple(record for number, record in failed.items() if number is not None and number not in tests)


def _row(record: TrialRecord, on_front: set[int]) -> Row:
    if record.spec.baseline:
        return Row(record=record, standing=Standing.BASELINE)
    if not record.spec.is_searched:
        return Row(record=record, standing=Standing.CONFIRMED if record.spec.audits is None else Standing.AUDIT)
    standing = Standing.FRONT if record.number in on_front else STANDINGS[record.state]
    return Row(record=record, standing=standing)


def _picks(
    metric: Metric, best: Sequence[TrialRecord], objectives: Sequence[Objective], by_number: dict[int, Row]
) -> tuple[PickedRow, ...]:
    if not best:
        return ()
    chosen = ((rule, words, Pick(rule=rule).of(best, objectives)) for rule, words in pick_words(metric).items())
    return tuple(PickedRow(rule=rule, words=words, row=by_number[record.number]) for rule, words, record in chosen)


def _memory_kind(records: Sequence[TrialRecord]) -> MemoryKind | None:
    kinds = {record.last.memory_kind for record in records if record.last and record.state is not TrialState.FAIL}
    if len(kinds) > 1:
        msg = f"two kinds of memory can't share a report: {', '.join(sorted(kinds))}"
        raise ValueError(msg)
    return next(iter(kinds), None)


def _budget(records: Sequence[TrialRecord], max_steps: int) -> Budget:
    spent = sum(record.last.steps for record in records if record.last)
    saved = sum(
        max_steps - (record.last.steps if record.last else 0) for record in records if record.state is TrialState.PRUNED
    )
    train_s = sum(record.last.train_s for record in records if record.last)
    return Budget(steps=spent, steps_without_pruning=spent + saved, train_s=train_s)
