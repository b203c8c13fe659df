"""ReportData -> Plotly figures, as plain dicts that the page draws. Pure; runs on the driver."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.config import Range
from tuner.report.data import ReportData, Row, Standing
from tuner.report.labels import Font, Pixel, place_labels
from tuner.report.views import LEGEND, STYLES, Point, View, build_views, log_ticks, padded
from tuner.report.words import MemoryUnit, dimension_of, memory_unit, short_count, with_error
from tuner.space import searched_params
from tuner.trial import param_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tuner.trial import Metrics, ParamValue

Trace = dict[str, Any]
"""One series in Plotly's words."""

GRID = "rgba(128,128,128,0.22)"
GOLDEN = 0.618
FONT_SIZE = 12
FONT = Font(digit=7, height=13, gaps=(6,))
NARROW_PX = (280, 310)
"""Width and height of a plot's inside on a phone."""
TEXT_POSITIONS = {(-1, 1): "top left", (1, -1): "bottom right", (-1, -1): "bottom left", (1, 1): "top right"}
LOSS_RATIO_FOR_LOG = 20
BACK_TO_FRONT = (Standing.RUNNING, Standing.FAILED, *reversed(LEGEND))


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
    unit = memory_unit(data)
    return tuple(_front_figure(view, unit) for view in build_views(data) if view.points)


def curve_figures(data: ReportData) -> tuple[Figure, ...]:
    """Accuracy and loss of every trial over its steps; none before the first report."""
    unit = memory_unit(data)
    rows = [row for standing in BACK_TO_FRONT for row in data.rows_of(standing) if row.record.curve]
    if not rows:
        return ()
    accuracies = [_curve(row, [100 * at.accuracy for at in row.record.curve], unit) for row in rows]
    losses = [_curve(row, [_finite(at.loss) for at in row.record.curve], unit) for row in rows]
    steps = _axis("Optimizer steps", tickvals=list(data.config.rungs), rangemode="tozero")
    loss_axis = _axis("Validation loss (nats)", type="log" if _is_wide(losses) else "linear")
    return (
        _figure("Accuracy while training", "", accuracies, steps, _axis("Validation accuracy (%)")),
        _figure("Loss while training", "", losses, steps, loss_axis),
    )


def param_figures(data: ReportData) -> tuple[Figure, ...]:
    """Accuracy against each searched parameter; none before a trial is there to show."""
    accuracies = [100 * row.last.accuracy for row in data.rows_of(*LEGEND) if row.last]
    if not accuracies:
        return ()
    y_axis = _axis("Validation accuracy (%)", range=list(padded(accuracies)))
    return tuple(_param_figure(data, name, y_axis) for name in searched_params(data.config.search.space))


def _front_figure(view: View, unit: MemoryUnit) -> Figure:
    traces = [_scatter(view.of(standing), standing, unit) for standing in reversed(LEGEND)]
    traces[-1] |= {"mode": "markers+text", "cliponaxis": False, **_labels(view)}
    x_axis = _log_axis(view.x_span, short_count) if view.is_log else {"range": list(view.x_span)}
    y_axis = _axis("Validation accuracy (%)", range=list(view.y_span))
    note = f"{view.num_below} more below this axis: double-click the plot to see all." if view.num_below else ""
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


def _scatter(points: Sequence[Point], standing: Standing, unit: MemoryUnit) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
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
        "hovertext": [hover(point.row, unit) for point in points],
        "hoverinfo": "text",
    }


def _labels(view: View) -> Trace:
    """Trial numbers beside the front's points, where there is room on the narrowest screen; hovering tells the rest."""
    points = view.of(Standing.FRONT)
    texts = [str(point.row.number) for point in points]
    anchors = _pixels(view, [(point.x, point.y) for point in points])
    places = place_labels(anchors, texts, FONT, others=_pixels(view, view.obstacles))
    return {
        "text": [text if place else "" for text, place in zip(texts, places, strict=True)],
        "textfont": {"size": FONT_SIZE},
        "textposition": [TEXT_POSITIONS[place.side, place.level] if place else "top left" for place in places],
    }


