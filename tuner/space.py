"""The search section as a space: ask a trial for its choices, get a LoraSpec. Pure; runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tuner.dimensions import Choices, Range, TargetChoices, options_of
from tuner.layers import ALL_LINEAR, Group, Layer, ModelFacts, deciding_key, parse_selector, targeted
from tuner.lora import Bias, Init, LoraSpec
from tuner.space_config import InitName, SpaceConfig
from tuner.trial import Baseline, ParamValue, TrialSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Searched = Range[int] | Range[float] | Choices[int] | Choices[float] | Choices[str] | Choices[bool] | TargetChoices
"""What the sweep file says of a searched parameter."""


class SuggestingTrial(Protocol):
    """The part of `optuna.Trial` that a space needs."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Sample a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Sample a number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ANN401 -- as Optuna declares it
        """Sample one of the choices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """One point of the space."""

    lora: LoraSpec
    """The adapter."""
    learning_rate: float
    """Peak of the schedule."""
    weight_decay: float
    """AdamW's."""
    lora_plus_ratio: float
    """Learning rate of B over that of A."""
    params: tuple[tuple[str, ParamValue], ...]
    """(name, value) of every parameter that was sampled, in the order of the space."""

    def as_spec(self, number: int, *, seed: int, baseline: Baseline | None = None) -> TrialSpec:
        """The point as a trial."""
        return TrialSpec(
            number=number,
            lora=self.lora,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            lora_plus_ratio=self.lora_plus_ratio,
            seed=seed,
            params=self.params,
            baseline=baseline,
        )


PLAIN = (
    "r",
    "lora_scale",
    "lora_alpha",
    "lora_dropout",
    "learning_rate",
    "weight_decay",
    "lora_plus_ratio",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "bias",
)
"""Parameters that every trial has, in the order in which they are sampled."""

DEFAULT_SCALE = 2.0
"""alpha / r where the sweep file says nothing."""


def dimensions(space: SpaceConfig) -> dict[str, Searched]:
    """Parameter -> what is searched, conditional ones included, in the order of the space; fixed ones are left out."""
    patterns = {f"rank_pattern.{key}": value for key, value in space.rank_pattern.items()}
    every = {name: getattr(space, name) for name in (*PLAIN, "target_modules")} | patterns
    return {name: value for name, value in every.items() if isinstance(value, (Range, Choices, TargetChoices))}


def searched_params(space: SpaceConfig) -> tuple[str, ...]:
    """Names of the parameters that a sweep samples, conditional ones included, in the order of the space."""
    return tuple(dimensions(space))


def suggest(trial: SuggestingTrial, space: SpaceConfig, layers: Sequence[Layer]) -> Suggestion:
    """Sample one point.

    A rank of its own is only asked for where it sets the rank of at least one layer of the chosen targets: it is a
    conditional parameter.

    Args:
        trial: Gives values.
        space: What may be chosen.
        layers: The base model's.
    """
    sampler = _Sampler(trial)
    plain = {name: sampler.value(name, getattr(space, name)) for name in PLAIN}
    targets = sampler.targets(space)
    pattern = tuple(
        (key, sampler.value(f"rank_pattern.{key}", space.rank_pattern[key]))
        for key in deciding_keys(space, targets, layers)
    )
    lora = LoraSpec(
        r=plain["r"],
        lora_alpha=_alpha(plain),
        lora_dropout=plain["lora_dropout"],
        target_modules=targets,
        rank_pattern=pattern,
        use_rslora=plain["use_rslora"],
        use_dora=plain["use_dora"],
        init_lora_weights=Init(plain["init_lora_weights"]),
        bias=Bias(plain["bias"]),
    )
    return Suggestion(
        lora=lora,
        learning_rate=plain["learning_rate"],
        weight_decay=plain["weight_decay"],
        lora_plus_ratio=plain["lora_plus_ratio"],
        params=tuple(sampler.sampled.items()),
    )


def deciding_keys(space: SpaceConfig, targets: Sequence[str], layers: Sequence[Layer]) -> tuple[str, ...]:
    """The keys of the rank pattern that set the rank of at least one layer of some targets, in the file's order."""
    used = {deciding_key(layer, space.rank_pattern) for layer in targeted(layers, targets)}
    return tuple(key for key in space.rank_pattern if key in used)


