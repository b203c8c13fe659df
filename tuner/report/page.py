"""ReportData -> report.html: one file that needs no network, drawn by Plotly in the browser. Runs on the driver."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tuner import metric_text
from tuner.report import words
from tuner.report.data import ReportData, Row, Standing
from tuner.report.figures import Figure, curve_figures, front_figures, param_figures
from tuner.report.listing import baselines_table, trials_table
from tuner.report.settings import settings
from tuner.report.stopping import audit_table, audit_text, evidence, savings, stop_counts
from tuner.report.views import LEGEND, SEARCHED, STYLES, legend_of
from tuner.trial import param_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A recommended trial; one card where several rules choose the same."""

    rules: tuple[str, ...]
    """Words for the rules that chose it."""
    row: Row
    """The trial."""
    command: str
    """What exports it."""


def report_html(data: ReportData) -> str:
    """Build the page."""
    environment = Environment(
        loader=PackageLoader("tuner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "param": param_text,
        "duration": words.duration,
        "counted": words.counted,
    }
    sections = _sections(data)
    return environment.get_template("report.html.j2").render(
        data=data,
        headline=words.headline(data),
        cards=build_cards(data),
        sections=sections,
        figures={name: [figure.plotly for figure in figures] for name, figures in sections.items()},
        legend=[(STYLES[standing], text) for standing, text in legend_of(data).items()],
        params_legend=[(STYLES[standing], LEGEND[standing]) for standing in SEARCHED],
        curve_legend=[(STYLES[standing], standing.value) for standing in _seen(data)],
        trials=trials_table(data),
        baselines=baselines_table(data) if data.baselines else None,
        stop_counts=stop_counts(data),
        savings=savings(data),
        audit_text=audit_text(data),
        audit=audit_table(data),
        evidence=evidence(data),
        unit=words.memory_unit(data),
        settings=settings(data),
        metric_name=metric_text.name(data.metric),
        metric_title=metric_text.title(data.metric),
        best=metric_text.best(data.metric),
        value=lambda last: words.result(data, last).partition(metric_text.NO_BREAK_SPACE)[0],
        error=lambda last: words.result(data, last).partition(metric_text.NO_BREAK_SPACE)[2],
        objectives=[words.objective_text(objective) for objective in data.objectives],
        memory_words=words.MEMORY_KINDS,
        plotly_js=get_plotlyjs(),
    )


def build_cards(data: ReportData) -> tuple[Card, ...]:
    """The picks, each trial once."""
    rules: dict[int, list[str]] = {}
    for pick in data.picks:
        rules.setdefault(pick.row.number, []).append(pick.words)
    rows = {pick.row.number: pick.row for pick in data.picks}
    return tuple(
        Card(rules=tuple(chosen_by), row=rows[number], command=export_command(data, number))
        for number, chosen_by in rules.items()
    )


def export_command(data: ReportData, number: int) -> str:
    """The command line that exports a trial, ready for a shell."""
    target = f"{data.config.name}-trial-{number}"
    return shlex.join(["tuner", "export", data.folder, "--to", target, "--pick", f"trial:{number}"])


def _sections(data: ReportData) -> dict[str, tuple[Figure, ...]]:
    return {"front": front_figures(data), "curves": curve_figures(data), "params": param_figures(data)}


def _seen(data: ReportData) -> list[Standing]:
    return [standing for standing in Standing if any(row.record.curve for row in data.rows_of(standing))]
