"""ReportData -> what the sweep ran with, as pairs of words for the page. Pure; runs on the driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tuner.report import foretold, words
from tuner.report.data import ReportData
from tuner.space import searched_params

if TYPE_CHECKING:
    from tuner.config import DataConfig, SweepConfig, TrainingConfig

Pairs = tuple[tuple[str, str], ...]
"""(name, value)."""

OPTIMIZERS = {"adamw": "AdamW", "paged_adamw_8bit": "AdamW with its state in 8 bits, paged out"}


def settings(data: ReportData) -> Pairs:
    """(name, value) of what the sweep ran with; file names without their folders, so that no machine shows."""
    return (
        *_data_settings(data),
        *_training_settings(data.config),
        *_search_settings(data.config),
        *_cost_settings(data),
    )


def _data_settings(data: ReportData) -> Pairs:
    found, config = data.inspection, data.config
    is_classified = config.training.task == "classification"
    classes = ((f"Classes ({len(found.labels)})", ", ".join(found.labels)),) if is_classified else ()
    return (
        ("Task", "classification" if is_classified else "causal language model: write the completion of a prompt"),
        ("Data", _source(config.data)),
        ("Examples", f"{found.num_train:,} train, {found.num_validation:,} validation, {found.num_test:,} put aside"),
        *_scored_before_the_end(data),
        *_left_out(data),
        *classes,
        (words.majority_name(config), f"{words.percent(found.majority_share)} of the validation data"),
        ("Longest input" if is_classified else "Longest example", f"{config.data.max_length} tokens"),
    )


def _scored_before_the_end(data: ReportData) -> Pairs:
    num_validation = data.inspection.num_validation
    num = data.config.pruning.num_scored(num_validation)
    if num == num_validation:
        return ()
    return (("Scored on before the last rung", f"{num:,} of the validation examples, the same for all trials"),)


def _source(config: DataConfig) -> str:
    if config.path is not None:
        return Path(config.path).name
    parts = (
        config.name or "",
        config.subset and f"subset {config.subset}",
        config.revision and f"at {config.revision}",
    )
    return ", ".join(part for part in parts if part) + " (hub)"


def _left_out(data: ReportData) -> Pairs:
    counts = (
        (data.inspection.num_duplicates, "whose input came before"),
        (data.inspection.num_too_long, f"longer than {data.config.data.max_length} tokens"),
    )
    reasons = [f"{number:,} {reason}" for number, reason in counts if number]
    return (("Examples left out", ", ".join(reasons)),) if reasons else ()


def _training_settings(config: SweepConfig) -> Pairs:
    model, training = config.model, config.training
    base = words.QUANTIZATIONS[model.quantization]
    return (
        ("Base model", f"{Path(model.name).name}, {base}, compute type {model.compute_dtype}"),
        ("Training", f"{training.max_steps:,} steps of {_batch(training)}"),
        ("Optimizer", OPTIMIZERS[training.optimizer]),
        ("Schedule", f"{training.lr_scheduler_type}, warm-up over {words.percent(training.warmup_ratio)} of the steps"),
        ("Training seed", f"{training.seed}, the same for all trials"),
    )


def _batch(training: TrainingConfig) -> str:
    """The examples of a step, and how they go through the model."""
    times, size = training.gradient_accumulation_steps, training.batch_size
    parts = (
        f"{times} x {size} examples (gradient accumulation)" if times > 1 else f"{size} examples",
        "short ones packed into rows" if training.packing else "",
        "gradient checkpointing" if training.gradient_checkpointing else "",
    )
    return ", ".join(part for part in parts if part)


def _search_settings(config: SweepConfig) -> Pairs:
    search, pruning = config.search, config.pruning
    rungs = ", ".join(f"{rung:,}" for rung in config.rungs)
    rule = f"pareto, {words.percent(pruning.confidence)} sure" if pruning.method == "pareto" else pruning.method
    audit = f"{words.counted(pruning.audit, 'stopped trial')}, drawn at random, finished after all"
    searched = tuple((name, words.dimension_text(search.space, name)) for name in searched_params(search.space))
    return (
        ("Sampler", f"{search.sampler}, seed {search.seed}, {search.num_trials} trials"),
        ("Evaluated at steps", rungs),
        ("Stopping early", rule),
        *((("Audit", audit),) if pruning.audit else ()),
        *((f"Searched: {name}", text) for name, text in searched),
    )


def _cost_settings(data: ReportData) -> Pairs:
    budget = data.budget
    saved = f"{words.percent(budget.saved_share)} less than the {budget.steps_without_pruning:,} without stopping early"
    steps = ("Steps trained", f"{budget.steps:,}, {saved}" if budget.saved_share else f"{budget.steps:,}")
    if data.memory_kind is None:
        return (steps,)
    memory = ("Peak memory", f"{data.memory_kind.value}: {words.MEMORY_KINDS[data.memory_kind]}")
    return (steps, memory, *foretold.settings(data))
