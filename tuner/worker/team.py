"""Several trials in one process, on one copy of the base, making their steps together. Runs on the worker.

Each trial has a seat: an ordinary worker, whose base is a module tree of its own over the shared weights. What a trial does
between its steps, the seat does as for a trial alone: restore, evaluate, report, save. Only the steps are made together, where
that gives the same; a trial that can't be among the others makes its steps alone, in turn with theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.lora import Bias
from tuner.trial import Result, Round, TrialSpec
from tuner.worker.calibration import best_size
from tuner.worker.host import BaseSpec, Loaded, Worker, load, pulse_of
from tuner.worker.inspection import inspect_sweep
from tuner.worker.lockstep import Lockstep
from tuner.worker.pulse import HUNG, Pulse
from tuner.worker.sliced import NotTogetherError
from tuner.worker.stepping import Stepped, Steps
from tuner.worker.training import TrialRun
from tuner.worker.twin import twin_of

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.trial import Inspection

log = logging.getLogger(__name__)


class Team:
    """Trains trials side by side.

    Args:
        config: The sweep, paths absolute.
        folder: As of `Worker`.
    """

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        self._config = config
        self._folder = folder
        asked = config.resources.trials_per_worker
        self._size = None if asked == "auto" else asked
        """Most trials at a time; None until it is measured."""
        self._together = self._size or 1
        """Most trials in one pass; less than the size after the device was out of memory."""
        self._pulse = pulse_of(config)
        self._base: Loaded | None = None
        self._lockstep: Lockstep | None = None
        self._is_agreed: bool | None = None
        """Whether trials were found to compute together what each computes alone; None before that was tried."""
        self._seats: dict[int, _Seat] = {}

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""
        return inspect_sweep(self._config)

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """From now on ask this between steps."""
        self._pulse.is_interrupted = is_interrupted

    def take_on(self, spec: TrialSpec) -> None:
        """Have a trial at work beside the others."""
        worker = Worker(self._config, self._folder, self._loaded, _SeatPulse(self._pulse))
        worker.start(spec)
        self._seats[spec.number] = _Seat(worker, spec)

    def drop(self, number: int) -> None:
        """Have it at work no longer."""
        if self._lockstep:
            self._lockstep.forget()
        if (seat := self._seats.pop(number, None)) is not None:
            seat.close()

    def advance(self) -> Round:
        """Make steps until at least one trial has reached its next rung, its failure, or a stop that was asked for."""
        results: dict[int, Result] = {}
        with self._watching():
            while self._seats and not results:
                for number, seat in self._seats.items():
                    if seat.ready is None and (result := seat.begin()) is not None:
                        results[number] = result
                if self._size is None and (run := self._first_packable()) is not None:
                    self._size = self._together = best_size(run, self._shared_lockstep(), self._copies_of(run))
                    break
                results |= self._step()
        return Round(results=tuple(results.items()), room=max(0, (self._size or 1) - len(self._seats)))

    def close(self) -> None:
        """Drop all trials."""
        for number in list(self._seats):
            self.drop(number)

    def _step(self) -> dict[int, Result]:
        """One step of each trial that is ready; returns what came of it."""
        ready = [seat for seat in self._seats.values() if seat.ready is not None]
        done = self._made_together([seat for seat in ready if _is_packable(seat.spec)])
        results = {seat.spec.number: seat.go_on(done.get(seat.spec.number)) for seat in ready}
        return {number: result for number, result in results.items() if result is not None}

    def _made_together(self, seats: list[_Seat]) -> dict[int, Stepped]:
        """The steps that were made together, by trial number."""
        done: dict[int, Stepped] = {}
        if len(seats) > 1 and self._together > 1 and self._agrees(seats):
            for at in range(0, len(seats), self._together):
                done |= self._made_in_one_pass(seats[at : at + self._together])
        return done

    def _made_in_one_pass(self, seats: list[_Seat]) -> dict[int, Stepped]:
        runs = [seat.ready for seat in seats if seat.ready is not None]
        try:
            steps = self._shared_lockstep().step(runs)
        except (NotTogetherError, RuntimeError) as error:  # out of memory among them; no trial has made its step
            log.warning("%d trials can't make a step together, fewer will: %s", len(seats), error)
            self._together = max(1, len(seats) // 2)
            for run in runs:
                run.drop_gradients()
            return {}
        return {run.spec.number: step for run, step in zip(runs, steps, strict=True)}

    def _agrees(self, seats: list[_Seat]) -> bool:
        if self._is_agreed is None:
            runs = [seat.ready for seat in seats[:2] if seat.ready is not None]
            self._is_agreed = self._shared_lockstep().agrees(runs)
            if not self._is_agreed:
                log.warning(
                    "this model does not give trials together what it gives each alone: they make their steps alone"
                )
        return self._is_agreed

    def _first_packable(self) -> TrialRun | None:
        """A trial before its next step that can be among others."""
        runs = (seat.ready for seat in self._seats.values() if _is_packable(seat.spec))
        return next((run for run in runs if run is not None), None)

    def _copies_of(self, run: TrialRun) -> Iterator[TrialRun]:
        """Trials like it, of which nothing is kept."""
        while True:
            loaded = self._loaded(self._config, BaseSpec(config=self._config.model))
            copy = TrialRun(loaded.base, loaded.data, run.spec, self._config)
            copy.adapted.model.train()
            yield copy

    def _loaded(self, config: SweepConfig, spec: BaseSpec) -> Loaded:
        """The shared base in a tree of its own; other forms of the base, which baselines need, anew."""
        if spec != BaseSpec(config=config.model):
            return load(config, spec)
        if self._base is None:
            self._base = load(config, spec)
        return dataclasses.replace(self._base, base=twin_of(self._base.base))

    def _shared_lockstep(self) -> Lockstep:
        if self._lockstep is None:
            assert self._base is not None  # noqa: S101 -- trials that are ready for a step have loaded it
            self._lockstep = Lockstep(self._base.base, is_checkpointed=self._config.training.gradient_checkpointing)
        return self._lockstep

    def _watching(self) -> contextlib.AbstractContextManager[None]:
        """One trial is told to hang, the first: which one does can't be known."""
        places = (seat.worker.place for seat in self._seats.values())
        place = next((place for place in places if place is not None), None)
        return self._pulse.watching(place / HUNG if place else None)


