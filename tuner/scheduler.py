"""Who works next: takes each report, and says go on, wait or stop; knows which trial is worth the next steps. Runs on the driver.

It knows nothing of Optuna, files or processes. With method `pareto` no trial runs to its end just because it came first: one
in so many of a rung goes on at once, the others wait there with their checkpoint until nothing newer is worth more.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

import numpy as np

from tuner.forecast import Forecast, Outlook, fit_forecast, outlook
from tuner.ladder import Ladder, rows_of
from tuner.promotion import worthiest
from tuner.pruner import asha_stops, dominator, is_below_floor, median_stops, rivals_of, stop_by_dominance
from tuner.trial import Decision, Metric, Stop, StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.config import SweepConfig
    from tuner.front import Objective
    from tuner.ladder import IntArray
    from tuner.trial import Inspection, Metrics


class Next(enum.Enum):
    """What is worth the next steps where it is no waiting trial."""

    BEGIN = "begin a new trial"
    NOTHING = "nothing"


class Scheduler:
    """The trials of a search on their way up the rungs.

    Args:
        config: The sweep.
        objectives: The metric first, then the costs that count.
        floor: What a trial must exceed by half of its steps, turned so that lower is better; infinite for none.
    """

    def __init__(self, config: SweepConfig, objectives: Sequence[Objective], floor: float = math.inf) -> None:
        self._pruning = config.pruning
        self._rungs = config.rungs
        self._resting = config.rungs[: -1 : config.pruning.wait_every] if config.pruning.method == "pareto" else ()
        self._one_in = config.pruning.reduction_factor**config.pruning.wait_every
        self._ladder = Ladder(objectives)
        self._at_work: dict[int, int] = {}
        self._waiting: dict[int, int] = {}
        self._best: dict[int, float] = {}
        self._gone_on: dict[int, set[int]] = {steps: set() for steps in self._rungs}
        self._finished: set[int] = set()
        self._stops: dict[int, Stop] = {}
        self._stopped: dict[int, Stop] = {}
        self._forecasts: dict[int, tuple[tuple[int, int], Forecast | None]] = {}
        self._worths: dict[int, tuple[tuple[int, int, list[int], list[int]], tuple[int, float]]] = {}
        self.floor = floor
        """May be made harder while the sweep goes on."""

    @property
    def waiting(self) -> tuple[int, ...]:
        """Numbers of the trials that wait."""
        return tuple(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no trial is at work."""
        return not self._at_work

    def begin(self, number: int, steps: int = 0) -> None:
        """A trial is at work from some steps on."""
        self._at_work[number] = steps

    def go_on(self, number: int) -> None:
        """A waiting trial is at work again."""
        steps = self._waiting.pop(number)
        self._at_work[number] = steps
        self._gone_on[steps].add(number)

    def has_gone_on(self, number: int, steps: int) -> bool:
        """Whether a trial was let go on from a rung."""
        return number in self._gone_on[steps]

    def wait(self, number: int, steps: int) -> None:
        """A trial waits at a rung."""
        self._at_work.pop(number, None)
        self._waiting[number] = steps

    def stop(self, number: int, stop: Stop) -> None:
        """A trial is stopped for a reason of somebody else's; `end` gives it back."""
        self._stops[number] = stop

    def learn(self, number: int, metrics: Metrics) -> None:
        """Take in a report without a decision."""
        self._ladder.add(number, metrics)
        self._best[number] = min(self._best.get(number, math.inf), self._ladder.metric_at(number, metrics.steps))
        for steps in self._rungs:
            if steps < metrics.steps:
                self._gone_on[steps].add(number)

    def report(self, number: int, metrics: Metrics, *, may_begin: bool, left_steps: float) -> Decision:
        """Decide on a trial that has reached a rung before the last.

        Args:
            number: Of the trial.
            metrics: Its report.
            may_begin: Whether there are new trials to begin.
            left_steps: Optimizer steps left in the budget, those under way included.
        """
        self.learn(number, metrics)
        if (stop := self._stop(number, metrics.steps)) is not None:
            self._stops[number] = stop
            return Decision.PRUNE
        self.wait(number, metrics.steps)
        if metrics.steps not in self._resting:
            self.go_on(number)
            return Decision.CONTINUE
        if self.choose(may_begin=may_begin, left_steps=left_steps) != number:
            return Decision.PAUSE
        self.go_on(number)
        return Decision.CONTINUE

    def end(self, number: int, *, is_finished: bool) -> Stop | None:
        """A trial is over; returns why it was stopped."""
        self._at_work.pop(number, None)
        self._waiting.pop(number, None)
        if is_finished:
            self._finished.add(number)
        return self._stops.pop(number, None)

    def take_stopped(self) -> dict[int, Stop]:
        """Trials that waited and turned out not to be worth going on, since the last call."""
        stopped, self._stopped = self._stopped, {}
        return stopped

    def stop_all_waiting(self) -> dict[int, Stop]:
        """The budget is used up: nobody who waits goes on."""
        stops = {number: self._stop(number, steps) for number, steps in self._waiting.items()}
        self._waiting.clear()
        return {number: stop or Stop(reason=StopReason.BUDGET) for number, stop in stops.items()}

    def choose(self, *, may_begin: bool, left_steps: float) -> int | Next:
        """The waiting trial that is worth the next steps, or what else is.

        A trial that others have come to dominate while it waited is stopped when its turn comes; `take_stopped` has it.

        Args:
            may_begin: Whether there are new trials to begin.
            left_steps: Optimizer steps left in the budget, those under way included.
        """
        while isinstance(choice := self._choose(may_begin=may_begin, left_steps=left_steps), int):
            stop = self._stop(choice, self._waiting[choice])
            if stop is None:
                return choice
            self._stopped[choice] = stop
            del self._waiting[choice]
        return choice

    def _choose(self, *, may_begin: bool, left_steps: float) -> int | Next:
        free = left_steps - sum(self._rungs[-1] - steps for steps in self._at_work.values())
        by_rung = self._affordable(free)
        for steps in reversed(by_rung):
            if self._is_one_due(steps):
                return self._worthiest(steps, by_rung[steps])[0]
        if may_begin and free >= self._rungs[-1]:
            return Next.BEGIN
        if not by_rung:
            return Next.NOTHING
        best = [(*self._worthiest(steps, numbers), steps) for steps, numbers in by_rung.items()]
        return max(best, key=lambda found: (found[1] / (self._rungs[-1] - found[2]), found[2]))[0]

    def _is_one_due(self, steps: int) -> bool:
        """Whether one more may go on from a rung at once: one in so many, but none while it is alone there.

        The share is rounded to the nearest, not down, so that something finishes early.
        """
        num, gone_on = len(self._ladder.at(steps).numbers), len(self._gone_on[steps])
        return num > 1 and (gone_on + 0.5) * self._one_in <= num

    def _affordable(self, free: float) -> dict[int, list[int]]:
        """Rung -> trials that wait there and can still be finished, by rising steps."""
        found: dict[int, list[int]] = {steps: [] for steps in self._rungs}
        for number, steps in self._waiting.items():
            if self._rungs[-1] - steps <= free:
                found[steps].append(number)
        return {steps: numbers for steps, numbers in found.items() if numbers}

    def _worthiest(self, steps: int, numbers: list[int]) -> tuple[int, float]:
        """The trial of those that wait at a rung which is worth most, and its worth; found anew if anything there has changed."""
        rung, to_beat = self._ladder.at(steps), self._to_beat(steps)
        asked = (len(rung.numbers), len(self._ladder.at(self._rungs[-1]).numbers), numbers, to_beat)
        if steps not in self._worths or self._worths[steps][0] != asked:
            waiting, gone_on = rows_of(rung, numbers), rows_of(rung, to_beat)
            place, worth = worthiest(rung, waiting, gone_on, self._outlook(steps, np.concatenate([waiting, gone_on])))
            self._worths[steps] = asked, (numbers[place], worth)
        return self._worths[steps][1]

    def _to_beat(self, steps: int) -> list[int]:
        """Those that went on from a rung and may stand on the front: finished and not dominated, or still under way."""
        last = self._ladder.at(self._rungs[-1])
        there = self._ladder.at(steps).places
        finished = [number for number in last.numbers[last.is_front].tolist() if number in there]
        under_way = self._at_work | self._waiting
        return finished + [number for number in under_way if number in self._gone_on[steps]]

    def _outlook(self, steps: int, rows: IntArray) -> Outlook | None:
        """What is expected of some trials of a rung; None while too few have finished."""
        rung, last = self._ladder.at(steps), self._ladder.at(self._rungs[-1])
        key = len(rung.numbers), len(last.numbers)
        if steps not in self._forecasts or self._forecasts[steps][0] != key:
            self._forecasts[steps] = key, fit_forecast(rung, last)
        forecast = self._forecasts[steps][1]
        return None if forecast is None else outlook(rung, rows, last, forecast)

    def _dominated(self, steps: int, row: int) -> Stop | None:
        rung = self._ladder.at(steps)
        rivals = rivals_of(rung, row)
        expected = self._outlook(steps, np.append(rivals, row)) if len(rivals) else None
        if expected is None:
            return None
        other = dominator(rung, row, rivals, expected, self._pruning.confidence)
        return None if other is None else stop_by_dominance(rung, row, other)

    def _stop(self, number: int, steps: int) -> Stop | None:
        rung = self._ladder.at(steps)
        row = rung.places[number]
        match self._pruning.method:
            case "pareto":
                is_late = 2 * steps >= self._rungs[-1]
                if is_late and is_below_floor(rung, row, self.floor, self._pruning.confidence):
                    return Stop(reason=StopReason.BELOW_FLOOR)
                return self._dominated(steps, row)
            case "asha" if asha_stops(rung, row, self._pruning.reduction_factor):
                return Stop(reason=StopReason.OUTRANKED)
            case "median" if median_stops(rung, row, self._best[number], frozenset(self._finished)):
                return Stop(reason=StopReason.OUTRANKED)
        return None


def floor_of(config: SweepConfig, inspection: Inspection) -> float:
    """What every trial must exceed, turned so that lower is better: the commonest answer, or what the file says.

    Infinite where there is none: the commonest answer is a floor for shares of right answers only.
    """
    floor = config.pruning.floor
    if isinstance(floor, float):
        return config.metric.loss(floor)
    if floor == "auto" and config.metric in {Metric.ACCURACY, Metric.EXACT_MATCH}:
        return config.metric.loss(inspection.majority_share)
    return math.inf
