"""ReportData -> the 2-D views of the front that the page and the picture draw. Pure; runs on the driver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.front import Objective
from tuner.pareto import non_dominated_mask
from tuner.report.data import ReportData, Row, Standing
from tuner.report.words import OBJECTIVES, memory_unit, short_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuner.trial import Metrics

Span = tuple[float, float]
"""Low and high end of an axis."""

MIN_TICKS = 3
PADDING = 0.08
"""Empty part of an axis on either side, as a share of its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How trials of one standing are drawn, on the page and in the picture."""

    colour: str
    """From Okabe and Ito's colour-blind safe palette, and grey."""
    size: float
    """Diameter of the marker in CSS pixels at 96 dpi."""
    is_hollow: bool
    """A ring instead of a disc."""


STYLES = {
    Standing.FRONT: Style(colour="#0072b2", size=11, is_hollow=False),
    Standing.FINISHED: Style(colour="#808894", size=8, is_hollow=False),
    Standing.STOPPED: Style(colour="#d55e00", size=7, is_hollow=True),
    Standing.FAILED: Style(colour="#cc79a7", size=8, is_hollow=True),
    Standing.RUNNING: Style(colour="#009e73", size=8, is_hollow=True),
}
"""Hollow is what has not finished."""

LEGEND = {
    Standing.FRONT: "finished, on the front (bar: ± 1 standard error)",
    Standing.FINISHED: "finished, off the front",
    Standing.STOPPED: "not finished: stopped early, at its last accuracy",
}
"""What the views show, drawn from the last to the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One trial in a view."""

    row: Row
    """The trial."""
    x: float
    """Cost, in the view's unit."""
    y: float
    """Accuracy in percent."""
    error: float
    """One standard error of the accuracy, in percentage points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Accuracy against one cost."""

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
    """Corners of the stepped line: the best accuracy among finished trials that cost no more. Empty without a front."""
    x_span: Span
    """The cost's axis."""
    y_span: Span
    """The accuracy's axis: the front with room around it. Trials off the front may lie below."""

    @property
    def num_below(self) -> int:
        """Points that lie below the axis."""
        return sum(point.y < self.y_span[0] for point in self.points)

    @property
    def obstacles(self) -> tuple[tuple[float, float], ...]:
        """What a label of the front should not cover: the other points, and the error bars at five heights."""
        front = self.of(Standing.FRONT)
        others = tuple((at.x, at.y) for at in self.points if at.row.standing is not Standing.FRONT)
        return (*others, *((at.x, at.y + part * at.error) for at in front for part in (-1, -0.5, 0.5, 1)))

    def of(self, standing: Standing) -> tuple[Point, ...]:
        """The points of one standing."""
        return tuple(point for point in self.points if point.row.standing is standing)


def build_views(data: ReportData) -> tuple[View, View]:
    """Accuracy against trainable parameters, and against peak memory."""
    unit = memory_unit(data)
    return (
        _view(data, Objective.TRAINABLE_PARAMS, label="Trainable parameters (count, log scale)", cost=_num_params),
        _view(data, Objective.PEAK_MEMORY_GIB, label=f"Peak memory ({unit.name})", cost=unit.of),
    )


def log_ticks(span: Span) -> tuple[float, ...]:
    """Round numbers inside a positive span: powers of ten, with 2 and 5 or evenly spaced where those are too few."""
    low, high = span
    decades = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for mantissas in ((1,), (1, 2, 5)):
        values = (round(mantissa * decade, 12) for decade in decades for mantissa in mantissas)
        ticks = tuple(value for value in values if low <= value <= high)
        if len(ticks) >= MIN_TICKS:
            return ticks
    return _even_ticks(span)


def _even_ticks(span: Span) -> tuple[float, ...]:
    low, high = span
    decade = 10.0 ** math.floor(math.log10(high - low))
    ticks: tuple[float, ...] = ()
    for parts in (1, 2, 5, 10):
        step = decade / parts
        ticks = tuple(round(at * step, 12) for at in range(math.ceil(low / step), math.floor(high / step) + 1))
        if len(ticks) >= MIN_TICKS:
            break
    return ticks


def tick_texts(view: View) -> tuple[tuple[float, str], ...]:
    """(place, text) of a logarithmic cost axis."""
    return tuple((value, short_count(value)) for value in log_ticks(view.x_span))


def _num_params(metrics: Metrics) -> float:
    return float(metrics.trainable_params)


def _view(data: ReportData, objective: Objective, *, label: str, cost: Callable[[Metrics], float]) -> View:
    is_log = objective is Objective.TRAINABLE_PARAMS
    points = tuple(_point(row, row.last, cost) for row in _picked_first(data) if row.last)
    finished = [point for point in points if point.row.standing is not Standing.STOPPED]
    x_span = padded([point.x for point in points], is_log=is_log)
    note = "" if objective in data.objectives else " (not an objective of this sweep)"
    return View(
        objective=objective,
        title=f"Accuracy against {OBJECTIVES[objective]}{note}",
        x_label=label,
        x_note=data.memory_kind.value if data.memory_kind and not is_log else "",
        is_log=is_log,
        points=points,
        line=_stepped(finished, right=x_span[1]) if objective in data.objectives else (),
        x_span=x_span,
        y_span=_accuracy_span(points),
    )


def _picked_first(data: ReportData) -> list[Row]:
    picked = {pick.row.number for pick in data.picks}
    return sorted(data.rows_of(*LEGEND), key=lambda row: row.number not in picked)


def _point(row: Row, last: Metrics, cost: Callable[[Metrics], float]) -> Point:
    return Point(row=row, x=cost(last), y=100 * last.accuracy, error=100 * last.standard_error)


def padded(values: Sequence[float], *, is_log: bool = False) -> Span:
    """An axis with room around the values; around 1 without any, and never of length 0."""
    if not values:
        return (0.5, 2.0)
    low, high = min(values), max(values)
    if is_log:
        factor = max((high / low) ** PADDING, 1.15)
        return (low / factor, high * factor)
    room = max(PADDING * (high - low), 0.02 * abs(high), 1e-3)
    return (low - room, high + room)


def _stepped(points: Sequence[Point], *, right: float) -> tuple[tuple[float, float], ...]:
    """Corners of the best accuracy within a cost, over the points of one view; it ends at the axis."""
    losses = np.array([[point.x, -point.y] for point in points], dtype=np.float64).reshape(len(points), 2)
    kept = (point for point, is_on in zip(points, non_dominated_mask(losses), strict=True) if is_on)
    best = sorted({(point.x, point.y) for point in kept})
    corners: list[tuple[float, float]] = []
    for x, y in best:
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return (*corners, (right, corners[-1][1])) if corners else ()


def _accuracy_span(points: Sequence[Point]) -> Span:
    """The front with its bars, and half as much room below as the front is high; all points without a front."""
    front = [point for point in points if point.row.standing is Standing.FRONT]
    if not front:
        return padded([point.y for point in points] or [0.0, 100.0])
    low = min(point.y - point.error for point in front)
    high = max(point.y + point.error for point in front)
    shown = [point.y for point in points if point.y >= low - 0.5 * (high - low)]
    return padded([*shown, low, high])
