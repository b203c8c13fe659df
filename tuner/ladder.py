"""What all trials reported at each rung, as arrays that a pruner can look at. Runs on the driver.

Trials are only ever compared at the same rung: after the same number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuner.pareto import non_dominated_mask

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tuner.front import Objective
    from tuner.pareto import BoolArray, FloatArray
    from tuner.trial import Metrics

IntArray = npt.NDArray[np.int64]

METRIC, LOSS, ERROR, FIRST_COST = 0, 1, 2, 3
"""Columns of a rung's table; from FIRST_COST on the costs that the sweep weighs."""
FIRST_CAPACITY = 64
"""Rows made ready at first; doubled whenever they are full, so that a report costs the same with ten thousand trials."""
MOST_ONE_BY_ONE = 20
"""New rows that are each held against the front; of more, all rows are looked at together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """The reports at one rung, a row for each trial in the order in which they came; `num` rows."""

    numbers: IntArray
    """`(num,)` trial numbers."""
    table: FloatArray
    """`(num, 3 + num_costs)`: the sweep's metric turned so that lower is better, cross entropy, the metric's standard error,
    costs."""
    is_front: BoolArray
    """`(num,)`; whether no other row is at least as good in metric, cross entropy and every cost, and better in one."""
    places: Mapping[int, int]
    """Trial number -> row."""

    @property
    def metric(self) -> FloatArray:
        """`(num,)`, lower is better."""
        return self.table[:, METRIC]

    @property
    def loss(self) -> FloatArray:
        """`(num,)` cross entropy in nats."""
        return self.table[:, LOSS]

    @property
    def error(self) -> FloatArray:
        """`(num,)` standard error of the metric."""
        return self.table[:, ERROR]

    @property
    def costs(self) -> FloatArray:
        """`(num, num_costs)`, lower is better."""
        return self.table[:, FIRST_COST:]


def rows_of(rung: Rung, numbers: Iterable[int]) -> IntArray:
    """Where trials stand in a rung, in the order of their numbers as given.

    Raises:
        KeyError: One of them has not reported there.
    """
    return np.array([rung.places[number] for number in numbers], dtype=np.int64)


class Ladder:
    """The rungs of a sweep, filled as reports come.

    Args:
        objectives: The sweep's; the metric first, then the costs that count.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._metric, *self._costs = objectives
        self._rungs: dict[int, _Growing] = {}

    def add(self, number: int, metrics: Metrics) -> None:
        """Take in a report; the same trial at the same rung only once."""
        rung = self._rungs.setdefault(metrics.steps, _Growing(FIRST_COST + len(self._costs)))
        if number in rung.places:
            return
        costs = [cost.of(metrics) for cost in self._costs]
        rung.append(number, np.array([self._metric.loss_of(metrics), metrics.loss, metrics.standard_error, *costs]))

    def metric_at(self, number: int, steps: int) -> float:
        """The metric that a trial reported at a rung, turned so that lower is better."""
        return self._rungs[steps].metric_of(number)

    def at(self, steps: int) -> Rung:
        """The reports at a rung; no rows where nobody has reached it. Views that the next `add` may make stale."""
        return self._rungs.get(steps, _Growing(FIRST_COST + len(self._costs))).view()


class _Growing:
    """A rung's arrays with room for more."""

    def __init__(self, num_columns: int) -> None:
        self._num = self._num_compared = 0
        self._numbers: IntArray = np.empty(FIRST_CAPACITY, dtype=np.int64)
        self._table: FloatArray = np.empty((FIRST_CAPACITY, num_columns))
        self._is_front: BoolArray = np.empty(FIRST_CAPACITY, dtype=np.bool_)
        self.places: dict[int, int] = {}

    def append(self, number: int, row: FloatArray) -> None:
        if self._num == len(self._numbers):
            self._numbers, self._table, self._is_front = (
                np.concatenate([array, np.empty_like(array)]) for array in (self._numbers, self._table, self._is_front)
            )
        place = self._num
        self._numbers[place], self._table[place], self.places[number] = number, row, place
        self._num += 1

    def metric_of(self, number: int) -> float:
        return float(self._table[self.places[number], METRIC])

    def view(self) -> Rung:
        num = self._num
        self._compare()
        return Rung(
            numbers=self._numbers[:num], table=self._table[:num], is_front=self._is_front[:num], places=self.places
        )

    def _compare(self) -> None:
        """Bring the front up to date: a journal that is opened brings thousands of rows at once, a report one."""
        new = range(self._num_compared, self._num)
        self._num_compared = self._num
        if len(new) > MOST_ONE_BY_ONE and np.all(np.isfinite(self._table[: self._num])):
            self._is_front[: self._num] = non_dominated_mask(np.delete(self._table[: self._num], ERROR, axis=1))
            return
        for place in new:
            self._update_front(place)

    def _update_front(self, place: int) -> None:
        """A new row stands on the front unless a row of the front dominates it, and pushes off those that it dominates."""
        front = np.flatnonzero(self._is_front[:place])
        others, new = (np.delete(rows, ERROR, axis=-1) for rows in (self._table[front], self._table[place]))
        no_worse, no_better = np.all(others <= new, axis=1), np.all(others >= new, axis=1)
        self._is_front[place] = not np.any(no_worse & ~no_better)
        self._is_front[front[no_better & ~no_worse]] = False
