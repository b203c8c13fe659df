"""ReportData -> the 2-D views of the front that the page and the picture draw. Pure; runs on the driver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tuner import metric_text
from tuner.front import Objective
from tuner.pareto import non_dominated_mask
from tuner.report.data import ReportData
from tuner.report.figures.axes import Span, clipped, log_ticks, padded, stretched
from tuner.report.figures.labels import LOWER_LEFT_FIRST, UPPER_LEFT_FIRST, Corners
from tuner.report.rows import Row, Standing
from tuner.report.words import baseline_key, memory_unit, objective_text, short_count
from tuner.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuner.report.words import MemoryUnit
    from tuner.trial import Metric, Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How trials of one standing are drawn, on the page and in the picture."""

    colour: str
    """From Okabe and Ito's colour-blind safe palette (orange and yellow darker), and grey."""
    size: float
    """Diameter of the marker in CSS pixels at 96 dpi."""
    is_hollow: bool
    """A ring instead of a disc."""
    is_diamond: bool = False
    """Set on its corner instead of round."""


STYLES = {
    Standing.FRONT: Style(colour="#0072b2", size=11, is_hollow=False),
    Standing.FINISHED: Style(colour="#808894", size=8, is_hollow=False),
    Standing.STOPPED: Style(colour="#d55e00", size=7, is_hollow=True),
    Standing.FAILED: Style(colour="#cc79a7", size=8, is_hollow=True),
    Standing.INFEASIBLE: Style(colour="#9a8f00", size=8, is_hollow=True),
    Standing.RUNNING: Style(colour="#009e73", size=8, is_hollow=True),
    Standing.PAUSED: Style(colour="#56b4e9", size=8, is_hollow=True),
    Standing.BASELINE: Style(colour="#b07d00", size=9, is_hollow=True, is_diamond=True),
    Standing.AUDIT: Style(colour="#d55e00", size=8, is_hollow=True, is_diamond=True),
    Standing.CONFIRMED: Style(colour="#7b5ea7", size=7, is_hollow=True, is_diamond=True),
}
"""A ring is what has not finished, a diamond what stands beside the search."""

LEGEND = {
    Standing.FRONT: "finished, on the front (bar: ± 1 standard error)",
    Standing.FINISHED: "finished, off the front",
    Standing.STOPPED: "not finished: stopped early, at its last evaluation",
    Standing.AUDIT: "stopped early, and finished after all by the audit",
    Standing.CONFIRMED: "trained again from another seed",
    Standing.FAILED: "failed, at its last evaluation",
    Standing.INFEASIBLE: "does not fit, at its last evaluation",
    Standing.RUNNING: "running, at its last evaluation",
    Standing.PAUSED: "paused, at its last evaluation",
    Standing.BASELINE: "baseline, beside the search",
}
"""What the views show, drawn from the last to the first."""
SEARCHED = (Standing.FRONT, Standing.FINISHED, Standing.STOPPED)
"""The standings of the search's own trials among them."""
UNFINISHED = (Standing.FAILED, Standing.INFEASIBLE, Standing.RUNNING, Standing.PAUSED)
"""Those that are drawn, and told in the legend, only where one has reported."""
LABELLED = (Standing.FRONT, Standing.BASELINE)
"""The standings whose points get their mark written beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One trial in a view."""

    row: Row
    """The trial."""
    x: float
    """Cost, in the view's unit."""
    y: float
    """The metric on its axis: shares in percent."""
    error: float
    """One standard error of the metric, on its axis."""
    note: str = ""
    """Set where a baseline lies beyond the axes and is drawn at their edge: its true place in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The metric against one cost."""

    metric: Metric
    """What goes up or down."""
    objective: Objective
    """The cost."""
    title: str
    """What is weighed against what."""
    x_label: str
    """The cost with its unit."""
    x_note: str
    """How the cost was found; empty where it was counted."""
    is_log: bool
    """Whether the cost's axis is logarithmic."""
    points: tuple[Point, ...]
    """Every trial of `LEGEND`'s standings that has reported; the picks first, so that they get their labels."""
    line: tuple[tuple[float, float], ...]
    """Corners of the stepped line: the best value among finished trials that cost no more. Empty without a front."""
    x_span: Span
    """The cost's axis: all trials, and the baselines that lie near them."""
    y_span: Span
    """The metric's axis: the front with room around it, and the baselines near it. Worse trials may lie outside."""

    @property
    def beyond(self) -> str:
        """How many trials lie outside on the bad side, in words; empty where none does."""
        if self.metric.is_maximized:
            number, side = sum(point.y < self.y_span[0] for point in self.points), "below"
        else:
            number, side = sum(point.y > self.y_span[1] for point in self.points), "above"
        return f"{number} more {side} this axis" if number else ""

    @property
    def at_edge(self) -> str:
        """Which baselines are drawn at the edge and where they truly lie, in words; empty where none is."""
        notes = [point.note for point in self.points if point.note]
        return f"Drawn at the edge: {', '.join(notes)}" if notes else ""

    @property
    def corners(self) -> Corners:
        """Where the marks of points stand best: on the front's good side."""
        return UPPER_LEFT_FIRST if self.metric.is_maximized else LOWER_LEFT_FIRST

    @property
    def labelled(self) -> tuple[Point, ...]:
        """The points that get their mark written beside them: the front, then the baselines."""
        return tuple(point for standing in LABELLED for point in self.of(standing))

    @property
    def obstacles(self) -> tuple[tuple[float, float], ...]:
        """What a label should not cover: the points without one, and the error bars at five heights."""
        front = self.of(Standing.FRONT)
        others = tuple((at.x, at.y) for at in self.points if at.row.standing not in LABELLED)
        return (*others, *((at.x, at.y + part * at.error) for at in front for part in (-1, -0.5, 0.5, 1)))

    def of(self, standing: Standing) -> tuple[Point, ...]:
        """The points of one standing."""
        return tuple(point for point in self.points if point.row.standing is standing)


