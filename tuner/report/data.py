"""Trial records -> ReportData: everything that a report shows, as values. Pure; runs on the driver."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.front import Objective, Pick, front, objectives_of
from tuner.trial import Inspection, MemoryKind, Metrics, ParamValue, TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.config import SweepConfig

PICKS = (
    ("knee", "Knee of the front"),
    ("most-accurate", "Most accurate"),
    ("cheapest-within:0.01", "Cheapest within 1 point of the best"),
)
"""(rule, words for it) of the trials that a report recommends."""


class Standing(enum.StrEnum):
    """What a trial is to the front; the value is the word for it."""

    FRONT = "on the front"
    FINISHED = "finished"
    STOPPED = "stopped early"
    FAILED = "failed"
    RUNNING = "running"


STANDINGS = {
    TrialState.COMPLETE: Standing.FINISHED,
    TrialState.PRUNED: Standing.STOPPED,
    TrialState.FAIL: Standing.FAILED,
    TrialState.RUNNING: Standing.RUNNING,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial as a report shows it."""

    record: TrialRecord
    """All that the study knows of it."""
    standing: Standing
    """FRONT where it is on the front, else after its state."""

    @property
    def number(self) -> int:
        """Optuna's trial number."""
        return self.record.number

    @property
    def last(self) -> Metrics | None:
        """The newest report; None before the first rung."""
        return self.record.last

    @property
    def params(self) -> dict[str, ParamValue]:
        """Searched parameter -> value; without those that this trial did not sample."""
        return dict(self.record.spec.params)

    @property
    def reason(self) -> str:
        """Why it failed, in a few words; empty if it did not."""
        outcome = self.record.outcome
        return outcome.reason.value if outcome and outcome.reason else ""

    @property
    def detail(self) -> str:
        """The failure's text and traceback; may be empty."""
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
    """What the sweep cost."""

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
    """Every trial, by number."""
    front: tuple[Row, ...]
    """Those on the front, cheapest first."""
    picks: tuple[PickedRow, ...]
    """One per rule of `PICKS`; empty without a front."""
    objectives: tuple[Objective, ...]
    """What the front weighs; accuracy first."""
    memory_kind: MemoryKind | None
    """How the peaks were found; None before any trial reported."""
    budget: Budget
    """What the sweep cost."""

    @property
    def num_by_state(self) -> dict[TrialState, int]:
        """How many trials are in each state, zeros included."""
        counts = Counter(row.record.state for row in self.rows)
        return {state: counts[state] for state in TrialState}

    def rows_of(self, *standings: Standing) -> tuple[Row, ...]:
        """The trials of these standings, by number."""
        return tuple(row for row in self.rows if row.standing in standings)


def build_report_data(
    config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord], *, folder: str, version: str
) -> ReportData:
    """Gather what a report shows.

    Args:
        config: The sweep.
        inspection: What a worker found in the data.
        records: Every trial of the study, in any order.
        folder: The sweep's folder, as a command would name it.
        version: tuner's.

    Raises:
        ValueError: Trials had their memory measured in different ways, so that they can't be compared.
    """
    objectives = objectives_of(config)
    best = front(records, objectives)
    on_front = {record.number for record in best}
    rows = tuple(_row(record, on_front) for record in sorted(records, key=lambda record: record.number))
    by_number = {row.number: row for row in rows}
    return ReportData(
        config=config,
        inspection=inspection,
        folder=folder,
        version=version,
        rows=rows,
        front=tuple(by_number[record.number] for record in best),
        picks=_picks(best, objectives, by_number),
        objectives=objectives,
        memory_kind=_memory_kind(records),
        budget=_budget(records, config.training.max_steps),
    )


def _row(record: TrialRecord, on_front: set[int]) -> Row:
    standing = Standing.FRONT if record.number in on_front else STANDINGS[record.state]
    return Row(record=record, standing=standing)


def _picks(
    best: Sequence[TrialRecord], objectives: Sequence[Objective], by_number: dict[int, Row]
) -> tuple[PickedRow, ...]:
    if not best:
        return ()
    chosen = ((rule, words, Pick(rule=rule).of(best, objectives)) for rule, words in PICKS)
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
