"""How the sweep went, as plots: the growth of the front, and what each worker did when. Pure; runs on the driver."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tuner.report.data import ReportData
from tuner.report.figures.plot import Figure, Trace, axis, figure
from tuner.report.figures.views import STYLES
from tuner.report.rows import Standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.report.findings.progress import Stretch

MOST_BARS = 2_000
"""Stretches of work that a browser draws at ease."""
SCORED = "#444b54"
"""Colour of work on the test data."""
LONG_S = 7200
"""A sweep longer than this is told in hours."""


def progress_figures(data: ReportData) -> tuple[Figure, ...]:
    """The hypervolume over time, and the workers' timeline; none of what the journal does not tell."""
    growth = (_growth_figure(data),) if data.growth else ()
    timeline = (_timeline_figure(data),) if data.timeline else ()
    return (*growth, *timeline)


def _growth_figure(data: ReportData) -> Figure:
    growth = data.growth
    assert growth is not None  # noqa: S101 -- asked before
    told = zip(growth.numbers, growth.steps, growth.volumes, strict=True)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [60 * hours for hours in growth.hours] or list(growth.steps),
        "y": [100 * volume for volume in growth.volumes],
        "line": {"color": STYLES[Standing.FRONT].colour, "width": 2, "shape": "hv"},
        "marker": {"size": 5},
        "customdata": list(growth.numbers),
        "hovertext": [
            f"trial {number}, after {steps:,} steps of the search: {volume:.1%}" for number, steps, volume in told
        ],
        "hoverinfo": "text",
    }
    label = "Time since the search began (minutes)" if growth.hours else "Optimizer steps of the search"
    x_axis = axis(label, rangemode="tozero")
    return figure(
        "The front's hypervolume as trials finished", "", [trace], x_axis, axis("% of the final", rangemode="tozero")
    )


def _timeline_figure(data: ReportData) -> Figure:
    timeline = data.timeline
    assert timeline is not None  # noqa: S101 -- asked before
    unit_s, unit = (3600.0, "hours") if timeline.length_s > LONG_S else (60.0, "minutes")
    shown = timeline.stretches[:MOST_BARS]
    standings = {row.number: row.standing for row in data.rows}
    grouped: dict[Standing | None, list[Stretch]] = defaultdict(list)
    for one in shown:
        grouped[standings.get(one.number)].append(one)
    traces = [_bars(standing, some, unit_s) for standing, some in grouped.items()]
    left_out = len(timeline.stretches) - len(shown)
    note = f"{left_out:,} later stretches of work are not drawn." if left_out else ""
    workers = list(range(timeline.num_workers))
    y_axis = axis("Worker", tickvals=workers, ticktext=[f"{worker + 1}" for worker in workers], autorange="reversed")
    built = figure("What each worker did", note, traces, axis(f"Time since the first worker began ({unit})"), y_axis)
    built.plotly["layout"] |= {"barmode": "overlay", "height": 130 + 32 * min(timeline.num_workers, 20)}
    return built


def _bars(standing: Standing | None, some: Sequence[Stretch], unit_s: float) -> Trace:
    colour = STYLES[standing].colour if standing else SCORED
    return {
        "type": "bar",
        "orientation": "h",
        "name": standing.value if standing else "scored on the test data",
        "base": [one.begun_s / unit_s for one in some],
        "x": [(one.ended_s - one.begun_s) / unit_s for one in some],
        "y": [one.worker for one in some],
        "marker": {"color": colour, "line": {"width": 1, "color": "rgba(255,255,255,0.7)"}},
        "customdata": [one.number if standing else None for one in some],
        "hovertext": [one.label for one in some],
        "hoverinfo": "text",
    }
