"""A searched parameter as Optuna has it. Runs on the driver; talks to Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.dimensions import Range
from tuner.space import dimensions

if TYPE_CHECKING:
    from tuner.space import Searched
    from tuner.space_config import SpaceConfig


def distributions(space: SpaceConfig) -> dict[str, BaseDistribution]:
    """Parameter -> its distribution, conditional ones included: those with which `space.suggest` asks a trial."""
    return {name: _distribution(dimension) for name, dimension in dimensions(space).items()}


def _distribution(dimension: Searched) -> BaseDistribution:
    match dimension:
        case Range(low=int(low), high=int(high), step=step):
            return IntDistribution(low, high, log=dimension.log, step=int(step or 1))
        case Range():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
        case _:
            return CategoricalDistribution([*dimension.choices])