class _Seat:
    """A trial of a team.

    Args:
        worker: Its own.
        spec: The trial.
    """

    def __init__(self, worker: Worker, spec: TrialSpec) -> None:
        self.worker = worker
        self.spec = spec
        self.ready: TrialRun | None = None
        """The trial before its next step; None before it begins, and at a rung."""
        self._steps: Steps[Result] | None = None

    def begin(self) -> Result | None:
        """Go on to the next step; returns what came first."""
        self._steps = self.worker.advancing()
        return self.go_on(None)

    def go_on(self, done: Stepped | None) -> Result | None:
        """After a step that was made, or by making it alone; returns what has come of the trial, if anything has."""
        assert self._steps is not None  # noqa: S101 -- begin() comes first
        try:
            self.ready = self._steps.send(done)
        except StopIteration as ended:
            self.ready = self._steps = None
            result: Result = ended.value
            return result
        return None

    def close(self) -> None:
        """Leave nothing behind."""
        if self._steps is not None:
            self._steps.close()
        self.worker.close()


class _SeatPulse(Pulse):
    """Beats for the team, which is watched as a whole."""

    def __init__(self, team: Pulse) -> None:
        super().__init__(None, team.is_interrupted)
        self._team = team

    def beat(self) -> None:
        self._team.beat()


def _is_packable(spec: TrialSpec) -> bool:
    """Whether a trial's steps can be made with others': its adapter is a plain LoRA that leaves the base as it is."""
    lora = spec.lora
    if lora is None or spec.baseline is not None or spec.scores is not None:
        return False
    return not (lora.use_dora or lora.init_lora_weights.is_base_changed or lora.bias is not Bias.NONE)
