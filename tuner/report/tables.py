"""ReportData -> trials.csv, front.csv, summary.json, as text. Pure; runs on the driver."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.space import searched_params
from tuner.trial import ParamValue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuner.report.data import ReportData, Row

COLUMNS = (
    "number",
    "state",
    "steps",
    "accuracy",
    "loss",
    "trainable_params",
    "peak_memory_gib",
    "memory_kind",
    "train_s",
    "seed",
)
"""The columns before the searched parameters'."""

Cell = ParamValue | None
"""None is an empty cell: not known, or not sampled by this trial."""


def trials_csv(data: ReportData) -> str:
    """Every trial by number; the last column says why it failed."""
    names = searched_params(data.config.search.space)
    return _csv((*COLUMNS, *names, "reason"), ((*_cells(row, names), row.reason) for row in data.rows))


def front_csv(data: ReportData) -> str:
    """The trials on the front, cheapest first."""
    names = searched_params(data.config.search.space)
    return _csv((*COLUMNS, *names), (_cells(row, names) for row in data.front))


def summary_json(data: ReportData) -> str:
    """The sweep in numbers, for programs."""
    summary = {
        "name": data.config.name,
        "tuner_version": data.version,
        "objectives": list(data.objectives),
        "states": data.num_by_state,
        "front": [row.number for row in data.front],
        "picks": {pick.rule: pick.row.number for pick in data.picks},
        "steps": {"spent": data.budget.steps, "without_pruning": data.budget.steps_without_pruning},
        "memory_kind": data.memory_kind,
        "num_validation": data.inspection.num_validation,
        "majority_share": data.inspection.majority_share,
    }
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _cells(row: Row, names: Sequence[str]) -> tuple[Cell, ...]:
    params = row.params
    head, seed = (row.number, row.record.state.value), row.record.spec.seed
    return (*head, *_measured(row), seed, *(params.get(name) for name in names))


def _measured(row: Row) -> tuple[Cell, ...]:
    """From `steps` to `train_s`. Accuracy in full: equal trials must stay equal, and close ones apart."""
    if row.last is None:
        return (None,) * 7
    return (
        row.last.steps,
        row.last.accuracy,
        round(row.last.loss, 6),
        row.last.trainable_params,
        round(row.last.peak_memory_bytes / GIB, 6),
        row.last.memory_kind.value,
        round(row.last.train_s, 3),
    )
