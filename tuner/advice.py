"""What `tuner recommend` says: a starting point for a model and a task, with reasons and parameters. Runs on the driver."""

from __future__ import annotations

import pkgutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.config import ModelConfig
from tuner.errors import AdviceError
from tuner.layers import count_trainable
from tuner.lora import LoraSpec
from tuner.recommend import Recommendation, Task, recommend

if TYPE_CHECKING:
    from tuner.layers import ModelFacts

INSPECTOR = "tuner.worker.inspection:inspect_model"
"""Dotted, so that this room does not import torch."""
WIDTH = 100
"""Characters of a line."""


def advise(model: str, task: str, num_examples: int) -> str:
    """Recommend a starting point.

    Args:
        model: A folder, a GGUF file or a hub id; only its configuration is read.
        task: One of `tuner.recommend.Task`.
        num_examples: Training examples; at least 1.

    Raises:
        AdviceError: No such task or model, or no examples.
    """
    if task not in set(Task):
        raise AdviceError(f"--task must be one of {', '.join(Task)}, got {task!r}")
    if num_examples < 1:
        raise AdviceError(f"--examples must be at least 1, got {num_examples}")
    name = str(Path(model).absolute()) if Path(model).exists() else model
    kind = "classification" if task == Task.CLASSIFICATION else "causal-lm"
    try:
        facts: ModelFacts = pkgutil.resolve_name(INSPECTOR)(ModelConfig(name=name), kind)
    except ValueError as error:
        raise AdviceError(f"--model {model}: {error}") from error
    return "\n".join(_lines(model, facts, recommend(facts, Task(task), num_examples)))


def _lines(model: str, facts: ModelFacts, advice: Recommendation) -> Iterator[str]:
    yield f"{model}: {facts.family}, {facts.num_params:,} parameters, {len(facts.layers)} linear layers in its blocks"
    yield ""
    values = {
        "r": advice.r,
        "lora_alpha": advice.lora_alpha,
        "lora_dropout": advice.lora_dropout,
        "learning_rate": f"{advice.learning_rate:g}",
        "target_modules": advice.target_modules,
        "schedule": f"{advice.lr_scheduler_type}, warmup_ratio {advice.warmup_ratio}",
    }
    for name, reason in advice.reasons:
        yield from _entry(f"{name}: {values[name]}", reason)
    yield f"{_trained(facts, advice, ()):,} parameters are trained"
    if advice.rank_pattern:
        pattern = ", ".join(f"{module}: {rank}" for module, rank in advice.rank_pattern)
        reason = (
            "worth a trial too: practice gives q and v twice the rank of k, o and up, four times that of gate and down"
        )
        yield from _entry(f"rank_pattern: {{{pattern}}}", reason)
        yield f"{_trained(facts, advice, advice.rank_pattern):,} parameters are trained"
    yield ""
    yield "A sweep tries these points first (search.start: recommended), and goes on from what it measures."


def _entry(head: str, reason: str) -> list[str]:
    lines = textwrap.wrap(reason, WIDTH - 4)
    return [head, *(f"    {line}" for line in lines)]


def _trained(facts: ModelFacts, advice: Recommendation, pattern: tuple[tuple[str, int], ...]) -> int:
    lora = LoraSpec(
        r=advice.r,
        lora_alpha=advice.lora_alpha,
        lora_dropout=advice.lora_dropout,
        target_modules=(advice.target_modules,),
        rank_pattern=pattern,
    )
    return count_trainable(facts, lora)
