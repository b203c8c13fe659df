"""ReportData -> report.html: one file that needs no network, drawn by Plotly in the browser. Runs on the driver."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from tuner.report import words
from tuner.report.data import ReportData, Row, Standing
from tuner.report.figures import Figure, curve_figures, front_figures, param_figures
from tuner.report.views import LEGEND, STYLES
from tuner.space import searched_params
from tuner.trial import param_text

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.trial import ParamValue


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A recommended trial; one card where several rules choose the same."""

    rules: tuple[str, ...]
    """Words for the rules that chose it."""
    row: Row
    """The trial."""
    command: str
    """What exports it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the table of trials."""

    text: str
    """What it shows; empty where unknown."""
    key: float | str | None
    """What it is sorted by; None goes last."""


def report_html(data: ReportData) -> str:
    """Build the page."""
    environment = Environment(
        loader=PackageLoader("tuner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": words.percent, "param": param_text, "duration": words.duration}
    sections = _sections(data)
    return environment.get_template("report.html.j2").render(
        data=data,
        headline=words.headline(data),
        cards=build_cards(data),
        sections=sections,
        figures={name: [figure.plotly for figure in figures] for name, figures in sections.items()},
        legend=[(STYLES[standing], text) for standing, text in LEGEND.items()],
        curve_legend=[(STYLES[standing], standing.value) for standing in _seen(data)],
        table_head=_table_head(data),
        table_rows=[(row, _table_cells(data, row)) for row in data.rows],
        failed=data.rows_of(Standing.FAILED),
        unit=words.memory_unit(data),
        settings=settings(data),
        objectives=[words.OBJECTIVES[objective] for objective in data.objectives],
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


def settings(data: ReportData) -> tuple[tuple[str, str], ...]:
    """(name, value) of what the sweep ran with; file names without their folders, so that no machine shows."""
    return (
        *_data_settings(data),
        *_training_settings(data.config),
        *_search_settings(data.config),
        *_cost_settings(data),
    )


def _sections(data: ReportData) -> dict[str, tuple[Figure, ...]]:
    return {"front": front_figures(data), "curves": curve_figures(data), "params": param_figures(data)}


def _seen(data: ReportData) -> list[Standing]:
    return [standing for standing in Standing if any(row.record.curve for row in data.rows_of(standing))]


def _data_settings(data: ReportData) -> tuple[tuple[str, str], ...]:
    found, config = data.inspection, data.config.data
    return (
        ("Data", Path(config.path).name),
        ("Examples", f"{found.num_train:,} train, {found.num_validation:,} validation, {found.num_test:,} put aside"),
        (f"Classes ({len(found.labels)})", ", ".join(found.labels)),
        ("Most frequent class", f"{words.percent(found.majority_share)} of the validation data"),
        ("Longest input", f"{config.max_length} tokens"),
    )


def _training_settings(config: SweepConfig) -> tuple[tuple[str, str], ...]:
    model, training = config.model, config.training
    base = "linear layers in NF4 (QLoRA)" if model.quantization == "nf4" else "not quantized (LoRA)"
    return (
        ("Base model", f"{Path(model.name).name}, {base}, compute type {model.compute_dtype}"),
        ("Training", f"{training.max_steps:,} steps of {training.batch_size} examples"),
        ("Schedule", f"{training.lr_scheduler_type}, warm-up over {words.percent(training.warmup_ratio)} of the steps"),
        ("Training seed", f"{training.seed}, the same for all trials"),
    )


def _search_settings(config: SweepConfig) -> tuple[tuple[str, str], ...]:
    search, pruning = config.search, config.pruning
    rungs = ", ".join(f"{rung:,}" for rung in config.rungs)
    rule = f"pareto, {words.percent(pruning.confidence)} sure" if pruning.method == "pareto" else "none"
    searched = tuple((name, words.dimension_text(search.space, name)) for name in searched_params(search.space))
    return (
        ("Sampler", f"{search.sampler}, seed {search.seed}, {search.num_trials} trials"),
        ("Evaluated at steps", rungs),
        ("Stopping early", rule),
        *((f"Searched: {name}", text) for name, text in searched),
    )


def _cost_settings(data: ReportData) -> tuple[tuple[str, str], ...]:
    budget = data.budget
    saved = f"{words.percent(budget.saved_share)} less than the {budget.steps_without_pruning:,} without stopping early"
    steps = ("Steps trained", f"{budget.steps:,}, {saved}" if budget.saved_share else f"{budget.steps:,}")
    if data.memory_kind is None:
        return (steps,)
    return (steps, ("Peak memory", f"{data.memory_kind.value}: {words.MEMORY_KINDS[data.memory_kind]}"))


def _table_head(data: ReportData) -> tuple[tuple[str, str], ...]:
    """(heading, alignment) of each column."""
    numbers = (
        "Steps",
        "Accuracy (%)",
        "Loss (nats)",
        "Parameters",
        f"Memory ({words.memory_unit(data).name})",
        "Time (s)",
    )
    names = searched_params(data.config.search.space)
    return (
        ("Trial", "number"),
        ("State", ""),
        *((name, "number") for name in numbers),
        *((name, "") for name in names),
    )


def _table_cells(data: ReportData, row: Row) -> tuple[Cell, ...]:
    """The cells after number and state."""
    params = row.params
    names = searched_params(data.config.search.space)
    sampled = (_param_cell(params[name]) if name in params else Cell(text="", key=None) for name in names)
    return (*_measured_cells(data, row), *sampled)


def _param_cell(value: ParamValue) -> Cell:
    return Cell(text=param_text(value), key=value if isinstance(value, (int, float)) else str(value))


def _measured_cells(data: ReportData, row: Row) -> tuple[Cell, ...]:
    last = row.last
    if last is None:
        return (Cell(text="", key=None),) * 6
    peak = words.memory_unit(data).of(last)
    error = 100 * last.standard_error
    return (
        Cell(text=f"{last.steps:,}", key=last.steps),
        Cell(text=f"{100 * last.accuracy:.1f} ± {error:.1f}", key=last.accuracy),
        Cell(text=f"{last.loss:.3f}", key=last.loss),
        Cell(text=f"{last.trainable_params:,}", key=last.trainable_params),
        Cell(text=f"{peak:,.2f}", key=peak),
        Cell(text=f"{last.train_s:,.1f}", key=last.train_s),
    )
