"""Where a search starts: good practice as numbers with reasons, moved into the space of a sweep. Pure; runs on the driver.

The rules are starting points and nothing more: a sweep tries them first and goes on from what it measures.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.dimensions import Choices, Range, TargetChoices
from tuner.layers import ALL_LINEAR, Layer, ModelFacts, deciding_key, parse_selector, targeted
from tuner.space import DEFAULT_SCALE, deciding_keys, dimensions, suggest
from tuner.trial import Baseline, ParamValue, TrialSpec

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.space import Searched
    from tuner.space_config import SpaceConfig
    from tuner.trial import Inspection

Point = dict[str, ParamValue]
"""Searched parameter -> value."""


class Task(enum.StrEnum):
    """What an adapter is to learn, by how much it must change the model."""

    CLASSIFICATION = "classification"
    SUMMARIZATION = "summarization"
    QUESTION_ANSWERING = "question-answering"
    GENERATION = "generation"


RANKS = {Task.CLASSIFICATION: 4, Task.SUMMARIZATION: 16, Task.QUESTION_ANSWERING: 16, Task.GENERATION: 32}
"""Rank at 1 to 7 billion parameters: simple 4, medium 16, complex 32."""
SIZES = ((1e9, 0.5), (8.5e9, 1.0), (15e9, 1.5), (math.inf, 2.0))
"""(parameters below which, factor on the rank): half below 1B, once to 7B, 1.5 to 13B, twice above. What is called 7B has up to
8.2 billion parameters, a 13B up to 14.8."""
DROPOUTS = ((1_000, 0.1), (10_000, 0.05), (math.inf, 0.01))
"""(examples below which, dropout)."""
PROFILE = {
    2.0: ("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "q", "v"),
    1.0: ("k_proj", "o_proj", "up_proj", "key", "k_lin", "out_lin", "k", "o", "out_proj", "attention.output.dense"),
    0.5: ("gate_proj", "down_proj", "output.dense", "lin2", "fc2", "wo"),
}
"""Factor on the rank -> module names: q, v 32 · k, o, up 16 · gate, down 8 at rank 16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """A starting point."""

    r: int
    lora_alpha: int
    lora_dropout: float
    learning_rate: float
    target_modules: str
    lr_scheduler_type: str
    warmup_ratio: float
    rank_pattern: tuple[tuple[str, int], ...]
    """The second point to try: (module, rank) of the per-module profile; empty where the model's names don't fit it."""
    reasons: tuple[tuple[str, str], ...]
    """(choice, why)."""


def recommend(model: ModelFacts, task: Task, num_examples: int) -> Recommendation:
    """Choose a starting point.

    Args:
        model: The base.
        task: What is to be learned.
        num_examples: Training examples.
    """
    factor = next(factor for limit, factor in SIZES if model.num_params < limit)
    r = max(1, round(RANKS[task] * factor))
    dropout = next(dropout for limit, dropout in DROPOUTS if num_examples < limit)
    profile = _profile(model.layers, r)
    return Recommendation(
        r=r,
        lora_alpha=2 * r,
        lora_dropout=dropout,
        learning_rate=_learning_rate(model),
        target_modules=ALL_LINEAR,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        rank_pattern=tuple(profile.items()),
        reasons=_reasons(model, task, num_examples, factor),
    )


def starting_points(config: SweepConfig, inspection: Inspection) -> tuple[Point, ...]:
    """The points that a sweep tries first: the recommended one, and the per-module profile where ranks are searched by module.

    Each value is the one of the space that is nearest to the recommended one.
    """
    if config.search.start == "none" or not inspection.model.layers:
        return ()
    recommended = _recommended(config, inspection)
    uniform = _point(config.search.space, inspection.model.layers, recommended, {})
    profiled = _point(config.search.space, inspection.model.layers, recommended, dict(recommended.rank_pattern))
    return tuple({tuple(point.items()): point for point in (uniform, profiled) if point}.values())


def baseline_specs(config: SweepConfig, inspection: Inspection) -> tuple[TrialSpec, ...]:
    """The baselines that a sweep asks for, numbered -1, -2 and so on."""
    asked = config.baselines
    plain = [(Baseline.ZERO_SHOT, 0.0)] if asked.zero_shot else []
    plain += [(Baseline.HEAD_ONLY, rate) for rate in asked.head_only] + [(Baseline.FULL, rate) for rate in asked.full]
    seed = config.training.seed
    specs = [
        TrialSpec(number=-place, lora=None, learning_rate=rate, seed=seed, baseline=kind)
        for place, (kind, rate) in enumerate(plain, start=1)
    ]
    if asked.unquantized_lora:
        specs.append(_unquantized(config, inspection, number=-len(specs) - 1))
    return tuple(specs)


def _unquantized(config: SweepConfig, inspection: Inspection, *, number: int) -> TrialSpec:
    layers = inspection.model.layers
    point = _point(config.search.space, layers, _recommended(config, inspection), {})
    chosen = suggest(_Given(point), config.search.space, layers)
    return chosen.as_spec(number, seed=config.training.seed, baseline=Baseline.UNQUANTIZED_LORA)


