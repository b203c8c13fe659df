"""ReportData -> Plotly figures, as plain dicts that the page draws. Pure; runs on the driver."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner import metric_text
from tuner.dimensions import Range
from tuner.report.axes import log_ticks, on_scale, padded
from tuner.report.data import ReportData, Row, Standing
from tuner.report.labels import Font, Pixel, place_labels
from tuner.report.views import LEGEND, SEARCHED, STYLES, Point, View, build_views
from tuner.report.words import dimension_of, memory_unit, result, short_count
from tuner.space import searched_params
from tuner.trial import Metric, param_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tuner.trial import Metrics, ParamValue

Trace = dict[str, Any]
"""One series in Plotly's words."""
Labels = dict[int, tuple[str, str]]
"""Trial number -> the text beside its point and its place in Plotly's words."""

GRID = "rgba(128,128,128,0.22)"
GOLDEN = 0.618
FONT_SIZE = 12
FONT = Font(digit=7, height=13, gaps=(6,))
NARROW_PX = (280, 310)
"""Width and height of a plot's inside on a phone."""
TEXT_POSITIONS = {(-1, 1): "top left", (1, -1): "bottom right", (-1, -1): "bottom left", (1, 1): "top right"}
RATIO_FOR_LOG = 20
"""Losses and perplexities that lie further apart get a logarithmic axis."""
BACK_TO_FRONT = (Standing.PAUSED, Standing.RUNNING, Standing.INFEASIBLE, Standing.FAILED, *reversed(LEGEND))


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One plot of the page."""

    title: str
    """Its heading, and its name for screen readers."""
    note: str
    """A line under the plot; may be empty."""
    plotly: dict[str, Any]
    """`data` and `layout`, as Plotly takes them."""


def front_figures(data: ReportData) -> tuple[Figure, ...]:
    """The 2-D views of the front; none before a trial is there to show."""
    return tuple(_front_figure(data, view) for view in build_views(data) if view.points)


def curve_figures(data: ReportData) -> tuple[Figure, ...]:
    """Metric and loss of every trial over its steps; none before the first report."""
    metric = data.metric
    rows = [row for standing in BACK_TO_FRONT for row in data.rows_of(standing) if row.record.curve]
    if not rows:
        return ()
    values = [_curve(data, row, [_on_axis(metric, at) for at in row.record.curve]) for row in rows]
    losses = [_curve(data, row, [_finite(at.loss) for at in row.record.curve]) for row in rows]
    steps = _axis("Optimizer steps", tickvals=list(data.config.rungs), rangemode="tozero")
    metric_axis = _axis(metric_text.axis(metric), type="linear" if metric.is_share else _scale_type(values))
    loss_axis = _axis("Validation loss (nats)", type=_scale_type(losses))
    return (
        _figure(f"{metric_text.title(metric)} while training", "", values, steps, metric_axis),
        _figure("Loss while training", "", losses, steps, loss_axis),
    )


def param_figures(data: ReportData) -> tuple[Figure, ...]:
    """The metric against each searched parameter, over the search's trials; none before one is there to show."""
    values = [_on_axis(data.metric, row.last) for row in data.rows_of(*SEARCHED) if row.last]
    known = [value for value in values if value is not None]
    if not known:
        return ()
    y_axis = _axis(metric_text.axis(data.metric), range=list(padded(known)))
    return tuple(_param_figure(data, name, y_axis) for name in searched_params(data.config.search.space))


def _front_figure(data: ReportData, view: View) -> Figure:
    labels = _labels(view)
    traces = [_scatter(data, view.of(standing), standing, labels) for standing in reversed(LEGEND)]
    x_axis = _log_axis(view.x_span, short_count) if view.is_log else {"range": list(view.x_span)}
    y_axis = _axis(metric_text.axis(view.metric), range=list(view.y_span))
    hidden = f"{view.beyond}: double-click the plot to see all." if view.beyond else ""
    beside = f"{view.at_edge}." if view.at_edge else ""
    note = " ".join(part for part in (hidden, beside) if part)
    return _figure(view.title, note, [_line(view), *traces], _axis(view.x_label, **x_axis), y_axis)


def _line(view: View) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in view.line],
        "y": [y for _, y in view.line],
        "line": {"color": STYLES[Standing.FRONT].colour, "width": 1.5},
        "hoverinfo": "skip",
    }


def _scatter(data: ReportData, points: Sequence[Point], standing: Standing, labels: Labels) -> Trace:
    placed = [labels.get(point.row.number, ("", "top left")) for point in points]
    return {
        "type": "scatter",
        "mode": "markers+text" if any(text for text, _ in placed) else "markers",
        "cliponaxis": standing is not Standing.FRONT,
        "text": [text for text, _ in placed],
        "textfont": {"size": FONT_SIZE},
        "textposition": [position for _, position in placed],
        "name": standing.value,
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "error_y": {
            "array": [point.error for point in points],
            "thickness": 1.2,
            "width": 3,
            "visible": standing is Standing.FRONT,
        },
        "marker": _marker(standing),
        "hovertext": [hover(data, point.row) for point in points],
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


def _marker(standing: Standing) -> dict[str, Any]:
    style = STYLES[standing]
    symbol = ("diamond" if style.is_diamond else "circle") + ("-open" if style.is_hollow else "")
    shape = {"color": style.colour, "size": style.size, "symbol": symbol}
    return shape | {"line": {"width": 1.6}} if style.is_hollow else shape


def _curve(data: ReportData, row: Row, values: Sequence[float | None]) -> Trace:
    is_front = row.standing is Standing.FRONT
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": row.record.spec.label,
        "x": [at.steps for at in row.record.curve],
        "y": list(values),
        "opacity": 1 if is_front else 0.6,
        "line": {"color": STYLES[row.standing].colour, "width": 2.5 if is_front else 1.3},
        "marker": _marker(row.standing) | {"size": 6 if is_front else 5},
        "hovertext": [hover(data, row, at) for at in row.record.curve],
        "hoverinfo": "text",
    }


