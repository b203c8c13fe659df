"""Several sweeps of one task on one page: who stands on the common front, and what can be told apart. Runs on the driver."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner import metric_text
from tuner.errors import CompareError
from tuner.front import Objective, is_candidate
from tuner.pareto import non_dominated_mask
from tuner.report import answers, words
from tuner.report.findings.intervals import Estimate, Gap, gap_of, held_out_estimate, validation_estimate
from tuner.report.findings.volume import Box, is_finite, points_of
from tuner.report.listing import EMPTY, Cell
from tuner.trial import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.pareto import FloatArray
    from tuner.report.data import ReportData
    from tuner.report.rows import Row

MIN_SWEEPS = 2
PER_TOKEN = frozenset({Metric.PERPLEXITY, Metric.TOKEN_ACCURACY})
"""Metrics that only mean the same for the same tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One sweep among several."""

    label: str
    """Its folder's name, with its place where two have the same."""
    data: ReportData
    """All that its own report shows."""
    hypervolume: float
    """Of its front in the box that all sweeps share, in [0, 1]."""
    on_common_front: tuple[Row, ...]
    """Its trials that no finished trial of any sweep dominates."""

    @property
    def best(self) -> Row | None:
        """Its trial with the best validation score; None where none has finished."""
        return next((pick.row for pick in self.data.picks if pick.rule == "most-accurate"), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Versus:
    """The best trials of two sweeps."""

    one: str
    other: str
    gap: Gap
    """By how much the first is better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """Several sweeps of one task."""

    entries: tuple[Entry, ...]
    """As given."""
    objectives: tuple[Objective, ...]
    """What all of them weigh, the metric first."""
    left_out: str
    """Which costs are not compared, and why; empty where all are."""
    versus: tuple[Versus, ...]
    """Every two sweeps that have a best trial."""


def compare(reports: Sequence[ReportData]) -> Compared:
    """Hold sweeps against each other.

    Raises:
        CompareError: Fewer than two, or sweeps of different tasks, with every reason why.
    """
    if len(reports) < MIN_SWEEPS:
        raise CompareError(f"takes at least {MIN_SWEEPS} sweeps, got {len(reports)}")
    labels = _labels(reports)
    if problems := [*_problems(reports, labels)]:
        raise CompareError("these sweeps can't be compared:\n" + "\n".join(f"  {problem}" for problem in problems))
    objectives, left_out = _objectives(reports)
    entries = _entries(reports, labels, objectives)
    return Compared(entries=entries, objectives=objectives, left_out=left_out, versus=tuple(_versus(entries)))


def compared_json(compared: Compared) -> dict[str, Any]:
    """The page's numbers, for programs."""
    return {
        "objectives": list(compared.objectives),
        "left_out": compared.left_out,
        "sweeps": [
            {
                "label": entry.label,
                "name": entry.data.config.name,
                "folder": entry.data.folder,
                "hypervolume": entry.hypervolume,
                "on_common_front": [row.number for row in entry.on_common_front],
                "front": [row.number for row in entry.data.front],
                "best": entry.best.number if entry.best else None,
                "steps": entry.data.budget.steps,
                "train_s": entry.data.budget.train_s,
            }
            for entry in compared.entries
        ],
        "versus": [dataclasses.asdict(pair) | {"is_clear": pair.gap.is_clear} for pair in compared.versus],
    }


def table(compared: Compared) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """(headings, rows) of one line per sweep."""
    metric = compared.entries[0].data.metric
    name = metric_text.name(metric)
    head = (
        "Sweep",
        "Base model",
        "Trials",
        "Steps",
        f"Best validation {name}",
        f"Its test {name}",
        "Hypervolume",
        "On the common front",
    )
    return head, tuple(_cells(entry) for entry in compared.entries)


def _cells(entry: Entry) -> tuple[Cell, ...]:
    data, best = entry.data, entry.best
    held_out = data.tests.get(best.number) if best else None
    model = f"{Path(data.config.model.name).name} ({data.config.model.quantization})"
    return (
        Cell(text=entry.label, key=entry.label),
        Cell(text=model, key=model),
        Cell(text=f"{data.num_begun:,}", key=data.num_begun),
        Cell(text=f"{data.budget.steps:,}", key=data.budget.steps),
        _score_cell(data, validation_estimate(data.metric, best.last) if best and best.last else None),
        _score_cell(data, held_out_estimate(data.metric, held_out) if held_out else None),
        Cell(text=words.percent(entry.hypervolume), key=entry.hypervolume),
        Cell(text=f"{len(entry.on_common_front)} of {len(data.front)}", key=len(entry.on_common_front)),
    )


def _score_cell(data: ReportData, estimate: Estimate | None) -> Cell:
    return EMPTY if estimate is None else Cell(text=answers.estimate_text(data, estimate), key=estimate.value)


def _labels(reports: Sequence[ReportData]) -> tuple[str, ...]:
    names = [Path(data.folder).name for data in reports]
    return tuple(f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, start=1))


