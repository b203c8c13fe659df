"""Compared -> compare.html and compare.json: one file that needs no network. Runs on the driver."""

from __future__ import annotations

import html
import importlib.metadata
import json
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.front import Objective
from tuner.report import answers, words
from tuner.report.compare import Compared, Entry, compared_json, table
from tuner.report.figures.axes import padded
from tuner.report.figures.plot import Figure, Trace, axis, figure, hover, log_axis, on_axis
from tuner.report.page import environment, packed, packed_plotly, plotly_of
from tuner.report.rows import Standing
from tuner.report.writing import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tuner.report.rows import Row
    from tuner.trial import Metrics

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9", "#808894", "#9a8f00")
"""Okabe and Ito's colour-blind safe palette (orange and yellow darker)."""


def write_comparison(compared: Compared, folder: Path) -> tuple[Path, ...]:
    """Write compare.html and compare.json into a folder, which is made where it is missing.

    Returns:
        The files written.

    Raises:
        OSError: A file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = json.dumps(compared_json(compared), indent=1, allow_nan=False) + "\n"
    contents = {"compare.html": comparison_html(compared), "compare.json": numbers}
    return tuple(replace_file(folder / name, text.encode()) for name, text in contents.items())


def comparison_html(compared: Compared) -> str:
    """Build the page."""
    data = compared.entries[0].data
    sections = {"front": _figures(compared)}
    head, rows = table(compared)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            compared=compared,
            version=importlib.metadata.version("tuner"),
            data=data,
            answers=answers,
            head=head,
            rows=rows,
            keys=[(COLOURS[place % len(COLOURS)], entry.label) for place, entry in enumerate(compared.entries)],
            objectives=[words.objective_text(objective) for objective in compared.objectives],
            sections=sections,
            packed=packed({"figures": plotly_of(sections)}),
            plotly=packed_plotly(),
        )
    )


def _figures(compared: Compared) -> tuple[Figure, ...]:
    """The fronts over each other, by each cost that all weigh."""
    metric = compared.entries[0].data.metric
    unit = max((words.memory_unit(entry.data) for entry in compared.entries), key=lambda unit: unit.num_bytes)
    costs: dict[Objective, tuple[str, Callable[[Metrics], float]]] = {
        Objective.TRAINABLE_PARAMS: ("Trainable parameters (log scale)", lambda last: float(last.trainable_params)),
        Objective.PEAK_MEMORY_GIB: (f"Peak memory ({unit.name})", unit.of),
    }
    built = []
    for objective, (label, cost_of) in costs.items():
        if objective not in compared.objectives:
            continue
        traces = [trace for place, entry in enumerate(compared.entries) for trace in _traces(entry, place, cost_of)]
        is_log = objective is Objective.TRAINABLE_PARAMS
        values = [x for trace in traces for x in trace["x"]]
        span = padded([value for value in values if value > 0 or not is_log], is_log=is_log)
        x_axis = log_axis(span, words.short_count) if is_log else {"range": list(span)}
        title = f"{metric_text.title(metric)} against {words.objective_text(objective)}"
        built.append(figure(title, "", traces, axis(label, **x_axis), axis(metric_text.axis(metric))))
    return tuple(built)


def _traces(entry: Entry, place: int, cost_of: Callable[[Metrics], float]) -> list[Trace]:
    """A sweep's front as a line of points, those on the common front filled; its other finished trials faint."""
    colour = COLOURS[place % len(COLOURS)]
    common = {row.number for row in entry.on_common_front}
    front = sorted(entry.data.front, key=lambda row: cost_of(row.last) if row.last else 0.0)
    symbols = ["circle" if row.number in common else "circle-open" for row in front]
    behind = _points(entry, entry.data.rows_of(Standing.FINISHED), cost_of)
    line = _points(entry, front, cost_of) | {
        "mode": "lines+markers",
        "line": {"color": colour, "width": 1.5, "dash": "dot"},
        "marker": {"color": colour, "size": 10, "symbol": symbols},
        "error_y": {
            "array": [metric_text.scaled(entry.data.metric, row.last.standard_error) for row in front if row.last],
            "thickness": 1.2,
            "width": 3,
        },
    }
    return [behind | {"mode": "markers", "opacity": 0.35, "marker": {"color": colour, "size": 6}}, line]


def _points(entry: Entry, rows: tuple[Row, ...] | list[Row], cost_of: Callable[[Metrics], float]) -> Trace:
    known = [(row, row.last) for row in rows if row.last]
    return {
        "type": "scatter",
        "name": html.escape(entry.label),
        "x": [cost_of(last) for _, last in known],
        "y": [on_axis(entry.data.metric, last) for _, last in known],
        "hovertext": [hover(entry.data, row) for row, _ in known],
        "hoverinfo": "text+name",
    }
