"""What all plots of the page share: axes, markers, layout, and what a trial says under the pointer. Pure; runs on the driver."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tuner import metric_text
from tuner.report.data import ReportData
from tuner.report.figures.axes import log_ticks, on_scale
from tuner.report.figures.views import LEGEND, STYLES
from tuner.report.rows import Row, Standing
from tuner.report.words import memory_unit, result, short_count
from tuner.trial import Metric, param_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tuner.trial import Metrics

Trace = dict[str, Any]
"""One series in Plotly's words. `customdata` holds trial numbers, by which the page links plots and finds what to say."""

T = TypeVar("T")

GRID = "rgba(128,128,128,0.22)"
RATIO_FOR_LOG = 20
"""Losses and perplexities that lie further apart get a logarithmic axis."""
MOST_DRAWN = 1_000
"""Points or lines of one standing that a plot draws; of more, every so many-th is drawn, and the plot says so."""
BACK_TO_FRONT = tuple(reversed(LEGEND))


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One plot of the page."""

    title: str
    """Its heading, and its name for screen readers."""
    note: str
    """A line under the plot; may be empty."""
    plotly: dict[str, Any]
    """`data` and `layout`, as Plotly takes them."""


def hover(data: ReportData, row: Row, at: Metrics | None = None) -> str:
    """What a trial says under the pointer, in Plotly's small subset of HTML.

    Args:
        data: The report that it belongs to.
        row: The trial.
        at: The report to tell of; its newest by default.
    """
    at = at or row.last
    lines = [f"<b>{row.label}</b>{f' {row.standing.value}' if row.is_searched else ''}"]
    lines += [html.escape(text) for text in (row.reason, row.stop) if text]
    if at:
        lines.append(f"{metric_text.name(data.metric)} {result(data, at)}, loss {at.loss:.3f}, step {at.steps}")
        others = [(Metric(name), value) for name, value in at.others]
        lines += [f"{metric_text.name(metric)} {metric_text.text(metric, value)}" for metric, value in others]
        lines.append(f"{short_count(at.trainable_params)} parameters, {memory_unit(data).text(at)}")
    lines += [f"{html.escape(name)}: {html.escape(param_text(value))}" for name, value in row.params.items()]
    return "<br>".join(lines)


def marker(standing: Standing) -> dict[str, Any]:
    """How trials of a standing are drawn."""
    style = STYLES[standing]
    symbol = ("diamond" if style.is_diamond else "circle") + ("-open" if style.is_hollow else "")
    shape = {"color": style.colour, "size": style.size, "symbol": symbol}
    return shape | {"line": {"width": 1.6}} if style.is_hollow else shape


def scale_type(traces: Iterable[Trace]) -> str:
    """Of an axis for values above 0: logarithmic where they lie far apart."""
    values = [value for trace in traces for value in trace["y"] if value]
    return "log" if values and max(values) > RATIO_FOR_LOG * min(values) else "linear"


def log_axis(span: tuple[float, float], text_of: Callable[[float], str]) -> dict[str, Any]:
    """Plotly's own logarithmic ticks are bare 2 and 5 between the powers of ten."""
    ticks = log_ticks(span)
    texts = [text_of(tick) for tick in ticks]
    ends = on_scale(span, is_log=True)
    return {"type": "log", "range": ends, "tickvals": [*ticks], "ticktext": texts, "tickangle": 0}


def on_axis(metric: Metric, at: Metrics) -> float | None:
    """A report's metric on its axis; None where it has no place."""
    return finite(metric_text.scaled(metric, at.accuracy))


def finite(value: float) -> float | None:
    """The value, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def axis(label: str, **settings: object) -> dict[str, Any]:
    """An axis in the page's look."""
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


def figure(title: str, note: str, traces: Sequence[Trace], x_axis: dict[str, Any], y_axis: dict[str, Any]) -> Figure:
    """A plot in the page's look."""
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


def thinned(rows: Sequence[T]) -> Sequence[T]:
    """Every so many-th of more trials than a browser draws at ease."""
    return rows[:: math.ceil(len(rows) / MOST_DRAWN)] if len(rows) > MOST_DRAWN else rows


def thinned_note(rows: Sequence[object]) -> str:
    """What a plot says of the trials that it leaves out; empty where it draws all."""
    num = len(thinned(rows))
    return f"{num:,} of {len(rows):,} trials are drawn." if num < len(rows) else ""