def _problems(reports: Sequence[ReportData], labels: Sequence[str]) -> Iterator[str]:
    """Each way in which a sweep is of another task than the first."""
    first = reports[0]
    for label, data in zip(labels[1:], reports[1:], strict=True):
        pairs = (
            ("task", data.config.training.task, first.config.training.task),
            ("metric", data.metric.value, first.metric.value),
            ("data", data.inspection.data_fingerprint[:12], first.inspection.data_fingerprint[:12]),
            ("validation examples", data.inspection.num_validation, first.inspection.num_validation),
        )
        for what, its, firsts in pairs:
            if its != firsts:
                yield f"{what}: {its} in {label}, {firsts} in {labels[0]}"
        models = [Path(one.config.model.name).name for one in (data, first)]
        if data.metric in PER_TOKEN and models[0] != models[1]:
            name = metric_text.name(data.metric)
            cut = f"{models[0]} in {label}, {models[1]} in {labels[0]}"
            yield f"{name} is a mean over tokens, which models cut differently: {cut}"


def _objectives(reports: Sequence[ReportData]) -> tuple[tuple[Objective, ...], str]:
    """(what all weigh, which costs are left out and why)."""
    weighed = dict.fromkeys(goal for data in reports for goal in data.objectives)
    common = [goal for goal in weighed if all(goal in data.objectives for data in reports)]
    reasons = [f"{words.objective_text(goal)}, which not every sweep weighs" for goal in weighed if goal not in common]
    kinds = sorted({data.memory_kind.value for data in reports if data.memory_kind})
    if Objective.PEAK_MEMORY_GIB in common and len(kinds) > 1:
        common.remove(Objective.PEAK_MEMORY_GIB)
        reasons.append(f"peak memory, for it is {' here and '.join(kinds)} there")
    return tuple(common), f"Not compared: {'; '.join(reasons)}." if reasons else ""


def _entries(
    reports: Sequence[ReportData], labels: Sequence[str], objectives: Sequence[Objective]
) -> tuple[Entry, ...]:
    finished = [[row for row in data.trials if is_candidate(row.record)] for data in reports]
    points = [points_of([row.record for row in rows], objectives) for rows in finished]
    box, masks = Box(np.vstack(points)), _common_front(points)
    return tuple(
        Entry(
            label=label,
            data=data,
            hypervolume=box.volume(own),
            on_common_front=tuple(row for row, is_on in zip(rows, mask, strict=True) if is_on),
        )
        for label, data, rows, own, mask in zip(labels, reports, finished, points, masks, strict=True)
    )


def _common_front(points: Sequence[FloatArray]) -> list[list[bool]]:
    """For each sweep's points whether each stands on the front of all."""
    together = np.vstack(points)
    finite = is_finite(together)
    on_front = np.zeros(len(together), dtype=np.bool_)
    on_front[np.flatnonzero(finite)] = non_dominated_mask(together[finite])
    ends = np.cumsum([len(own) for own in points])
    return [part.tolist() for part in np.split(on_front, ends[:-1])]


def _versus(entries: Sequence[Entry]) -> Iterator[Versus]:
    known = [entry for entry in entries if entry.best]
    for place, one in enumerate(known):
        for other in known[place + 1 :]:
            yield Versus(one=one.label, other=other.label, gap=_gap(one, other))


def _gap(one: Entry, other: Entry) -> Gap:
    mine, its = one.best, other.best
    assert mine is not None  # noqa: S101 -- asked before
    assert its is not None  # noqa: S101 -- asked before
    assert mine.last is not None  # noqa: S101 -- trials on the front have reported
    assert its.last is not None  # noqa: S101 -- as above
    tests = one.data.tests.get(mine.number), other.data.tests.get(its.number)
    return gap_of(one.data.metric, mine.last, its.last, tests)
