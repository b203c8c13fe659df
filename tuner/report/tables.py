"""ReportData -> trials.csv, front.csv, summary.json, as text. Pure; runs on the driver."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.report import foretold
from tuner.space import searched_params
from tuner.trial import ParamValue, StopReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuner.report.audit import Audit
    from tuner.report.data import ReportData, Row

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


def summary_json(data: ReportData) -> str:
    """The sweep in numbers, for programs."""
    summary = {
        "name": data.config.name,
        "tuner_version": data.version,
        "metric": data.metric,
        "objectives": list(data.objectives),
        "states": data.num_by_state,
        "front": [row.number for row in data.front],
        "picks": {pick.rule: pick.row.number for pick in data.picks},
        "baselines": [_baseline(data, row) for row in data.baselines],
        "stops": _stops(data),
        "audit": _audit(data.audit) if data.audit else None,
        "steps": {"spent": data.budget.steps, "without_pruning": data.budget.steps_without_pruning},
        "memory_kind": data.memory_kind,
        "prediction_errors": foretold.measured_errors(data.trials),
        "num_validation": data.inspection.num_validation,
        "majority_share": data.inspection.majority_share,
    }
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"


def _stops(data: ReportData) -> dict[str, int]:
    """Trials of the search by why they were stopped, zeros included; those whose reason was not kept are in none."""
    counts = Counter(row.stop for row in data.trials)
    return {reason.value: counts[reason] for reason in StopReason}


def _audit(audit: Audit) -> dict[str, object]:
    """An interval is null for a census, as `Audit` says."""
    return {
        "num_stopped": audit.num_stopped,
        "num_audited": audit.num_audited,
        "num_failed": audit.num_failed,
        "is_census": audit.is_census,
        "steps": audit.num_steps,
        "on_front": [trial.stopped.number for trial in audit.trials if trial.is_on_front],
        "share_on_front": audit.share,
        "share_on_front_interval": audit.share_interval,
        "num_lost": audit.num_lost,
        "num_lost_interval": audit.num_lost_interval,
        "hypervolume_loss": audit.hypervolume_loss,
        "mean_hypervolume_loss": audit.mean_loss,
        "mean_hypervolume_loss_interval": audit.mean_loss_interval,
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


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


def _baseline(data: ReportData, row: Row) -> dict[str, Cell]:
    """A baseline with its results by column; None where it has none, or a number that JSON can't hold."""
    names = ("steps", data.metric.value, "standard_error", *data.others, "loss", *COSTS)
    measured = zip(names, _measured(data, row), strict=True)
    values = {name: None if isinstance(cell, float) and not math.isfinite(cell) else cell for name, cell in measured}
    head = {"number": row.number, "kind": row.baseline, "state": row.record.state.value}
    return head | values | {"learning_rate": row.learning_rate}