def _pixels(view: View, places: Sequence[tuple[float, float]]) -> list[Pixel]:
    """Where points lie on the smallest screen that the page is made for."""
    left, right = _on_axis(view.x_span, is_log=view.is_log)
    bottom, top = view.y_span
    across = _on_axis([x for x, _ in places], is_log=view.is_log)
    up = [y for _, y in places]
    width, height = NARROW_PX
    return [
        (width * (x - left) / (right - left), height * (y - bottom) / (top - bottom))
        for x, y in zip(across, up, strict=True)
    ]


def _marker(standing: Standing) -> dict[str, Any]:
    style = STYLES[standing]
    shape = {"color": style.colour, "size": style.size, "symbol": "circle-open" if style.is_hollow else "circle"}
    return shape | {"line": {"width": 1.6}} if style.is_hollow else shape


def _curve(row: Row, values: Sequence[float | None], unit: MemoryUnit) -> Trace:
    is_front = row.standing is Standing.FRONT
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"trial {row.number}",
        "x": [at.steps for at in row.record.curve],
        "y": list(values),
        "opacity": 1 if is_front else 0.6,
        "line": {"color": STYLES[row.standing].colour, "width": 2.5 if is_front else 1.3},
        "marker": _marker(row.standing) | {"size": 6 if is_front else 5},
        "hovertext": [hover(row, unit, at) for at in row.record.curve],
        "hoverinfo": "text",
    }


def _is_wide(traces: Iterable[Trace]) -> bool:
    values = [value for trace in traces for value in trace["y"] if value]
    return bool(values) and max(values) > LOSS_RATIO_FOR_LOG * min(values)


def _param_figure(data: ReportData, name: str, y_axis: dict[str, Any]) -> Figure:
    dimension = dimension_of(data.config.search.space, name)
    choices: tuple[ParamValue, ...] = () if isinstance(dimension, Range) else tuple(dimension.choices)
    unit = memory_unit(data)
    traces = [_param_trace(data.rows_of(standing), name, choices, unit) for standing in reversed(LEGEND)]
    x_axis = _range_axis(dimension) if isinstance(dimension, Range) else _choices_axis(choices)
    figure = _figure(f"Accuracy against {name}", "", traces, _axis(name, **x_axis), y_axis)
    figure.plotly["layout"]["height"] = 280
    return figure


def _param_trace(rows: Sequence[Row], name: str, choices: Sequence[ParamValue], unit: MemoryUnit) -> Trace:
    sampled = [(row, row.last, row.params[name]) for row in rows if row.last and name in row.params]
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [_beside(choices.index(value), row.number) if choices else value for row, _, value in sampled],
        "y": [100 * last.accuracy for _, last, _ in sampled],
        "hovertext": [hover(row, unit) for row, _, _ in sampled],
        "hoverinfo": "text",
    }
    return trace | {"marker": _marker(rows[0].standing)} if rows else trace


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
    ends = _on_axis(span, is_log=True)
    return {"type": "log", "range": ends, "tickvals": [*ticks], "ticktext": texts, "tickangle": 0}


def _on_axis(values: Sequence[float], *, is_log: bool) -> list[float]:
    """Plotly takes the exponents of ten on a logarithmic axis."""
    return [math.log10(value) for value in values] if is_log else list(values)


def hover(row: Row, unit: MemoryUnit, at: Metrics | None = None) -> str:
    """What a trial says under the pointer, in Plotly's small subset of HTML.

    Args:
        row: The trial.
        unit: For its peak memory.
        at: The report to tell of; its newest by default.
    """
    at = at or row.last
    lines = [f"<b>Trial {row.number}</b> {row.standing.value}"]
    if at:
        lines.append(f"accuracy {with_error(at.accuracy, at.standard_error)}, loss {at.loss:.3f}, step {at.steps}")
        lines.append(f"{short_count(at.trainable_params)} parameters, {unit.text(at)}")
    lines += [f"{html.escape(name)}: {html.escape(param_text(value))}" for name, value in row.params.items()]
    return "<br>".join(lines)


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
