"""What mattered, as plots: importance of choices, accuracy and parameters against rank, ranks by module. Pure."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from tuner import metric_text
from tuner.layers import BANDS
from tuner.report.data import ReportData
from tuner.report.figures.axes import padded
from tuner.report.figures.plot import Figure, Trace, axis, figure, log_axis, marker, on_axis, thinned, thinned_note
from tuner.report.figures.views import SEARCHED, STYLES
from tuner.report.findings.ranks import Band, heat_of
from tuner.report.rows import Row, Standing
from tuner.report.words import scale_text, short_count
from tuner.trial import param_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.report.findings.importance import Importance

SCALE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#808894")
"""Lines of different scales; Okabe and Ito's."""
CHANCE_NAME = "a made-up choice (chance)"


def importance_figures(data: ReportData) -> tuple[Figure, ...]:
    """How much each choice mattered; none with too few trials."""
    found = data.importances
    if found is None:
        return ()
    values = [*reversed((*found.values, found.chance))]
    title = f"Share of the {metric_text.name(data.metric)}'s variance (fANOVA)"
    beside = "Part in being among the best quarter (PED-ANOVA)"
    return (
        _bars(values, title, [value.share for value in values]),
        _bars(values, beside, [value.top for value in values]),
    )


def rank_figures(data: ReportData) -> tuple[Figure, ...]:
    """Accuracy and parameters against rank, and the front's ranks by module and depth; none with fewer than two ranks."""
    placed = [row for row in data.rows_of(*SEARCHED) if row.last and row.number in data.mean_ranks]
    if len({data.mean_ranks[row.number] for row in placed}) < 2:  # noqa: PLR2004 -- something to compare
        return heat_figures(data)
    span = padded([data.mean_ranks[row.number] for row in placed], is_log=True)
    x_axis = axis("Mean rank of the adapted modules (log scale)", **log_axis(span, param_text))
    effect = (_effect_figure(data, x_axis),) if data.rank_effect else ()
    return (*effect, _params_figure(data, placed, x_axis), *heat_figures(data))


def heat_figures(data: ReportData) -> tuple[Figure, ...]:
    """Ranks by module and depth band, the mean over the front; the page shows one trial's where one is selected."""
    layers = data.inspection.model.layers
    heat = heat_of((row.record for row in data.front), layers) if data.front and layers else {}
    if not heat:
        return ()
    modules = [*dict.fromkeys(module for module, _ in heat)][::-1]
    grids = [_grid(heat, modules, place) for place in (None, *range(len(data.front)))]
    trace = {
        "type": "heatmap",
        "x": [f"{band} third" for band in BANDS],
        "y": [html.escape(module) for module in modules],
        "z": grids[0],
        "text": [[param_text(cell) if cell is not None else "" for cell in line] for line in grids[0]],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, %{x}: rank %{z:.3g}<extra></extra>",
        "colorscale": [[0, "rgba(0,114,178,0.04)"], [1, "rgba(0,114,178,0.9)"]],
        "zmin": 0,
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "meta": {"grids": dict(zip([row.number for row in data.front], grids[1:], strict=True)), "mean": grids[0]},
    }
    plain = axis("", showgrid=False)
    built = figure(
        "Ranks on the front, by module and depth", "0: not adapted. Mean over the front.", [trace], plain, plain
    )
    built.plotly["layout"]["height"] = 120 + 34 * len(modules)
    return (built,)


def _grid(
    heat: dict[tuple[str, str], tuple[float, ...]], modules: Sequence[str], place: int | None
) -> list[list[float | None]]:
    """Rows by module of the rank in each depth band: the mean over all trials, or that of one."""

    def cell(module: str, band: str) -> float | None:
        ranks = heat.get((module, band))
        if ranks is None:
            return None
        return sum(ranks) / len(ranks) if place is None else ranks[place]

    return [[cell(module, band) for band in BANDS] for module in modules]


def _bars(values: Sequence[Importance], title: str, shares: Sequence[Any]) -> Figure:
    names = [html.escape(value.name) or CHANCE_NAME for value in values]
    colours = [_bar_colour(value) for value in values]
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "x": [100 * share.mean for share in shares],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [100 * max(0.0, share.high - share.mean) for share in shares],
            "arrayminus": [100 * max(0.0, share.mean - share.low) for share in shares],
            "thickness": 1.4,
            "width": 4,
        },
        "marker": {"color": colours},
        "hovertemplate": "%{y}: %{x:.0f}%<extra></extra>",
    }
    built = figure(title, "", [trace], axis("%, with its 95% interval", range=[0, 100]), axis(""))
    built.plotly["layout"]["height"] = 110 + 30 * len(values)
    return built


def _bar_colour(value: Importance) -> str:
    return STYLES[Standing.FRONT if value.matters else Standing.FINISHED].colour


def _effect_figure(data: ReportData, x_axis: dict[str, Any]) -> Figure:
    effect = data.rank_effect
    assert effect is not None  # noqa: S101 -- asked before
    bands = [_band_trace(data, band, place) for place, band in enumerate(effect.bands)]
    finished = data.rows_of(Standing.FRONT, Standing.FINISHED)
    behind = _scatter(data, finished, lambda row: row.last and on_axis(data.metric, row.last))
    y_axis = axis(metric_text.axis(data.metric), range=list(padded([y for trace in bands for y in trace["y"]])))
    title = f"{metric_text.title(data.metric)} against rank, each at the best learning rate found"
    built = figure(title, thinned_note(data.rows_of(Standing.FINISHED)), [*behind, *bands], x_axis, y_axis)
    built.plotly["layout"] |= {"showlegend": True, "legend": {"orientation": "h", "y": -0.2}}
    return built


def _band_trace(data: ReportData, band: Band, place: int) -> Trace:
    lasts = [(at, at.record.last) for at in band.best]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": scale_text(band.scale),
        "x": [at.rank for at in band.best],
        "y": [on_axis(data.metric, last) if last else None for _, last in lasts],
        "error_y": {
            "array": [metric_text.scaled(data.metric, last.standard_error) if last else 0 for _, last in lasts],
            "thickness": 1.2,
            "width": 3,
        },
        "line": {"color": SCALE_COLOURS[place % len(SCALE_COLOURS)], "width": 2},
        "marker": {"size": 9},
        "customdata": [at.record.number for at in band.best],
        "hoverinfo": "text",
    }


def _params_figure(data: ReportData, rows: Sequence[Row], x_axis: dict[str, Any]) -> Figure:
    span = padded([float(row.last.trainable_params) for row in rows if row.last], is_log=True)
    y_axis = axis("Trainable parameters (log scale)", **log_axis(span, short_count))
    traces = _scatter(data, rows, lambda row: row.last.trainable_params if row.last else None)
    return figure("Trainable parameters against rank", thinned_note(rows), traces, x_axis, y_axis)


def _scatter(data: ReportData, rows: Sequence[Row], value_of: Any) -> list[Trace]:  # noqa: ANN401 -- a small function
    """One series per standing, those not on the front faint."""
    shown = thinned(rows)
    traces = []
    for standing in reversed(SEARCHED):
        some = [row for row in shown if row.standing is standing and row.number in data.mean_ranks]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": standing.value,
                "showlegend": False,
                "opacity": 0.8 if standing is Standing.FRONT else 0.45,
                "x": [data.mean_ranks[row.number] for row in some],
                "y": [value_of(row) for row in some],
                "marker": marker(standing),
                "customdata": [row.number for row in some],
                "hoverinfo": "text",
            }
        )
    return traces