def build_views(data: ReportData) -> tuple[View, View]:
    """The metric against trainable parameters, and against peak memory."""
    unit = memory_unit(data)
    return _view(data, _params_axis()), _view(data, _memory_axis(unit))


def legend_of(data: ReportData) -> dict[Standing, str]:
    """`LEGEND` as a report needs it: audits, and the baselines one by one, if there are any."""
    legend: dict[Standing, str] = {standing: LEGEND[standing] for standing in SEARCHED}
    if _finished(data.audits):
        legend[Standing.AUDIT] = LEGEND[Standing.AUDIT]
    for standing in UNFINISHED:
        if any(row.last for row in data.rows_of(standing)):
            legend[standing] = LEGEND[standing]
    if _finished(data.confirmed):
        legend[Standing.CONFIRMED] = LEGEND[Standing.CONFIRMED]
    if key := baseline_key(data):
        legend[Standing.BASELINE] = f"{LEGEND[Standing.BASELINE]}: {key}"
    return legend


def tick_texts(view: View) -> tuple[tuple[float, str], ...]:
    """(place, text) of a logarithmic cost axis."""
    return tuple((value, short_count(value)) for value in log_ticks(view.x_span))


@dataclass(frozen=True, kw_only=True, slots=True)
class _CostAxis:
    objective: Objective
    label: str
    is_log: bool
    of: Callable[[Metrics], float]
    text: Callable[[Metrics], str]


def _params_axis() -> _CostAxis:
    return _CostAxis(
        objective=Objective.TRAINABLE_PARAMS,
        label="Trainable parameters (count, log scale)",
        is_log=True,
        of=lambda metrics: float(metrics.trainable_params),
        text=lambda metrics: f"{short_count(metrics.trainable_params)} parameters",
    )


def _memory_axis(unit: MemoryUnit) -> _CostAxis:
    label = f"Peak memory ({unit.name})"
    return _CostAxis(objective=Objective.PEAK_MEMORY_GIB, label=label, is_log=False, of=unit.of, text=unit.text)


