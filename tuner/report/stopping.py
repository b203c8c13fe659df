"""ReportData -> what stopping early cost, in words and as a table. Pure; runs on the driver."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.report import words
from tuner.report.data import ReportData
from tuner.report.findings.intervals import CONFIDENCE
from tuner.report.listing import EMPTY, Cell, Table
from tuner.report.rows import Row, Standing
from tuner.trial import StopReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuner.report.findings.audit import Audit, Audited, Interval
    from tuner.trial import Metrics

STOPPED = {Standing.STOPPED, Standing.INFEASIBLE}
REASONS = {
    StopReason.DOMINATED: "dominated by another trial at the same rung",
    StopReason.BELOW_FLOOR: "no better than the floor after half of the steps",
    StopReason.OUTRANKED: "outranked at a rung by the metric alone",
    StopReason.BUDGET: "not worth the rest of the budget",
    StopReason.MEMORY: "too large for the memory, not counted above",
    None: "for a reason that this journal does not hold",
}
"""What a count of stopped trials is followed by; None stands for journals from before reasons were kept."""


def stop_counts(data: ReportData) -> tuple[tuple[int, str], ...]:
    """(how many trials, why they were stopped), of every reason that there is; those that do not fit included."""
    counts = Counter(row.stop for row in data.trials if row.standing in STOPPED)
    return tuple((counts[reason], text) for reason, text in REASONS.items() if counts[reason])


def evidence(data: ReportData) -> tuple[tuple[Row, str], ...]:
    """(trial, why it was stopped and by which evidence); what ran out of memory is told among the failures."""
    return tuple((row, _why(row)) for row in data.trials if row.stop and not row.reason)


def savings(data: ReportData) -> str:
    """How many trials were stopped, and what that saved."""
    budget, num = data.budget, len(data.stopped)
    were = "was" if num == 1 else "were"
    saved = f"{budget.steps_without_pruning - budget.steps:,} of {budget.steps_without_pruning:,} steps"
    return (
        f"{num} of {words.counted(data.num_begun, 'trial')} {were} stopped before the last rung. "
        f"That saved {saved} ({words.percent(budget.saved_share)})."
    )


def audit_text(data: ReportData) -> str:
    """What the audit found, or how to ask for one."""
    audit, asked = data.audit, data.config.pruning.audit
    if audit is None and asked:
        return f"No trial of the audit that was asked for (pruning.audit: {asked}) has ended yet."
    if audit is None:
        return (
            "Whether one of them would have reached the front is not known. To find out in the next sweep, set pruning.audit: "
            "so many stopped trials, drawn at random, are then finished after all."
        )
    return " ".join(_sentences(audit))


def audit_table(data: ReportData) -> Table | None:
    """The audited trials, before and after; None where none was finished."""
    if data.audit is None or not data.audit.trials:
        return None
    metric = metric_text.column(data.metric)
    head = (
        ("Audit", "number"),
        ("State", ""),
        ("Stopped at step", "number"),
        ("Why", ""),
        (f"{metric} then", "number"),
        (f"{metric} at the end", "number"),
        ("On the front?", ""),
        ("Hypervolume lost (%)", "number"),
    )
    rows = {row.audits: row for row in data.rows if row.audits is not None}
    return Table(head=head, rows=tuple((rows[it.stopped.number], _cells(data, it)) for it in data.audit.trials))


def _why(row: Row) -> str:
    return f"{row.stop}: {row.detail}" if row.detail else str(row.stop)


def _sentences(audit: Audit) -> Iterator[str]:
    if audit.share is None or audit.num_lost is None or audit.mean_loss is None:
        yield f"The audit finished none of the stopped trials: {audit.num_failed} failed."
        return
    failed = f" ({audit.num_failed} more failed)" if audit.num_failed else ""
    if audit.is_census:
        yield f"The audit finished every stopped trial after all ({audit.num_audited}), so that nothing here is an estimate."
    else:
        yield f"The audit finished {audit.num_audited} of {audit.num_stopped} stopped trials after all, drawn at random{failed}."
    yield f"Held against the finished trials, each on its own, {audit.num_on_front} would have stood on the front."
    if not audit.is_census:
        number = f"about {audit.num_lost:.1f}{_span(audit.num_lost_interval, '{:.1f}')} of all that were stopped"
        yield f"That is {words.percent(audit.share)}{_span(audit.share_interval, '{:.1%}')}, or {number}."
    yield (
        f"Without them the front's hypervolume is {words.percent(audit.hypervolume_loss)} smaller than with all of them, "
        f"and {words.percent(audit.mean_loss)} smaller on average than with one of them"
        f"{_span(audit.mean_loss_interval, '{:.1%}')}."
    )
    yield f"The audit took {words.counted(audit.num_steps, 'step')} of its own."


def _span(interval: Interval | None, form: str) -> str:
    """An interval in brackets; nothing where there is none."""
    if interval is None:
        return ""
    low, high = (form.format(end) for end in interval)
    return f" ({CONFIDENCE:.0%} interval {low} to {high})"


def _cells(data: ReportData, trial: Audited) -> tuple[Cell, ...]:
    before, after, outcome = trial.stopped.last, trial.finished.last, trial.stopped.outcome
    reason = outcome.stop if outcome else None
    return (
        Cell(text=f"{before.steps:,}", key=before.steps) if before else EMPTY,
        Cell(text=str(reason), key=str(reason), title=outcome.detail) if outcome and reason else EMPTY,
        _result_cell(data, before),
        _result_cell(data, after),
        Cell(text="yes" if trial.is_on_front else "no", key="yes" if trial.is_on_front else "no"),
        Cell(text=f"{100 * trial.hypervolume_loss:.1f}", key=trial.hypervolume_loss),
    )


def _result_cell(data: ReportData, metrics: Metrics | None) -> Cell:
    if metrics is None:
        return EMPTY
    text = metric_text.number_with_error(data.metric, metrics.accuracy, metrics.standard_error)
    return Cell(text=text, key=metrics.accuracy)
