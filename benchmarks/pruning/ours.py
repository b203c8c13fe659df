"""tuner's own search on recorded curves: the real Study with its sampler and its scheduler, on a simulated clock."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from replay import NUM_WORKERS, Finish

from tuner.backends.simulated import SimulatedBackend
from tuner.config import SweepConfig
from tuner.forecast import fit_forecast
from tuner.front import objectives_of
from tuner.gpus import Gpu
from tuner.journal import memory_journal
from tuner.ladder import Ladder, rows_of
from tuner.prediction import Prediction
from tuner.sampler import propose
from tuner.study import Study
from tuner.trial import Decision, FailReason, Inspection, Metrics, Outcome, Result, TrialRecord, TrialSpec, TrialState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from recording import Recording

    from tuner.sampler import Worth


class World:
    """What all simulated workers of one sweep share: which configuration a trial is, and how far it got."""

    def __init__(self, recording: Recording, rungs: tuple[int, ...]) -> None:
        self.recording = recording
        self.rungs = rungs
        self.curve_of: dict[int, int] = {}
        self.rungs_done: dict[int, int] = {}


class RecordedWorker:
    """Replays the recorded configuration that is nearest to a trial's point; a paused trial goes on where it was.

    Args:
        world: Shared by all workers.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = -1

    def inspect(self) -> Inspection:
        """Not asked for: the study is created directly."""
        raise NotImplementedError

    def start(self, spec: TrialSpec) -> None:
        """Take on a trial; a new one becomes the nearest configuration that is still free."""
        world, self._number = self._world, spec.number
        if spec.number not in world.curve_of:
            world.curve_of[spec.number] = world.recording.nearest(dict(spec.params), world.curve_of.values())
            world.rungs_done[spec.number] = 0

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """A replay is not interrupted."""

    def advance(self) -> Metrics | Outcome:
        """The next recorded report."""
        curve = self._world.recording.curves[self._world.curve_of[self._number]]
        done = self._world.rungs_done[self._number]
        self._world.rungs_done[self._number] += 1
        reports = [report for report in curve.reports if report.steps in self._world.rungs]
        if done < len(reports):
            return reports[done]
        return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE)

    def close(self) -> None:
        """Nothing to drop."""


class Counting:
    """A study's verbs, counting steps and keeping what finished."""

    def __init__(self, study: Study, world: World) -> None:
        self._study = study
        self._world = world
        self._steps: dict[int, int] = {}
        self.finishes: list[Finish] = []

    @property
    def is_over(self) -> bool:
        """As the study says."""
        return self._study.is_over

    @property
    def is_interrupted(self) -> bool:
        """As the study says."""
        return self._study.is_interrupted

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """As the study says."""
        return self._study.records

    def interrupt(self, problem: str) -> None:
        """As the study says."""
        self._study.interrupt(problem)

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        """As the study says."""
        return self._study.predict(spec, gpu)

    def ask(self) -> TrialSpec | None:
        """As the study says."""
        return self._study.ask()

    def report(self, number: int, metrics: Metrics) -> Decision:
        """As the study says."""
        self._steps[number] = metrics.steps
        return self._study.report(number, metrics)

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """As the study says; a finished trial is noted."""
        if outcome.state is TrialState.COMPLETE:
            spent = sum(self._steps.values())
            self.finishes.append(Finish(spent_steps=spent, curve=self._world.curve_of[number]))
        return self._study.tell(number, outcome)


def tuner_search(
    recording: Recording, seed: int, changes: dict[str, object] | None = None, worth: Worth | None = None
) -> list[Finish]:
    """Run tuner's search until the table is used up.

    Args:
        recording: The task.
        seed: Of the sampler.
        changes: Dotted key -> value, put over the task's sweep file.
        worth: What the sampler learns from each trial; tuner's own by default.
    """
    every = {
        "pruning.method": "pareto",
        "search.sampler": "tpe",
        "search.seed": seed,
        "search.num_trials": len(recording.curves),
    }
    config = changed(recording.config, every | (changes or {}))
    world = World(recording, config.rungs)
    journal = memory_journal(config.name, objectives_of(config), recording.inspection)
    counting = Counting(Study(journal, config, propose=functools.partial(propose, worth=worth)), world)
    backend = SimulatedBackend(lambda *_: RecordedWorker(world), NUM_WORKERS, cost_s=_steps_between)
    backend.run(config, Path(), counting)
    return counting.finishes


def worth_if_finished(records: Sequence[TrialRecord], config: SweepConfig) -> list[list[float] | None]:
    """As a study keeps it: finished trials with their values, stopped ones as PRUNED."""
    last = [record.last if record.state is TrialState.COMPLETE else None for record in records]
    return [_values(metrics, metrics.accuracy, config) if metrics else None for metrics in last]


def worth_as_predicted(records: Sequence[TrialRecord], config: SweepConfig) -> list[list[float] | None]:
    """Every trial with the metric that its rung forecasts; none before there is a forecast."""
    ladder = Ladder(objectives_of(config))
    for record in records:
        for metrics in record.curve:
            ladder.add(record.number, metrics)
    last = ladder.at(config.rungs[-1])
    forecasts = {steps: fit_forecast(ladder.at(steps), last) for steps in config.rungs[:-1]}
    values: list[list[float] | None] = []
    for record in records:
        forecast = forecasts.get(record.last.steps) if record.last else None
        if record.last is None or (forecast is None and record.last.steps < config.rungs[-1]):
            values.append(None)
            continue
        accuracy = record.last.accuracy
        if forecast is not None:
            rung = ladder.at(record.last.steps)
            accuracy = -float(forecast.of(rung, rows_of(rung, [record.number])).metric[0])
        values.append(_values(record.last, accuracy, config))
    return values


def _values(metrics: Metrics, accuracy: float, config: SweepConfig) -> list[float]:
    _, *costs = objectives_of(config)
    return [-accuracy, *(math.log(cost.of(metrics)) for cost in costs)]


OURS: dict[str, Callable[[Recording, int], list[Finish]]] = {
    "tuner": tuner_search,
    "tuner, random points": functools.partial(tuner_search, changes={"search.sampler": "random"}),
}
"""Name -> search; with random points the stopping rule stands alone."""

VARIANTS: dict[str, Callable[[Recording, int], list[Finish]]] = {
    "learning from a rung (the default)": tuner_search,
    "learning from finished trials, others PRUNED": functools.partial(tuner_search, worth=worth_if_finished),
    "learning from predicted final values": functools.partial(tuner_search, worth=worth_as_predicted),
    "first rung at an eighth": functools.partial(tuner_search, changes={"pruning.min_steps": 12}),
    "waiting at every rung": functools.partial(tuner_search, changes={"pruning.wait_every": 1}),
    "three rungs, factor 4": functools.partial(
        tuner_search, changes={"pruning.reduction_factor": 4, "pruning.wait_every": 1}
    ),
    "confidence 0.95": functools.partial(tuner_search, changes={"pruning.confidence": 0.95}),
}
"""What else was tried."""


def _steps_between(before: Metrics | None, now: Result) -> float:
    return float(now.steps - (before.steps if before else 0)) if isinstance(now, Metrics) else 0.0


def changed(config: SweepConfig, changes: dict[str, object]) -> SweepConfig:
    """A sweep with other values at dotted keys."""
    document = config.model_dump(mode="json")
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = document
        for parent in parents:
            node = node[parent]
        node[last] = value
    return SweepConfig.model_validate(document)
