"""ReportData -> trials.csv and front.csv, as text. Pure; runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.report import foretold
from tuner.space import searched_params
from tuner.trial import ParamValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuner.report.data import ReportData
    from tuner.report.rows import Row

COSTS = ("trainable_params", "peak_memory_gib", "memory_kind", "train_s")

Cell = ParamValue | None
"""None is an empty cell: not known, or not sampled by this trial."""


def trials_csv(data: ReportData) -> str:
    """Every trial by number, then the baselines, then the audits.

    The last columns say why one failed, why one was stopped, and which stopped trial an audit has finished.
    """
    head = (*_columns(data), "reason", "stop", "audits")
    rows = ((*_cells(data, row), row.reason, row.stop, row.audits) for row in data.rows)
    if foretold.predictions_of(data):
        head = (*head, *foretold.COLUMNS)
        rows = ((*cells, *foretold.cells(row)) for cells, row in zip(rows, data.rows, strict=True))
    return _csv(head, rows)


def front_csv(data: ReportData) -> str:
    """The trials on the front, cheapest first."""
    return _csv(_columns(data), (_cells(data, row) for row in data.front))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    import pandas as pd

    # as objects, so that a whole number beside an empty cell stays one
    table, head = [[_harmless(cell) for cell in cells] for cells in rows], [_harmless(name) for name in header]
    return pd.DataFrame(table, columns=head, dtype=object).to_csv(index=False, lineterminator="\n")


def _harmless(cell: Cell) -> Cell:
    """A cell that no spreadsheet takes for a formula: names come from the sweep file."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _columns(data: ReportData) -> tuple[str, ...]:
    """The metric's column has the metric's name; a parameter that is searched has its own."""
    head = ("number", "state", "baseline", "steps", data.metric.value, "standard_error", *data.others, "loss", *COSTS)
    return (*head, "seed", *searched_params(data.config.search.space))


def _cells(data: ReportData, row: Row) -> tuple[Cell, ...]:
    params = row.params
    sampled = (params.get(name) for name in searched_params(data.config.search.space))
    head = (row.number, row.record.state.value, row.baseline)
    return (*head, *_measured(data, row), row.record.spec.seed, *sampled)


def _measured(data: ReportData, row: Row) -> tuple[Cell, ...]:
    """From `steps` to `train_s`. The metric in full: equal trials must stay equal, and close ones apart."""
    last = row.last
    if last is None:
        return (None,) * (4 + len(data.others) + len(COSTS))
    others = dict(last.others)
    return (
        last.steps,
        last.accuracy,
        round(last.standard_error, 6),
        *(others.get(metric) for metric in data.others),
        round(last.loss, 6),
        last.trainable_params,
        round(last.peak_memory_bytes / GIB, 6),
        last.memory_kind.value,
        round(last.train_s, 3),
    )