def _scale_type(traces: Iterable[Trace]) -> str:
    values = [value for trace in traces for value in trace["y"] if value]
    return "log" if values and max(values) > RATIO_FOR_LOG * min(values) else "linear"


def _param_figure(data: ReportData, name: str, y_axis: dict[str, Any]) -> Figure:
    dimension = dimension_of(data.config.search.space, name)
    choices: tuple[ParamValue, ...] = () if isinstance(dimension, Range) else tuple(dimension.choices)
    traces = [_param_trace(data, standing, name, choices) for standing in reversed(SEARCHED)]
    x_axis = _range_axis(dimension) if isinstance(dimension, Range) else _choices_axis(choices)
    title = f"{metric_text.title(data.metric)} against {name}"
    figure = _figure(title, "", traces, _axis(name, **x_axis), y_axis)
    figure.plotly["layout"]["height"] = 280
    return figure


def _param_trace(data: ReportData, standing: Standing, name: str, choices: Sequence[ParamValue]) -> Trace:
    rows = data.rows_of(standing)
    sampled = [(row, row.last, row.params[name]) for row in rows if row.last and name in row.params]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_beside(choices.index(value), row.number) if choices else value for row, _, value in sampled],
        "y": [_on_axis(data.metric, last) for _, last, _ in sampled],
        "hovertext": [hover(data, row) for row, _, _ in sampled],
        "hoverinfo": "text",
        "marker": _marker(standing),
    }


def _beside(place: int, number: int) -> float:
    """A choice's place, shifted by trial, so that equal choices do not hide each other."""
    return place + 0.4 * ((number * GOLDEN) % 1 - 0.5)


def _choices_axis(choices: Sequence[ParamValue]) -> dict[str, Any]:
    texts = [html.escape(param_text(choice)) for choice in choices]
    places = list(range(len(choices)))
    return {"tickvals": places, "ticktext": texts, "range": [-0.5, len(choices) - 0.5], "showgrid": False}


def _range_axis(dimension: Range[int] | Range[float]) -> dict[str, Any]:
    span = padded((dimension.low, dimension.high), is_log=dimension.log)
    return _log_axis(span, param_text) if dimension.log else {"range": list(span)}


def _log_axis(span: tuple[float, float], text_of: Callable[[float], str]) -> dict[str, Any]:
    """Plotly's own logarithmic ticks are bare 2 and 5 between the powers of ten."""
    ticks = log_ticks(span)
    texts = [text_of(tick) for tick in ticks]
    ends = on_scale(span, is_log=True)
    return {"type": "log", "range": ends, "tickvals": [*ticks], "ticktext": texts, "tickangle": 0}


def hover(data: ReportData, row: Row, at: Metrics | None = None) -> str:
    """What a trial says under the pointer, in Plotly's small subset of HTML.

    Args:
        data: The report that it belongs to.
        row: The trial.
        at: The report to tell of; its newest by default.
    """
    at = at or row.last
    lines = [f"<b>{row.label}</b>{f' {row.standing.value}' if row.is_searched else ''}"]
    if row.stop:
        lines.append(html.escape(row.stop))
    if at:
        lines.append(f"{metric_text.name(data.metric)} {result(data, at)}, loss {at.loss:.3f}, step {at.steps}")
        others = [(Metric(name), value) for name, value in at.others]
        lines += [f"{metric_text.name(metric)} {metric_text.text(metric, value)}" for metric, value in others]
        lines.append(f"{short_count(at.trainable_params)} parameters, {memory_unit(data).text(at)}")
    lines += [f"{html.escape(name)}: {html.escape(param_text(value))}" for name, value in row.params.items()]
    return "<br>".join(lines)


def _on_axis(metric: Metric, at: Metrics) -> float | None:
    return _finite(metric_text.scaled(metric, at.accuracy))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _axis(label: str, **settings: object) -> dict[str, Any]:
    look = {
        "tickfont": {"size": 12},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        "showline": True,
        "linecolor": GRID,
        "ticks": "",
    }
    return {"title": {"text": html.escape(label), "standoff": 8, "font": {"size": 13}}, **look, **settings}


def _figure(title: str, note: str, traces: Sequence[Trace], x_axis: dict[str, Any], y_axis: dict[str, Any]) -> Figure:
    layout = {
        "height": 400,
        "margin": {"l": 8, "r": 16, "t": 14, "b": 8},
        "xaxis": x_axis,
        "yaxis": y_axis,
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    return Figure(title=title, note=note, plotly={"data": [*traces], "layout": layout})