def space_problems(space: SpaceConfig, model: ModelFacts) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, message) for choices that mean nothing on the base model.

    Args:
        space: The choices.
        model: What a worker found in the base.
    """
    place, layers = "search.space.target_modules", model.layers
    sets = space.target_sets()
    unknown = sorted({target for targets in sets.values() for target in targets if not _fits(target, layers)})
    if unknown:
        yield place, _unknown(unknown, model)
        return
    used = {key for targets in sets.values() for key in deciding_keys(space, targets, layers)}
    for key in space.rank_pattern:
        if key not in used:
            yield f"search.space.rank_pattern.{key}", _idle(key, model)
    if isinstance(space.r, (Range, Choices)) and not any(_uses_r(space, targets, layers) for targets in sets.values()):
        yield "search.space.r", "is searched and sets no layer's rank, for rank_pattern names them all; give one value"
    yield from _decomposition_problems(space, layers)
    for name, targets in sets.items():
        if all(_may_be_zero(layer, space) for layer in targeted(layers, targets)):
            message = f"all modules of {name} may get rank 0 together, so that nothing is adapted; let one start at 1"
            yield "search.space.rank_pattern", message


def _decomposition_problems(space: SpaceConfig, layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """A start that decomposes a weight or its inputs has no more directions than these have."""
    inits: tuple[InitName, ...] = options_of(space.init_lora_weights)
    taken = sorted({"pissa", "olora", "loftq", "eva"}.intersection(inits))
    reached = [layer for targets in space.target_sets().values() for layer in targeted(layers, targets)]
    for layer in reached if taken else ():
        key = deciding_key(layer, space.rank_pattern)
        most, width = (
            _largest(space.r if key is None else space.rank_pattern[key]),
            min(layer.in_features, layer.out_features),
        )
        if most > width:
            words = f"{' and '.join(taken)} start from at most {width} directions in {layer.name}, and its rank may be {most}"
            yield "search.space.init_lora_weights", words
            return


def _largest(dimension: Range[int] | Choices[int] | int) -> int:
    match dimension:
        case Range(high=high):
            return high
        case Choices(choices=choices):
            return max(choices)
        case rank:
            return rank


def _uses_r(space: SpaceConfig, targets: Sequence[str], layers: Sequence[Layer]) -> bool:
    return any(deciding_key(layer, space.rank_pattern) is None for layer in targeted(layers, targets))


def _fits(target: str, layers: Sequence[Layer]) -> bool:
    return any(parse_selector(target).fits(layer) for layer in layers)


def _unknown(targets: Sequence[str], model: ModelFacts) -> str:
    if model.tree and set(targets) & set(Group):
        return (
            f"{' and '.join(targets)}: the blocks of this {model.family or 'model'} don't tell attention and MLP apart; "
            f"name modules or use {ALL_LINEAR}. The model:\n{model.tree}"
        )
    return f"no linear layer is named {', '.join(targets)}; the model has: {_known(model)}"


def _idle(key: str, model: ModelFacts) -> str:
    if not _fits(key, model.layers):
        return f"matches no linear layer; the model has: {_known(model)}"
    return "sets no layer's rank: no target_modules reach its layers, or more precise keys name them all"


def _known(model: ModelFacts) -> str:
    return ", ".join(dict.fromkeys(layer.short_name for layer in model.layers)) or "none in its blocks"


def _may_be_zero(layer: Layer, space: SpaceConfig) -> bool:
    key = deciding_key(layer, space.rank_pattern)
    match None if key is None else space.rank_pattern[key]:
        case None:
            return False
        case Range(low=low):
            return low == 0
        case Choices(choices=choices):
            return 0 in choices
        case rank:
            return rank == 0


def _alpha(plain: dict[str, Any]) -> float:
    if plain["lora_alpha"] is not None:
        return float(plain["lora_alpha"])
    scale = DEFAULT_SCALE if plain["lora_scale"] is None else plain["lora_scale"]
    return float(scale * plain["r"])


class _Sampler:
    """Asks a trial for a dimension's value and remembers what was really sampled."""

    def __init__(self, trial: SuggestingTrial) -> None:
        self._trial = trial
        self.sampled: dict[str, ParamValue] = {}

    def value(self, name: str, dimension: object) -> Any:  # noqa: ANN401 -- whatever the dimension holds
        match dimension:
            case Range(low=int(), high=int()):
                value: ParamValue = self._trial.suggest_int(
                    name, dimension.low, dimension.high, step=dimension.step or 1, log=dimension.log
                )
            case Range():
                value = self._trial.suggest_float(
                    name, dimension.low, dimension.high, step=dimension.step, log=dimension.log
                )
            case Choices():
                value = self._trial.suggest_categorical(name, dimension.choices)
            case _:
                return dimension
        self.sampled[name] = value
        return value

    def targets(self, space: SpaceConfig) -> tuple[str, ...]:
        if not isinstance(space.target_modules, TargetChoices):
            return space.target_modules
        name = self._trial.suggest_categorical("target_modules", list(space.target_modules.choices))
        self.sampled["target_modules"] = name
        return space.target_modules.choices[name]
