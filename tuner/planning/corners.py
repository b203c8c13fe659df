"""The corners of a space as far as memory goes: of each set of modules the smallest and the largest ranks. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tuner.dimensions import options_of
from tuner.space import Suggestion, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.layers import Layer
    from tuner.space_config import SpaceConfig


class _Corner:
    """A trial that always takes the smallest or the largest.

    Args:
        targets: Name of the set of modules.
        use_dora: Whether it is a trial with DoRA.
        is_largest: Which end.
    """

    def __init__(self, targets: str, *, use_dora: bool, is_largest: bool) -> None:
        self._named: dict[str, Any] = {"target_modules": targets, "use_dora": use_dora}
        self._choose = max if is_largest else min

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """One end of a range."""
        del name, step, log
        return self._choose(low, high)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """One end of a range."""
        del name, step, log
        return self._choose(low, high)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ANN401 -- as Optuna declares it
        """What the corner names, one end of numbers, or the first."""
        if name in self._named:
            return self._named[name]
        return self._choose(choices) if all(isinstance(choice, (int, float)) for choice in choices) else choices[0]


def corners(space: SpaceConfig, layers: Sequence[Layer]) -> list[tuple[str, Suggestion]]:
    """(label, point) of every corner, equal ones once.

    Args:
        space: The choices.
        layers: The base model's.
    """
    found: dict[tuple[object, ...], tuple[str, Suggestion]] = {}
    forms = itertools.product(space.target_sets(), options_of(space.use_dora), (False, True))
    for targets, use_dora, is_largest in forms:
        point = suggest(_Corner(targets, use_dora=use_dora, is_largest=is_largest), space, layers)
        size = "largest" if is_largest else "smallest"
        label = f"{targets}{', DoRA' if use_dora else ''}, {size}"
        found.setdefault((point.lora.target_modules, point.lora.r, point.lora.rank_pattern, use_dora), (label, point))
    return list(found.values())
