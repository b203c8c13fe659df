"""The search section as a space: ask a trial for its choices, get a LoraSpec. Pure; runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tuner.config import Choices, Range, SpaceConfig, TargetChoices
from tuner.trial import LoraSpec, ParamValue

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    params: tuple[tuple[str, ParamValue], ...]
    """(name, value) of every parameter that was sampled, in the order of the space."""


def searched_params(space: SpaceConfig) -> tuple[str, ...]:
    """Names of the parameters that a sweep samples, conditional ones included, in the order of the space."""
    plain = ("r", "lora_scale", "lora_dropout", "learning_rate")
    names = [name for name in plain if isinstance(getattr(space, name), (Range, Choices))]
    if isinstance(space.target_modules, TargetChoices):
        names.append("target_modules")
    patterns = (
        f"rank_pattern.{key}" for key, value in space.rank_pattern.items() if isinstance(value, (Range, Choices))
    )
    return (*names, *patterns)


def suggest(trial: SuggestingTrial, space: SpaceConfig) -> Suggestion:
    """Sample one point.

    A rank of its own is only asked for where the chosen target modules hold the module: it is a conditional parameter.
    """
    sampler = _Sampler(trial)
    r = sampler.integer("r", space.r)
    scale = sampler.number("lora_scale", space.lora_scale)
    dropout = sampler.number("lora_dropout", space.lora_dropout)
    learning_rate = sampler.number("learning_rate", space.learning_rate)
    targets = sampler.targets(space)
    pattern = tuple(
        (module, sampler.integer(f"rank_pattern.{module}", dimension))
        for module, dimension in space.rank_pattern.items()
        if module in targets
    )
    lora = LoraSpec(r=r, lora_alpha=scale * r, lora_dropout=dropout, target_modules=targets, rank_pattern=pattern)
    return Suggestion(lora=lora, learning_rate=learning_rate, params=tuple(sampler.sampled.items()))


class _Sampler:
    """Asks a trial for a dimension's value and remembers what was really sampled."""

    def __init__(self, trial: SuggestingTrial) -> None:
        self._trial = trial
        self.sampled: dict[str, ParamValue] = {}

    def integer(self, name: str, dimension: Range[int] | Choices[int] | int) -> int:
        match dimension:
            case Range():
                step = dimension.step or 1
                value = self._trial.suggest_int(name, dimension.low, dimension.high, step=step, log=dimension.log)
            case Choices():
                value = self._trial.suggest_categorical(name, dimension.choices)
            case _:
                return dimension
        self.sampled[name] = value
        return value

    def number(self, name: str, dimension: Range[float] | Choices[float] | float) -> float:
        match dimension:
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
