"""What is right alone in a sweep file and impossible together: the checks that span keys and sections. Runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tuner.config import (
    METRICS,
    BaselinesConfig,
    DataConfig,
    ModelConfig,
    ObjectivesConfig,
    Place,
    PruningConfig,
    SearchConfig,
    TrainingConfig,
)
from tuner.dimensions import Section, options_of
from tuner.layers import parse_selector
from tuner.resources_config import ResourcesConfig
from tuner.space_config import InitName
from tuner.trial import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def combination_problems(sections: Mapping[str, object]) -> Iterator[tuple[Place, str]]:
    """Yield (place, message) for values that are right alone and impossible together.

    Args:
        sections: Top key of the file -> what it holds, parsed; those that failed their own checks left out.
    """
    known = _Known(sections)
    yield from _source_problems(known)
    yield from _rung_problems(known)
    yield from _floor_problems(known)
    yield from _task_problems(known)
    yield from _space_problems(known)
    yield from _quantization_problems(known)
    yield from _resource_problems(known)
    yield from _memory_problems(known)
    yield from _logging_problems(known)


class _Known:
    """The sections that passed their own checks; None in place of the others."""

    def __init__(self, sections: Mapping[str, object]) -> None:
        self.model = _as(ModelConfig, sections.get("model"))
        self.data = _as(DataConfig, sections.get("data"))
        self.training = _as(TrainingConfig, sections.get("training"))
        self.search = _as(SearchConfig, sections.get("search"))
        self.objectives = _as(ObjectivesConfig, sections.get("objectives"))
        self.pruning = _as(PruningConfig, sections.get("pruning"))
        self.resources = _as(ResourcesConfig, sections.get("resources"))
        self.baselines = _as(BaselinesConfig, sections.get("baselines"))
        self.is_logging = bool(sections.get("logging"))


SectionKind = TypeVar("SectionKind", bound=Section)


def _as(kind: type[SectionKind], section: object) -> SectionKind | None:
    return section if isinstance(section, kind) else None


def _source_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.data is not None and (known.data.path is None) == (known.data.name is None):
        got = "both" if known.data.path else "neither"
        yield ("data", "path"), f"give either path (a local file or folder) or name (a hub id), got {got}"
    if known.data and known.training and known.training.task == "classification":
        for key in ("messages", "choices", "system"):
            if getattr(known.data, key) is not None:
                yield ("data", key), "is for causal-lm, and training.task is classification"
    if known.data is not None and known.data.messages is not None and known.data.chat_template == "never":
        yield ("data", "chat_template"), "can't be never with data.messages: a chat has no other form"


def _rung_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    training, pruning = known.training, known.pruning
    budget = known.search.budget.steps if known.search else None
    if training and budget is not None and budget < training.max_steps:
        yield (
            ("search", "budget", "steps"),
            f"must be at least training.max_steps ({training.max_steps}), or no trial could finish, got {budget}",
        )
    if training and pruning and pruning.min_steps is not None and pruning.min_steps > training.max_steps:
        yield (
            ("pruning", "min_steps"),
            f"must be at most training.max_steps ({training.max_steps}), got {pruning.min_steps}",
        )


def _floor_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    """A floor in the unit of the metric that the sweep names."""
    if not known.training or not known.objectives or not known.pruning or isinstance(known.pruning.floor, str):
        return
    metric, floor = Metric(known.objectives.accuracy or METRICS[known.training.task][0]), known.pruning.floor
    if metric.is_share and not 0 <= floor <= 1:
        yield ("pruning", "floor"), f"must lie between 0 and 1 for {metric}, got {floor}"
    if not metric.is_share and floor < 1:
        yield ("pruning", "floor"), f"must be at least 1 for {metric}, got {floor}"


def _task_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    """What one task has and the other has not."""
    if known.training is None:
        return
    task = known.training.task
    if known.objectives and known.objectives.accuracy not in {None, *METRICS[task]}:
        allowed = ", ".join(METRICS[task])
        yield ("objectives", "accuracy"), f"must be one of {allowed} for {task}, got {known.objectives.accuracy!r}"
    if task == "classification":
        if known.training.packing:
            yield ("training", "packing"), "is for causal-lm: a text to classify needs a row of its own"
        if known.baselines and known.baselines.zero_shot:
            yield ("baselines", "zero_shot"), "is for causal-lm: an untrained classification head only guesses"
    elif known.baselines and known.baselines.head_only:
        yield ("baselines", "head_only"), "is for classification: a causal language model gets no new head"


def _space_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.search is None:
        return
    space, place = known.search.space, ("search", "space")
    if space.lora_scale is not None and space.lora_alpha is not None:
        yield (*place, "lora_alpha"), "can't be given together with lora_scale (alpha / r): one follows from the other"
    targets = dict.fromkeys(target for targets in space.target_sets().values() for target in targets)
    selectors = [((*place, "target_modules"), target) for target in targets]
    for key_place, selector in [*selectors, *(((*place, "rank_pattern", key), key) for key in space.rank_pattern)]:
        try:
            parse_selector(selector)
        except ValueError as error:
            yield key_place, str(error)
    if True in options_of(space.use_dora):
        inits: tuple[InitName, ...] = options_of(space.init_lora_weights)
        for init in sorted({"pissa", "olora", "loftq"}.intersection(inits)):
            reason = "DoRA takes its magnitudes from the base before this start changes the weights"
            yield (*place, "init_lora_weights"), f"{init} can't meet use_dora: {reason}"


def _quantization_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.model is None or known.search is None:
        return
    place, kind = ("search", "space", "init_lora_weights"), known.model.quantization
    inits: tuple[InitName, ...] = options_of(known.search.space.init_lora_weights)
    for init in sorted({"pissa", "olora"}.intersection(inits)):
        if kind != "none":
            reason = "it takes a part out of the base weights, which are stored quantized and shared by all trials"
            yield place, f"{init} needs model.quantization: none, got {kind}: {reason}"
    if "loftq" in inits and kind not in {"nf4", "fp4"}:
        yield place, f"loftq makes up for the error of 4 bits and needs model.quantization nf4 or fp4, got {kind}"
    if known.baselines and known.baselines.unquantized_lora and "loftq" in inits and "default" not in inits:
        reason = "loftq has nothing to make up for where nothing is quantized"
        yield ("baselines", "unquantized_lora"), f"needs default among search.space.init_lora_weights: {reason}"
    if kind == "int8" and True in options_of(known.search.space.use_dora):
        reason = "PEFT's DoRA (0.21) loses the scales of 8-bit weights"
        yield ("search", "space", "use_dora"), f"can't be used with model.quantization int8: {reason}; nf4 is fine"
    if kind == "none" and known.baselines and known.baselines.unquantized_lora:
        yield ("baselines", "unquantized_lora"), "says nothing here: model.quantization is none for all trials"


def _resource_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.resources is None:
        return
    gpus = known.resources.gpus_per_trial
    if gpus != "auto" and gpus > 1 and gpus != int(gpus):
        yield ("resources", "gpus_per_trial"), f"must be whole above 1 (fractions share one card), got {gpus}"
    if gpus == 0 and known.training and known.training.optimizer == "paged_adamw_8bit":
        yield ("training", "optimizer"), "paged_adamw_8bit needs a GPU, and resources.gpus_per_trial is 0"
    if known.resources.trials_per_worker == 1:
        return
    place = ("resources", "trials_per_worker")
    if gpus == "auto":
        yield place, "needs a number as resources.gpus_per_trial, which is the worker's then, got auto"
    if known.model and known.model.quantization == "int8":
        yield place, "can't be more than 1 with model.quantization int8; nf4, fp4 and none can"


def _memory_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.objectives is None or known.model is None:
        return
    place, asked = ("objectives", "memory"), known.objectives.memory
    if asked.gpu is not None and known.model.quantization == "int8":
        yield (*place, "gpu"), "can't be predicted with model.quantization int8; nf4, fp4 and none can"
    if asked.padding == "packed" and known.training and known.training.task == "classification":
        yield (*place, "padding"), "can't be packed for classification: a text to classify needs a row of its own"


def _logging_problems(known: _Known) -> Iterator[tuple[Place, str]]:
    if known.is_logging and known.resources and known.resources.backend != "ray":
        yield ("logging",), f"needs resources.backend: ray, whose loggers these are, got {known.resources.backend}"
