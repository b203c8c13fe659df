"""ReportData -> the page's tables, cell by cell. Pure; runs on the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner import metric_text
from tuner.report import words
from tuner.report.data import ReportData
from tuner.report.findings.intervals import held_out_estimate
from tuner.report.rows import Row
from tuner.space import searched_params
from tuner.trial import Metric, ParamValue, param_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell."""

    text: str
    """What it shows; empty where unknown."""
    key: float | str | None
    """What it is sorted by; None goes last."""
    title: str = ""
    """What more there is to say, under the pointer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table whose every row is a trial, a baseline or an audit; its mark and its state come before the cells."""

    head: tuple[tuple[str, str], ...]
    """(heading, alignment) of each column, mark and state included."""
    rows: tuple[tuple[Row, tuple[Cell, ...]], ...]
    """(trial, cells)."""


MOST_TIES = 5
"""Trials that a cell lists."""
EMPTY = Cell(text="", key=None)


def front_table(data: ReportData) -> Table:
    """The front, cheapest first, with the scores on the test data, ties, what was measured and what was sampled."""
    names = searched_params(data.config.search.space)
    numbers = [(name, "number") for name in _test_names(data)], [(name, "number") for name in _measured_names(data)]
    head = (("Trial", "number"), ("State", ""), *numbers[0], ("Not told apart from", ""), *numbers[1])
    rows = ((row, _front_cells(data, row, data.ties[row.number], names)) for row in data.front)
    return Table(head=(*head, *((name, "") for name in names)), rows=tuple(rows))


def trials_table(data: ReportData) -> Table:
    """Every trial, then baselines and audits, with what was measured, what was sampled, and why one ended early if any did."""
    names = searched_params(data.config.search.space)
    numbers = ((name, "number") for name in _measured_names(data))
    has_reasons = any(row.reason or row.stop for row in data.rows)
    last = (("Ended early", ""),) if has_reasons else ()
    head = (("Trial", "number"), ("State", ""), *numbers, *((name, "") for name in names), *last)
    rows = (
        (row, (*_measured_cells(data, row), *_param_cells(row, names), *((_why_cell(row),) if has_reasons else ())))
        for row in data.rows
    )
    return Table(head=head, rows=tuple(rows))


def baselines_table(data: ReportData) -> Table:
    """The baselines: kind, what was measured, learning rate."""
    numbers = ((name, "number") for name in (*_test_names(data), *_measured_names(data), "Learning rate"))
    head = (("Baseline", "number"), ("State", ""), ("Kind", ""), *numbers)
    rows = (
        (row, (_kind_cell(row), *_test_cells(data, row), *_measured_cells(data, row), _rate_cell(row)))
        for row in data.baselines
    )
    return Table(head=head, rows=tuple(rows))


def _test_names(data: ReportData) -> tuple[str, ...]:
    return (f"Test {metric_text.column(data.metric).lower()}",) if data.tests else ()


def _test_cells(data: ReportData, row: Row) -> tuple[Cell, ...]:
    if not data.tests:
        return ()
    if (found := data.tests.get(row.number)) is None:
        return (EMPTY,)
    low_high = held_out_estimate(data.metric, found)
    span = metric_text.span(data.metric, low_high.low, low_high.high)
    return (Cell(text=f"{metric_text.number(data.metric, found.accuracy)} ({span})", key=found.accuracy),)


def _front_cells(data: ReportData, row: Row, ties: Sequence[int], names: Sequence[str]) -> tuple[Cell, ...]:
    return (*_test_cells(data, row), _ties_cell(ties), *_measured_cells(data, row), *_param_cells(row, names))


def _ties_cell(numbers: Sequence[int]) -> Cell:
    shown = ", ".join(map(str, numbers[:MOST_TIES])) + (" ..." if len(numbers) > MOST_TIES else "")
    return Cell(text=shown or "none: clearly apart", key=len(numbers), title=", ".join(map(str, numbers)))


def _measured_names(data: ReportData) -> tuple[str, ...]:
    return (
        "Steps",
        metric_text.column(data.metric),
        *(metric_text.column(metric) for metric in data.others),
        "Loss (nats)",
        "Parameters",
        f"Memory ({words.memory_unit(data).name})",
        "Time (s)",
    )


def _measured_cells(data: ReportData, row: Row) -> tuple[Cell, ...]:
    last = row.last
    if last is None:
        return (EMPTY,) * len(_measured_names(data))
    others = dict(last.others)
    peak = words.memory_unit(data).of(last)
    result = metric_text.number_with_error(data.metric, last.accuracy, last.standard_error)
    return (
        Cell(text=f"{last.steps:,}", key=last.steps),
        Cell(text=result, key=last.accuracy),
        *(_other_cell(metric, others.get(metric)) for metric in data.others),
        Cell(text=f"{last.loss:.3f}", key=last.loss),
        Cell(text=f"{last.trainable_params:,}", key=last.trainable_params),
        Cell(text=f"{peak:,.2f}", key=peak),
        Cell(text=f"{last.train_s:,.1f}", key=last.train_s),
    )


def _other_cell(metric: Metric, value: float | None) -> Cell:
    return EMPTY if value is None else Cell(text=metric_text.number(metric, value), key=value)


def _param_cells(row: Row, names: Sequence[str]) -> tuple[Cell, ...]:
    params = row.params
    return tuple(_param_cell(params[name]) if name in params else EMPTY for name in names)


def _param_cell(value: ParamValue) -> Cell:
    return Cell(text=param_text(value), key=value if isinstance(value, (int, float)) else str(value))


def _why_cell(row: Row) -> Cell:
    """A failure's text is too long to hover over the page; it is told in full further down."""
    if row.reason:
        return Cell(text=row.reason, key=row.reason)
    return Cell(text=row.stop.value, key=row.stop.value, title=row.detail) if row.stop else EMPTY


def _kind_cell(row: Row) -> Cell:
    return Cell(text=str(row.baseline), key=str(row.baseline))


def _rate_cell(row: Row) -> Cell:
    rate = row.learning_rate
    return EMPTY if rate is None else Cell(text=param_text(rate), key=rate)
