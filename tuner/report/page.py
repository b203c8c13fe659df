"""ReportData -> report.html: one file that needs no network, drawn by Plotly in the browser. Runs on the driver."""

from __future__ import annotations

import base64
import functools
import gzip
import json
import math
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tuner import metric_text
from tuner.report import answers, reproduce, words
from tuner.report.data import ReportData
from tuner.report.figures import (
    Figure,
    curve_figures,
    front_figures,
    hover,
    importance_figures,
    param_figures,
    progress_figures,
    rank_figures,
)
from tuner.report.figures.views import LEGEND, SEARCHED, STYLES, legend_of
from tuner.report.listing import Cell, Table, baselines_table, front_table, trials_table
from tuner.report.rows import Standing
from tuner.report.settings import settings
from tuner.report.stopping import audit_table, audit_text, evidence, savings, stop_counts
from tuner.trial import param_text

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_LISTED = 200
"""Stopped or failed trials that are told of one by one; the tables hold all."""


def report_html(data: ReportData, *, refresh_s: int | None = None) -> str:
    """Build the page.

    Args:
        data: What it shows.
        refresh_s: Seconds after which a browser loads it anew, while a sweep runs; never by default.
    """
    sections = _sections(data)
    trials = trials_table(data)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            data=data,
            refresh_s=refresh_s,
            headline=answers.headline(data),
            cards=answers.build_cards(data),
            comparisons=answers.comparisons(data),
            tied=answers.ringed(data),
            best_row=answers.best_of(data),
            unscored=answers.failed_scores_text(data),
            sections=sections,
            packed=packed({"figures": plotly_of(sections), "texts": _texts(data), "trials": _rows_of(trials)}),
            plotly=packed_plotly(),
            legend=[(STYLES[standing], text) for standing, text in legend_of(data).items()],
            params_legend=[(STYLES[standing], LEGEND[standing]) for standing in SEARCHED],
            curve_legend=[(STYLES[standing], standing.value) for standing in _seen(data)],
            trials=trials,
            front=front_table(data),
            baselines=baselines_table(data) if data.baselines else None,
            stop_counts=stop_counts(data),
            savings=savings(data),
            audit_text=audit_text(data),
            audit=audit_table(data),
            evidence=evidence(data),
            most_listed=MOST_LISTED,
            settings=settings(data),
            reproduction=reproduce.facts(data),
            command=reproduce.command(data),
            sweep_yaml=reproduce.sweep_yaml(data),
            metric_name=metric_text.name(data.metric),
            metric_title=metric_text.title(data.metric),
            best=metric_text.best(data.metric),
            objectives=[words.objective_text(objective) for objective in data.objectives],
            memory_words=words.MEMORY_KINDS,
            answers=answers,
        )
    )


def environment() -> Environment:
    """Templates with all text escaped, and the words that they use."""
    built = Environment(
        loader=PackageLoader("tuner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    built.filters |= {
        "percent": words.percent,
        "param": param_text,
        "duration": words.duration,
        "counted": words.counted,
    }
    return built


def packed(values: object) -> str:
    """Values as JSON, compressed and in base64, which holds no sign that means anything in HTML; a browser unpacks it."""
    return _compressed(json.dumps(values, separators=(",", ":"), allow_nan=False).encode())


@functools.cache
def packed_plotly() -> str:
    """Plotly itself, compressed: 1.9 MB in place of 4.8."""
    return _compressed(get_plotlyjs().encode())


def plotly_of(sections: Mapping[str, tuple[Figure, ...]]) -> dict[str, list[dict[str, Any]]]:
    """Section -> what Plotly draws there."""
    return {name: [figure.plotly for figure in figures] for name, figures in sections.items()}


def _compressed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _sections(data: ReportData) -> dict[str, tuple[Figure, ...]]:
    return {
        "front": front_figures(data),
        "importance": importance_figures(data),
        "ranks": rank_figures(data),
        "params": param_figures(data),
        "curves": curve_figures(data),
        "progress": progress_figures(data),
    }


def _texts(data: ReportData) -> dict[int, str]:
    """What each trial says under the pointer, once for all plots."""
    return {row.number: hover(data, row) for row in data.rows}


def _rows_of(table: Table) -> list[list[Any]]:
    """Rows as the page's script builds them: number, mark, state, badge, then (text, sort key, title) of each cell."""
    return [
        [
            row.number,
            row.mark,
            row.record.state.value,
            _badge(row.standing),
            [_cell_of(cell) for cell in cells],
        ]
        for row, cells in table.rows
    ]


def _cell_of(cell: Cell) -> list[Any]:
    key = None if isinstance(cell.key, float) and not math.isfinite(cell.key) else cell.key
    return [cell.text, key, cell.title] if cell.title else [cell.text, key]


def _badge(standing: Standing) -> str:
    badges = {
        Standing.FRONT: "front",
        Standing.BASELINE: "baseline",
        Standing.AUDIT: "audit",
        Standing.CONFIRMED: "other seed",
    }
    return badges.get(standing, "")


def _seen(data: ReportData) -> list[Standing]:
    return [standing for standing in Standing if any(row.record.curve for row in data.rows_of(standing))]