def _view(data: ReportData, cost: _CostAxis) -> View:
    beside_front = (*_finished(data.audits), *_finished(data.confirmed))
    points = _points([*_picked_first(data), *beside_front], data.metric, cost)
    beside = _points(_finished(data.baselines), data.metric, cost)
    finished = [point for point in points if point.row.standing in {Standing.FRONT, Standing.FINISHED}]
    x_span = stretched(_x_span(points or beside, cost), [point.x for point in beside], is_log=cost.is_log)
    y_span = stretched(_metric_span(points or beside, data.metric), [point.y for point in beside])
    is_weighed = cost.objective in data.objectives
    return View(
        metric=data.metric,
        objective=cost.objective,
        title=f"{metric_text.title(data.metric)} against {objective_text(cost.objective)}"
        + ("" if is_weighed else " (not an objective of this sweep)"),
        x_label=cost.label,
        x_note=data.memory_kind.value if data.memory_kind and not cost.is_log else "",
        is_log=cost.is_log,
        points=(*points, *(_inside(point, x_span, y_span, data.metric, cost) for point in beside)),
        line=_stepped(finished, data.metric, right=x_span[1]) if is_weighed else (),
        x_span=x_span,
        y_span=y_span,
    )


def _picked_first(data: ReportData) -> list[Row]:
    picked = {pick.row.number for pick in data.picks}
    return sorted(data.rows_of(*SEARCHED, *UNFINISHED), key=lambda row: row.number not in picked)


def _finished(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.record.state is TrialState.COMPLETE]


def _points(rows: Sequence[Row], metric: Metric, cost: _CostAxis) -> list[Point]:
    """One per row that has reported; a perplexity too large for a float has no place."""
    return [_point(row, row.last, metric, cost) for row in rows if row.last and math.isfinite(row.last.accuracy)]


def _point(row: Row, last: Metrics, metric: Metric, cost: _CostAxis) -> Point:
    y, error = (metric_text.scaled(metric, value) for value in (last.accuracy, last.standard_error))
    return Point(row=row, x=cost.of(last), y=y, error=error)


def _x_span(points: Sequence[Point], cost: _CostAxis) -> Span:
    # A zero-shot baseline trains nothing, and a logarithmic axis has no 0.
    return padded([point.x for point in points if point.x > 0 or not cost.is_log], is_log=cost.is_log)


def _inside(point: Point, x_span: Span, y_span: Span, metric: Metric, cost: _CostAxis) -> Point:
    """The point, or its stand-in at the edge where it lies beyond the axes."""
    x, y = clipped(point.x, x_span, is_log=cost.is_log), clipped(point.y, y_span)
    if (x, y) == (point.x, point.y) or point.row.last is None:
        return point
    value = metric_text.text(metric, point.row.last.accuracy)
    note = f"{point.row.mark} ({cost.text(point.row.last)}, {value})".replace(" ", metric_text.NO_BREAK_SPACE)
    return replace(point, x=x, y=y, note=note)


def _stepped(points: Sequence[Point], metric: Metric, *, right: float) -> tuple[tuple[float, float], ...]:
    """Corners of the best value within a cost, over the points of one view; it ends at the axis."""
    losses = np.array([[point.x, metric.loss(point.y)] for point in points], dtype=np.float64).reshape(len(points), 2)
    kept = (point for point, is_on in zip(points, non_dominated_mask(losses), strict=True) if is_on)
    best = sorted({(point.x, point.y) for point in kept})
    corners: list[tuple[float, float]] = []
    for x, y in best:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return (*corners, (right, corners[-1][1])) if corners else ()


def _metric_span(points: Sequence[Point], metric: Metric) -> Span:
    """The front with its bars, and half as much room on its bad side as it is high; all points without a front."""
    front = [point for point in points if point.row.standing is Standing.FRONT]
    if not front:
        return padded([point.y for point in points] or [0.0, metric_text.scaled(metric, 1.0)])
    low = min(point.y - point.error for point in front)
    high = max(point.y + point.error for point in front)
    room = 0.5 * (high - low)
    bottom, top = (low - room, math.inf) if metric.is_maximized else (-math.inf, high + room)
    return padded([*(point.y for point in points if bottom <= point.y <= top), low, high])
