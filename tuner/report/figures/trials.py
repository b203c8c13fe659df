"""Trials as plots: their learning curves, and the metric against each setting. Pure; runs on the driver."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from tuner import metric_text
from tuner.dimensions import Range
from tuner.report.data import ReportData
from tuner.report.figures.axes import padded
from tuner.report.figures.plot import (
    BACK_TO_FRONT,
    Figure,
    Trace,
    axis,
    figure,
    finite,
    log_axis,
    marker,
    on_axis,
    scale_type,
    thinned,
    thinned_note,
)
from tuner.report.figures.views import SEARCHED, STYLES
from tuner.report.rows import Row, Standing
from tuner.report.words import dimension_of
from tuner.space import searched_params
from tuner.trial import param_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tuner.trial import Metrics, ParamValue

GOLDEN = 0.618
SMALL_PX = 280
"""Height of a plot among many."""
STOP_SYMBOL = "x-thin-open"
"""Where a trial was stopped."""


def curve_figures(data: ReportData) -> tuple[Figure, ...]:
    """Metric and loss of every trial over its steps; none before the first report."""
    metric = data.metric
    rows = {
        standing: thinned([row for row in data.rows_of(standing) if row.record.curve]) for standing in BACK_TO_FRONT
    }
    if not any(rows.values()):
        return ()
    values = [_curves(standing, some, lambda at: on_axis(metric, at)) for standing, some in rows.items() if some]
    losses = [_curves(standing, some, lambda at: finite(at.loss)) for standing, some in rows.items() if some]
    steps = axis("Optimizer steps", tickvals=list(data.config.rungs), rangemode="tozero")
    metric_axis = axis(metric_text.axis(metric), type="linear" if metric.is_share else scale_type(values))
    loss_axis = axis("Validation loss (nats)", type=scale_type(losses))
    note = " ".join(filter(None, (_thinned_words(data, standing) for standing in rows)))
    return (
        figure(f"{metric_text.title(metric)} while training", note, values, steps, metric_axis),
        figure("Loss while training", note, losses, steps, loss_axis),
    )


def param_figures(data: ReportData) -> tuple[Figure, ...]:
    """The metric against each searched parameter, over the search's trials; none before one is there to show."""
    values = [on_axis(data.metric, row.last) for row in data.rows_of(*SEARCHED) if row.last]
    known = [value for value in values if value is not None]
    if not known:
        return ()
    y_axis = axis(metric_text.axis(data.metric), range=list(padded(known)))
    return tuple(_param_figure(data, name, y_axis) for name in searched_params(data.config.search.space))


def _thinned_words(data: ReportData, standing: Standing) -> str:
    note = thinned_note(data.rows_of(standing))
    return f"{standing.value.capitalize()}: {note}" if note else ""


def _curves(standing: Standing, rows: Sequence[Row], value_of: Callable[[Metrics], float | None]) -> Trace:
    """All curves of a standing as one series, with gaps between trials: thousands of series would stall a browser."""
    is_front = standing is Standing.FRONT
    points = [(row, at) for row in rows for at in (*row.record.curve, None)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": standing.value,
        "x": [at.steps if at else None for _, at in points],
        "y": [value_of(at) if at else None for _, at in points],
        "opacity": 1 if is_front else 0.6,
        "line": {"color": STYLES[standing].colour, "width": 2.5 if is_front else 1.3},
        "marker": marker(standing) | {"size": 6 if is_front else 5, "symbol": _symbols(standing, points)},
        "customdata": [row.number for row, _ in points],
        "hoverinfo": "text",
    }


def _symbols(standing: Standing, points: Sequence[tuple[Row, Metrics | None]]) -> str | list[str]:
    """The standing's own, and a cross where a trial was stopped."""
    own = str(marker(standing)["symbol"])
    if standing is not Standing.STOPPED:
        return own
    return [STOP_SYMBOL if at is row.last else own for row, at in points]


def _param_figure(data: ReportData, name: str, y_axis: dict[str, Any]) -> Figure:
    dimension = dimension_of(data.config.search.space, name)
    choices: tuple[ParamValue, ...] = () if isinstance(dimension, Range) else tuple(dimension.choices)
    traces = [_param_trace(data, standing, name, choices) for standing in reversed(SEARCHED)]
    x_axis = _range_axis(dimension) if isinstance(dimension, Range) else _choices_axis(choices)
    title = f"{metric_text.title(data.metric)} against {name}"
    built = figure(title, "", traces, axis(name, **x_axis), y_axis)
    built.plotly["layout"]["height"] = SMALL_PX
    return built


def _param_trace(data: ReportData, standing: Standing, name: str, choices: Sequence[ParamValue]) -> Trace:
    rows = thinned(data.rows_of(standing))
    sampled = [(row, row.last, row.params[name]) for row in rows if row.last and name in row.params]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [_beside(choices.index(value), row.number) if choices else value for row, _, value in sampled],
        "y": [on_axis(data.metric, last) for _, last, _ in sampled],
        "customdata": [row.number for row, _, _ in sampled],
        "hoverinfo": "text",
        "marker": marker(standing),
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
    return log_axis(span, param_text) if dimension.log else {"range": list(span)}
