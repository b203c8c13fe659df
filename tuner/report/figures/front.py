"""The front as plots: the metric against each cost. Pure; runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.report.answers import ringed
from tuner.report.data import ReportData
from tuner.report.figures.axes import on_scale
from tuner.report.figures.labels import Font, Pixel, place_labels
from tuner.report.figures.plot import Figure, Trace, axis, figure, finite, log_axis, marker, thinned, thinned_note
from tuner.report.figures.views import LEGEND, SEARCHED, STYLES, Point, View, build_views
from tuner.report.rows import Standing
from tuner.report.words import short_count

if TYPE_CHECKING:
    from collections.abc import Sequence

Labels = dict[int, tuple[str, str]]
"""Trial number -> the text beside its point and its place in Plotly's words."""

FONT_SIZE = 12
FONT = Font(digit=7, height=13, gaps=(6,))
NARROW_PX = (280, 310)
"""Width and height of a plot's inside on a phone."""
TEXT_POSITIONS = {(-1, 1): "top left", (1, -1): "bottom right", (-1, -1): "bottom left", (1, 1): "top right"}
FAINT = 0.55
"""Opacity of what is not on the front."""


def front_figures(data: ReportData) -> tuple[Figure, ...]:
    """The 2-D views of the front; none before a trial is there to show."""
    tied = {*ringed(data)}
    return tuple(_front_figure(view, tied) for view in build_views(data) if view.points)


def _front_figure(view: View, tied: set[int]) -> Figure:
    labels = _labels(view)
    traces = [_scatter(view.of(standing), standing, labels) for standing in reversed(LEGEND)]
    x_axis = log_axis(view.x_span, short_count) if view.is_log else {"range": list(view.x_span)}
    y_axis = axis(metric_text.axis(view.metric), range=list(view.y_span))
    hidden = f"{view.beyond}: double-click the plot to see all." if view.beyond else ""
    beside = f"{view.at_edge}." if view.at_edge else ""
    left_out = " ".join(filter(None, (_left_out(view, standing) for standing in SEARCHED)))
    note = " ".join(part for part in (hidden, beside, left_out) if part)
    return figure(view.title, note, [_line(view), _rings(view, tied), *traces], axis(view.x_label, **x_axis), y_axis)


def _rings(view: View, tied: set[int]) -> Trace:
    """Around each trial that can't be told apart from the best."""
    points = [point for point in view.of(Standing.FRONT) if point.row.number in tied]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "marker": {"symbol": "circle-open", "size": 19, "color": STYLES[Standing.FRONT].colour, "line": {"width": 1.2}},
        "cliponaxis": False,
        "hoverinfo": "skip",
    }


def _left_out(view: View, standing: Standing) -> str:
    note = "" if standing is Standing.FRONT else thinned_note(view.of(standing))
    return f"{standing.value.capitalize()}: {note}" if note else ""


def _line(view: View) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in view.line],
        "y": [y for _, y in view.line],
        "line": {"color": STYLES[Standing.FRONT].colour, "width": 1.5},
        "hoverinfo": "skip",
    }


def _scatter(points: Sequence[Point], standing: Standing, labels: Labels) -> Trace:
    is_front = standing is Standing.FRONT
    points = points if is_front else thinned(points)
    placed = [labels.get(point.row.number, ("", "top left")) for point in points]
    return {
        "type": "scatter",
        "mode": "markers+text" if any(text for text, _ in placed) else "markers",
        "cliponaxis": not is_front,
        "opacity": 1 if standing in {Standing.FRONT, Standing.BASELINE} else FAINT,
        "text": [text for text, _ in placed],
        "textfont": {"size": FONT_SIZE},
        "textposition": [position for _, position in placed],
        "name": standing.value,
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "error_y": {
            "array": [finite(point.error) for point in points],
            "thickness": 1.2,
            "width": 3,
            "visible": is_front,
        },
        "marker": marker(standing),
        "customdata": [point.row.number for point in points],
        "hoverinfo": "text",
    }


def _labels(view: View) -> Labels:
    """The marks of front and baselines where there is room on the narrowest screen; hovering tells the rest."""
    texts = [point.row.mark for point in view.labelled]
    anchors = _pixels(view, [(point.x, point.y) for point in view.labelled])
    obstacles = _pixels(view, view.obstacles)
    places = place_labels(anchors, texts, FONT, others=obstacles, corners=view.corners, frame=(0, 0, *NARROW_PX))
    return {
        point.row.number: (text, TEXT_POSITIONS[place.side, place.level])
        for point, text, place in zip(view.labelled, texts, places, strict=True)
        if place
    }


def _pixels(view: View, places: Sequence[tuple[float, float]]) -> list[Pixel]:
    """Where points lie on the smallest screen that the page is made for."""
    left, right = on_scale(view.x_span, is_log=view.is_log)
    bottom, top = view.y_span
    across = on_scale([x for x, _ in places], is_log=view.is_log)
    up = [y for _, y in places]
    width, height = NARROW_PX
    return [
        (width * (x - left) / (right - left), height * (y - bottom) / (top - bottom))
        for x, y in zip(across, up, strict=True)
    ]