class _Given:
    """A trial whose values are known."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        del low, high, step, log
        return int(self._point[name])

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        del low, high, step, log
        return float(self._point[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ANN401 -- as Optuna declares it
        del choices
        return self._point[name]


def _recommended(config: SweepConfig, inspection: Inspection) -> Recommendation:
    task = Task.CLASSIFICATION if config.training.task == "classification" else Task.GENERATION
    return recommend(inspection.model, task, inspection.num_train)


def _learning_rate(model: ModelFacts) -> float:
    exponent = 0.0775 if model.family.startswith("qwen") else 0.781
    rate = 5e-4 * (2000 / model.hidden_size) ** exponent if model.hidden_size else 2e-4
    return float(f"{rate:.1e}")


def _profile(layers: Sequence[Layer], r: int) -> dict[str, int]:
    ends = {name: factor for factor, names in PROFILE.items() for name in names}
    known = {name: factor for name, factor in ends.items() if any(parse_selector(name).fits(layer) for layer in layers)}
    return {name: max(1, round(r * factor)) for name, factor in known.items()}


def _reasons(model: ModelFacts, task: Task, num_examples: int, factor: float) -> tuple[tuple[str, str], ...]:
    billions = f"{model.num_params / 1e9:.2g}B"
    return (
        ("r", f"{RANKS[task]} for {task}, times {factor:g} for a model of {billions} parameters"),
        ("lora_alpha", "2 r: the factor alpha / r on the adapter's output is 2 at any rank"),
        (
            "lora_dropout",
            f"by data size: 0.1 below 1,000 examples, 0.05 below 10,000, then 0.01; here {num_examples:,}",
        ),
        (
            "learning_rate",
            (
                f"10 times full fine-tuning's 5e-5, times (2000 / {model.hidden_size}) to the power of 0.781 (Qwen: 0.0775): "
                "small models take larger rates, and the best one hardly depends on r (Thinking Machines, LoRA Without Regret, "
                "2025, and tinker-cookbook); in very short runs half as much again. Practice's plain 2e-4 is near it for 7B only."
            ),
        ),
        (
            "target_modules",
            (
                "all-linear for every task: attention alone loses to MLP or all at equal parameters (LoRA Without Regret; PEFT's "
                "own table: r 10 on the MLP 49.4 %, r 32 on q, v 47.8 %). Practice's attention-only for classification and "
                "summarization saves memory, and is worth a place in the search for that."
            ),
        ),
        ("schedule", "cosine with 10 % warm-up"),
    )


def _point(space: SpaceConfig, layers: Sequence[Layer], wanted: Recommendation, profile: Mapping[str, int]) -> Point:
    searched = dimensions(space)
    targets = _nearest_set(space, layers, wanted.target_modules)
    r = int(space.r if isinstance(space.r, int) else _nearest(space.r, wanted.r))
    values: dict[str, ParamValue] = {
        "r": wanted.r,
        "lora_scale": DEFAULT_SCALE,
        "lora_alpha": DEFAULT_SCALE * r,
        "lora_dropout": wanted.lora_dropout,
        "learning_rate": wanted.learning_rate,
        "weight_decay": 0.0,
        "lora_plus_ratio": 1.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": "default",
        "bias": "none",
    }
    reached = targeted(layers, targets[1])
    values |= {
        f"rank_pattern.{key}": _rank_for(key, space, reached, profile, r)
        for key in deciding_keys(space, targets[1], layers)
    }
    point = {name: _nearest(searched[name], value) for name, value in values.items() if name in searched}
    return point | ({"target_modules": targets[0]} if "target_modules" in searched else {})


def _rank_for(key: str, space: SpaceConfig, layers: Sequence[Layer], profile: Mapping[str, int], default: int) -> int:
    """The rank that a profile gives to the first of the layers whose rank a key sets."""
    layer = next(layer for layer in layers if deciding_key(layer, space.rank_pattern) == key)
    fitting = [name for name in profile if parse_selector(name).fits(layer)]
    return profile[max(fitting, key=len)] if fitting else default


def _nearest_set(space: SpaceConfig, layers: Sequence[Layer], target: str) -> tuple[str, tuple[str, ...]]:
    """The set of targets that shares most with the recommended one: (its name, its targets)."""
    wanted = set(targeted(layers, [target]))

    def likeness(entry: tuple[str, tuple[str, ...]]) -> float:
        reached = set(targeted(layers, entry[1]))
        return len(reached & wanted) / len(reached | wanted)

    return max(space.target_sets().items(), key=likeness)


def _nearest(dimension: Searched, value: ParamValue) -> ParamValue:
    match dimension:
        case Range():
            return _within(dimension, float(value))
        case Choices(choices=choices):
            return _nearest_choice(choices, value)
        case TargetChoices():
            return value


def _nearest_choice(choices: Sequence[ParamValue], value: ParamValue) -> ParamValue:
    if value in choices or isinstance(value, (str, bool)):
        return value if value in choices else choices[0]
    wanted = float(value)
    if isinstance(value, int) and wanted > 0:  # a rank: 0 would switch off what is recommended
        choices = [choice for choice in choices if choice] or choices
    if wanted <= 0 or min(map(float, choices)) <= 0:
        return min(choices, key=lambda choice: abs(float(choice) - wanted))
    # by ratio: 8 is as far from 4 as from 16
    return min(choices, key=lambda choice: round(abs(math.log(float(choice)) - math.log(wanted)), 9))


def _within(span: Range[int] | Range[float], value: float) -> int | float:
    clipped = min(max(value, span.low), span.high)
    if span.step is not None:  # three steps of 0.1 are a little more than 0.3 in binary
        clipped = min(span.low + round((clipped - span.low) / span.step) * span.step, span.high)
    return round(clipped) if isinstance(span.low, int) else clipped
