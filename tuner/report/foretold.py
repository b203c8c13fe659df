"""What a report says of predicted memory: for which card, where the peak comes from, and how near measurements were. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.prediction import Prediction, Verdict
from tuner.trial import MemoryKind
from tuner.workload import gpu_of, settings_text, workload_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.report.data import ReportData
    from tuner.report.rows import Row

COLUMNS = ("predicted_allocated_gib", "predicted_reserved_gib", "predicted_phase", "predicted_verdict")
Pairs = tuple[tuple[str, str], ...]


def predictions_of(data: ReportData) -> tuple[Prediction, ...]:
    """Of every trial of the search that has one."""
    found = (row.record.prediction for row in data.trials)
    return tuple(one for one in found if one is not None)


def cells(row: Row) -> tuple[float | str | None, ...]:
    """A trial's values of COLUMNS."""
    found = row.record.prediction
    if found is None:
        return (None,) * len(COLUMNS)
    allocated, reserved = round(found.allocated_bytes / GIB, 6), round(found.reserved_bytes / GIB, 6)
    return allocated, reserved, found.phase.value, found.verdict.value


def settings(data: ReportData) -> Pairs:
    """Lines for the page's settings; none where nothing was predicted."""
    found = predictions_of(data)
    if not found:
        return ()
    largest = max(found, key=lambda one: one.allocated_bytes)
    fitting = sum(one.verdict is Verdict.FITS for one in found)
    gpu = gpu_of(data.config) or data.inspection.gpu
    assert gpu is not None  # noqa: S101 -- there would be no predictions
    needs = (
        f"at most {largest.total_bytes / GIB:.2f} of {largest.capacity_bytes / GIB:.2f} GiB, CUDA's context included"
    )
    peak = f"{largest.phase} ({largest.allocated_bytes / GIB:.2f} GiB allocated); largest tensor: {largest.largest}"
    checked = check_text(data)
    return (
        ("Predicted for", f"{gpu.name}: {needs}; {fitting} of {len(found)} trials fit for sure"),
        ("Predicted peak", peak),
        ("Predicted with", settings_text(workload_of(data.config, gpu, data.inspection))),
        *((("Prediction checked", checked),) if checked else ()),
    )


def check_text(data: ReportData) -> str:
    """How far measured peaks are from predicted ones; empty where nothing was measured on a GPU."""
    errors = measured_errors(data.trials)
    if not errors:
        return ""
    worst = max(errors, key=abs)
    return (
        f"measured against predicted peak, allocated: median {statistics.median(errors):+.1%}, "
        f"worst {worst:+.1%}, {len(errors)} trials"
    )


def measured_errors(rows: Sequence[Row]) -> list[float]:
    """Measured over predicted peak, less 1, of each trial that was measured on a GPU; evaluated trials only."""
    found = []
    for row in rows:
        prediction, last = row.record.prediction, row.last
        if prediction is not None and last is not None and last.memory_kind is MemoryKind.CUDA_ALLOCATED:
            found.append(last.peak_memory_bytes / prediction.allocated_bytes - 1)
    return found
