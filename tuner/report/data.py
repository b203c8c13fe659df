"""Trial records -> ReportData: everything that a report shows, as values. Pure; runs on the driver."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.front import Objective, Pick, front, has_begun, objectives_of
from tuner.report.audit import Audit, build_audit
from tuner.trial import (
    Baseline,
    Inspection,
    MemoryKind,
    Metric,
    Metrics,
    ParamValue,
    StopReason,
    TrialRecord,
    TrialState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.config import SweepConfig

NEAR_SHARE, NEAR_PERPLEXITY = 0.01, 0.1
"""How far from the best a cheaper trial may be, in the metric's unit."""


class Standing(enum.StrEnum):
    """What a trial is to the front; the value is the word for it."""

    FRONT = "on the front"
    FINISHED = "finished"
    STOPPED = "stopped early"
    FAILED = "failed"
    INFEASIBLE = "does not fit"
    RUNNING = "running"
    PAUSED = "paused"
    BASELINE = "baseline"
    AUDIT = "audit"


STANDINGS = {
    TrialState.COMPLETE: Standing.FINISHED,
    TrialState.PRUNED: Standing.STOPPED,
    TrialState.FAIL: Standing.FAILED,
    TrialState.INFEASIBLE: Standing.INFEASIBLE,
    TrialState.RUNNING: Standing.RUNNING,
    TrialState.PAUSED: Standing.PAUSED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial as a report shows it."""

    record: TrialRecord
    """All that the study knows of it."""
    standing: Standing
    """FRONT where it is on the front, BASELINE for every baseline and AUDIT for every audit, else after its state."""

    @property
    def number(self) -> int:
        """Optuna's trial number; below 0 for baselines and audits."""
        return self.record.number

    @property
    def baseline(self) -> Baseline | None:
        """What the baseline is; None for all that is none."""
        return self.record.spec.baseline

    @property
    def audits(self) -> int | None:
        """Number of the stopped trial that it finishes; None for all but audits."""
        return self.record.spec.audits

    @property
    def is_searched(self) -> bool:
        """Whether it is a trial of the search."""
        return self.record.spec.is_searched

    @property
    def mark(self) -> str:
        """The shortest name, for plots and tables: `7`, `B1` for a baseline, or `A7` for the audit of trial 7."""
        if self.audits is not None:
            return f"A{self.audits}"
        return f"B{-self.number}" if self.baseline else str(self.number)

    @property
    def label(self) -> str:
        """Its name at the start of a line: `Trial 7`, `Baseline 1 (full fine-tuning)` or `Audit of trial 7`."""
        words = self.record.spec.label
        return words[0].upper() + words[1:]

    @property
    def last(self) -> Metrics | None:
        """The newest report; None before the first rung."""
        return self.record.last

    @property
    def params(self) -> dict[str, ParamValue]:
        """Searched parameter -> value; without those that this trial did not sample."""
        return dict(self.record.spec.params)

    @property
    def learning_rate(self) -> float | None:
        """Its peak; None for the one that trains nothing."""
        return None if self.baseline is Baseline.ZERO_SHOT else self.record.spec.learning_rate

    @property
    def reason(self) -> str:
        """What went wrong, in a few words; empty if nothing did."""
        outcome = self.record.outcome
        return outcome.reason.value if outcome and outcome.reason else ""

    @property
    def stop(self) -> StopReason | None:
        """Why it was stopped or does not fit; None if neither, or if the journal is from before reasons were kept."""
        if self.record.state is TrialState.INFEASIBLE:
            return StopReason.MEMORY
        return self.record.outcome.stop if self.record.outcome else None

    @property
    def detail(self) -> str:
        """The failure's text and traceback, or the evidence for a stop; may be empty."""
        return self.record.outcome.detail if self.record.outcome else ""


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
    """Every trial by number, then the baselines, then the audits."""
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
    rows = tuple(_row(record, on_front) for record in sorted(records, key=lambda record: record.place))
    by_number = {row.number: row for row in rows}
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
        peak_memory_bytes=max((record.last.peak_memory_bytes for record in records if record.last), default=0),
        budget=_budget([record for record in records if record.spec.is_searched], config.training.max_steps),
        baseline_budget=_budget([record for record in records if record.spec.baseline], config.training.max_steps),
        audit=build_audit(records, objectives),
    )


def near(metric: Metric) -> float:
    """How far from the best a trial may be to count as close to it, in the metric's unit."""
    return NEAR_SHARE if metric.is_share else NEAR_PERPLEXITY


def pick_rules(metric: Metric) -> tuple[tuple[str, str], ...]:
    """(rule, words for it) of the trials that a report recommends: the knee, the best, the cheapest near the best."""
    best, margin = metric_text.best(metric), near(metric)
    return (
        ("knee", "Knee of the front"),
        ("most-accurate", best[0].upper() + best[1:]),
        (f"cheapest-within:{margin}", f"Cheapest within {metric_text.margin(metric, margin)} of the best"),
    )


def _row(record: TrialRecord, on_front: set[int]) -> Row:
    if not record.spec.is_searched:
        return Row(record=record, standing=Standing.BASELINE if record.spec.baseline else Standing.AUDIT)
    standing = Standing.FRONT if record.number in on_front else STANDINGS[record.state]
    return Row(record=record, standing=standing)


def _picks(
    metric: Metric, best: Sequence[TrialRecord], objectives: Sequence[Objective], by_number: dict[int, Row]
) -> tuple[PickedRow, ...]:
    if not best:
        return ()
    chosen = ((rule, words, Pick(rule=rule).of(best, objectives)) for rule, words in pick_rules(metric))
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
