"""Which trial of a front to take, by a rule that a person writes. Pure; runs on the driver."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import PickError
from tuner.front import GIB, Objective, losses_of
from tuner.pareto import knee_index

if TYPE_CHECKING:
    from tuner.trial import Metrics, TrialRecord

RECOMMENDED = ("knee", "most-accurate", "cheapest-within:1se")
"""What a report recommends: the compromise, the best, the cheapest within the noise of the best."""
ROUNDING = 1e-9
"""Two accuracies nearer than this are equal: 0.9 - 0.3 is a little more than 0.6 in binary."""
RULES = (
    "knee, most-accurate, trial:N, cheapest-within:MARGIN (or within:MARGIN; 0 or more, or 1se), max-params:2M or "
    "max-memory:24GiB"
)
"""All rules, as an error tells them."""
COUNTS = {"": 1, "k": 1_000, "M": 1_000_000, "B": 1_000_000_000}
SIZES = {"MiB": 2**20, "GiB": GIB, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A rule that chooses one trial of a front."""

    rule: str
    """As written: `knee`, `most-accurate`, `trial:7`, `cheapest-within:0.01`, `cheapest-within:1se`, `max-params:2M` or
    `max-memory:24GiB`; the last two take the most accurate that costs no more.

    `1se` is one standard error of the best trial's score. Source: the one-standard-error rule of Breiman, Friedman, Olshen,
    Stone, Classification and Regression Trees (1984), section 3.4.3.
    """

    def of(self, front: Sequence[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord:
        """Choose.

        Args:
            front: The front, cheapest first.
            objectives: The sweep's.

        Raises:
            PickError: The rule is none of these, or names a trial that is not on the front, or leaves none, or the front is
                empty.
        """
        if not front:
            msg = "no trial has finished, so there is nothing to pick from"
            raise PickError(msg)
        name, _, argument = self.rule.partition(":")
        choose = _CHOOSERS.get(name)
        chosen = choose(front, objectives, argument) if choose else None
        if chosen is None:
            msg = f"pick must be {RULES}, got {self.rule!r}"
            raise PickError(msg)
        return chosen


def worth_confirming(
    front: Sequence[TrialRecord], objectives: Sequence[Objective], num_trials: int
) -> tuple[TrialRecord, ...]:
    """The trials of a front that are trained anew from other seeds: those that are recommended, then the best.

    Args:
        front: The front, cheapest first.
        objectives: The sweep's, the metric first.
        num_trials: Most to return.
    """
    if not front:
        return ()
    picked = [Pick(rule=rule).of(front, objectives) for rule in RECOMMENDED]
    best = sorted(front, key=lambda record: _loss(record, objectives))
    by_number = {record.number: record for record in (*picked, *best)}
    return tuple(by_number.values())[:num_trials]


Front = Sequence["TrialRecord"]
Goals = Sequence["Objective"]


def _knee(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    return None if argument else front[knee_index(losses_of(front, objectives))]


def _most_accurate(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    return None if argument else min(front, key=lambda record: _loss(record, objectives))


def _numbered(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    del objectives
    if not argument.isdecimal():
        return None
    for record in front:
        if record.number == int(argument):
            return record
    kept = ", ".join(str(record.number) for record in front)
    msg = f"trial {int(argument)} is not on the front, and only the front's adapters are kept: {kept}"
    raise PickError(msg)


def _cheapest_within(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    best = min(front, key=lambda record: _loss(record, objectives))
    margin = _margin(argument, best)
    if margin is None:
        return None
    most = _loss(best, objectives) + margin + ROUNDING
    return next(record for record in front if _loss(record, objectives) <= most)


def _max_params(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    most = _quantity(argument, COUNTS)
    return None if most is None else _best_within(front, objectives, most, lambda last: last.trainable_params)


def _max_memory(front: Front, objectives: Goals, argument: str) -> TrialRecord | None:
    most = _quantity(argument, SIZES)
    return None if most is None else _best_within(front, objectives, most, lambda last: last.peak_memory_bytes)


_CHOOSERS: dict[str, Callable[[Front, Goals, str], TrialRecord | None]] = {
    "knee": _knee,
    "most-accurate": _most_accurate,
    "trial": _numbered,
    "cheapest-within": _cheapest_within,
    "within": _cheapest_within,
    "max-params": _max_params,
    "max-memory": _max_memory,
}
"""Name of a rule -> (front, objectives, what stands behind the colon) -> the trial; None where that means nothing."""


def _best_within(front: Front, objectives: Goals, most: float, cost_of: Callable[[Metrics], int]) -> TrialRecord:
    kept = [record for record in front if record.last and cost_of(record.last) <= most]
    if not kept:
        least = min(cost_of(record.last) for record in front if record.last)
        msg = f"no trial on the front is as small as {most:,.0f}; the smallest takes {least:,}"
        raise PickError(msg)
    return min(kept, key=lambda record: _loss(record, objectives))


def _loss(record: TrialRecord, objectives: Goals) -> float:
    return objectives[0].loss_of(record.last) if record.last else math.inf


def _margin(text: str, best: TrialRecord) -> float | None:
    """How far from the best; `2se` is two of its standard errors."""
    if text.endswith("se") and best.last is not None:
        num = _margin(text.removesuffix("se"), best)
        return None if num is None else num * best.last.standard_error
    try:
        margin = float(text)
    except ValueError:
        return None
    return margin if 0 <= margin < math.inf else None


def _quantity(text: str, units: dict[str, int]) -> float | None:
    """A number with one of some units, such as `2M` or `24GiB`; None if it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text)
    return float(found[1]) * units[found[2]] if found and found[2] in units else None
