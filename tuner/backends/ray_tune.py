"""Trials side by side, placed by Ray Tune. Runs on the driver, `TrialActor` on workers.

Ray places trials, restarts them when a node is lost, and keeps worker processes alive between them. It is told nothing of
accuracy: a searcher and a scheduler of a few lines pass everything on to the study. Ray's own OptunaSearch is not used: it
records trials that were stopped early as complete, and swallows errors of `tell` (ray 2.60).
"""

from __future__ import annotations

import contextlib
import math
import os
import pkgutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.experimental import internal_kv
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuner.backends import StudyVerbs, TrialWorker, hand_in, worker_environment
from tuner.backends.crew import build_crew, first_room
from tuner.backends.placement import Placement, asked_of, require_room
from tuner.backends.ray_connection import join_cluster
from tuner.backends.ray_placement import (
    REQUEST,
    PlacementWatch,
    first_without_place,
    placement_group,
    ray_cluster,
    reserved,
)
from tuner.backends.ray_trials import Trials
from tuner.errors import TunerError
from tuner.placing import inspecting_request
from tuner.trial import Decision, Inspection, Metrics, Outcome, Round, TrialRecord, TrialSpec

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction

INTERRUPT_POLL_S = 0.25
"""How often a worker asks whether it is to stop."""
_NO_LIMIT = 1_000_000
"""Of Ray's own to the trials that wait: what is asked for is limited instead."""
SPECS = "specs"
"""Key of the trials that a worker is to begin with."""
RESULT = "result"
"""Key of what a worker brought, in the result that goes through Ray."""

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the live view is ours
    "RAY_USAGE_STATS_ENABLED": "0",  # a sweep calls nobody
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nor does MLflow
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # only those that the sweep names
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the report and the journal have them
    "TUNE_RESULT_BUFFER_LENGTH": "1",  # a decision follows each report
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class RayBackend:
    """Carries out trials on a Ray cluster: the one at an address or that RAY_ADDRESS names, or one of its own on this machine.

    Args:
        worker: Dotted path of a `WorkerFactory`.
        address: `auto` on a node of the cluster, or host:port of its head.
    """

    def __init__(self, worker: str, address: str | None = None) -> None:
        self._worker = worker
        self._address = address
        self._owns_cluster = False

    def inspect(self, config: SweepConfig) -> Inspection:
        """Have a node that a trial could run on look at model and data."""
        self._connect()
        cluster, asked = ray_cluster(), asked_of(config.resources)
        require_room(asked, cluster)
        request = inspecting_request(asked, cluster.nodes)
        with reserved(request, config.resources.node_wait_s) as place:
            look = ray.remote(_inspect).options(num_cpus=request.cpus, num_gpus=request.gpus, scheduling_strategy=place)
            inspection: Inspection = ray.get(look.remote(self._worker, config))
        return replace(inspection, problems=(*inspection.problems, *_logging_problems(config)))

    def run(self, config: SweepConfig, folder: Path, study: StudyVerbs) -> None:
        """Work until the study gives out no more trials."""
        self._connect()
        placement = Placement(config, study, ray_cluster, time.monotonic)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(_NO_LIMIT)
        verbs = _Remembering(study)
        trials = Trials(verbs, config.resources)
        interruption = _Interruption(f"tuner:{uuid.uuid4().hex}")
        # Tune's own notes, which nobody reads: not in the sweep's folder, whose disk may be full
        with _logging(config, folder, study) as callbacks, tempfile.TemporaryDirectory(prefix="tuner-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(TrialActor, placement_group),
                param_space={
                    "worker": self._worker,
                    "config": config,
                    "folder": str(folder),
                    "interruption": interruption,
                },
                tune_config=tune.TuneConfig(
                    search_alg=_StudySearcher(verbs, trials, placement, first_room(config)),
                    scheduler=_StudyScheduler(verbs, trials, interruption, placement),
                    num_samples=-1,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[PlacementWatch(placement), *callbacks],
                    failure_config=tune.FailureConfig(max_failures=config.resources.max_worker_restarts),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # workers keep their own
                ),
            )
            _fit(tuner, verbs)

    def close(self) -> None:
        """Leave the cluster; one of our own goes down."""
        if self._owns_cluster:
            ray.shutdown()

    def _connect(self) -> None:
        os.environ.update({key: os.environ.get(key, value) for key, value in _QUIET.items()})
        if ray.is_initialized():
            return
        join_cluster(self._address)
        self._owns_cluster = True


class _Remembering:
    """The study's verbs; keeps what they raise, of which Ray passes on the text only."""

    def __init__(self, study: StudyVerbs) -> None:
        self._study = study
        self.error: TunerError | None = None

    def __getstate__(self) -> dict[str, object]:
        """Tune writes down all it was given, to resume by; the journal is what a sweep resumes by, and connections stay here."""
        return {}

    @property
    def is_over(self) -> bool:
        return self._study.is_over

    @property
    def is_interrupted(self) -> bool:
        return self._study.is_interrupted

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        return self._study.records

    def interrupt(self, problem: str) -> None:
        self._study.interrupt(problem)

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        return self._study.predict(spec, gpu)

    def ask(self) -> TrialSpec | None:
        with self._remembering():
            return self._study.ask()

    def report(self, number: int, metrics: Metrics) -> Decision:
        with self._remembering():
            return self._study.report(number, metrics)

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        with self._remembering():
            return self._study.tell(number, outcome)

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except TunerError as error:
            self.error = error
            raise


class _Interruption:
    """Whether workers are to stop, told through the cluster's own key-value store, which every node can reach.

    Args:
        key: Names the sweep's run.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._is_set = False
        self._asked_s = -math.inf

    def set(self) -> None:
        """Have all workers stop after their step."""
        if not self._is_set:
            internal_kv._internal_kv_put(self._key, b"1")  # noqa: SLF001 -- Ray's libraries use it, there is no other name
            self._is_set = True

    def is_set(self) -> bool:
        """On a worker: the answer, at most so many seconds old."""
        now_s = time.monotonic()
        if not self._is_set and now_s - self._asked_s > INTERRUPT_POLL_S:
            self._is_set = bool(internal_kv._internal_kv_exists(self._key))  # noqa: SLF001 -- as above
            self._asked_s = now_s
        return self._is_set


class TrialActor(tune.Trainable):
    """A worker process: keeps its crew, and so its base model, from trial to trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the crew and start the first trials."""
        os.environ.update(worker_environment(config["config"]))
        self._crew = build_crew(config["worker"], config["config"], Path(config["folder"]))
        self._crew.listen(config["interruption"].is_set)
        self.seat(config[SPECS], ())

    def step(self) -> dict[str, Any]:
        """Bring at least one trial to its next rung."""
        return {RESULT: self._crew.advance()}

    def seat(self, specs: Sequence[TrialSpec], gone: Sequence[int]) -> None:
        """Drop some trials, and have others at work beside those that stay."""
        for number in gone:
            self._crew.drop(number)
        for spec in specs:
            self._crew.take_on(spec)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trials on."""
        self._crew.close()
        self.seat(new_config[SPECS], ())
        return True

    def cleanup(self) -> None:
        """The process ends."""
        self._crew.close()


class _StudySearcher(Searcher):
    """Passes `suggest` on to `ask`."""

    def __init__(self, study: StudyVerbs, trials: Trials, placement: Placement, room: int) -> None:
        super().__init__(metric=None, mode=None)
        self._study = study
        self._trials = trials
        self._placement = placement
        self._room = room

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: object
    ) -> bool:
        """Keep what all trials share."""
        del metric, mode, spec
        self._shared = config
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """Trials of the study as one of Ray's; a paused one comes back in another of Ray's. None is "not now"."""
        if not self._placement.may_ask():
            return None
        specs = tuple(self._trials.new_team(trial_id, self._room).values())
        if not specs:  # FINISHED is for good, and a trial whose worker is lost may still have to be given to another
            is_over = self._study.is_over and not (self._trials.teams and not self._study.is_interrupted)
            return str(Searcher.FINISHED) if is_over else None
        return {**self._shared, SPECS: specs, REQUEST: self._placement.asked(trial_id, specs[0])}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell what was lost once too often; the scheduler has told all others."""
        self._placement.ended(trial_id)
        self._trials.ended(trial_id, is_lost=error)

    def save(self, checkpoint_path: str) -> None:
        """The journal is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """The journal is the only state."""


class _StudyScheduler(FIFOScheduler):
    """Passes results on to `report` and `tell`."""

    def __init__(self, study: StudyVerbs, trials: Trials, interruption: _Interruption, placement: Placement) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study
        self._trials = trials
        self._is_shared = trials.resources.trials_per_worker != 1
        self._interruption = interruption
        self._placement = placement

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Tune asks this in each round: after an interruption workers are told, and those who wait for a place wait no more."""
        if not self._study.is_interrupted:
            return first_without_place(tune_controller, self._placement)
        self._interruption.set()
        for trial in tune_controller.get_live_trials():  # type: ignore[no-untyped-call]
            if trial.status == Trial.PENDING:
                tune_controller.stop_trial(trial)  # type: ignore[no-untyped-call]
        return None

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        told: Round = result[RESULT]
        team = self._trials.teams[trial.trial_id]
        gone = [number for number, one in told.results if hand_in(self._study, number, one) is not Decision.CONTINUE]
        for number in gone:
            del team[number]
        new = self._trials.fill(trial.trial_id, told.room + len(gone)) if self._is_shared else []
        if not team:
            return str(TrialScheduler.STOP)
        if new or gone:
            trial.config = {**trial.config, SPECS: tuple(team.values())}  # what another worker would go on with
            actor: Any = trial.temporary_state.ray_actor
            actor.seat.remote(new, gone)  # comes before its next step
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self._trials.lost(trial)


def _fit(tuner: tune.Tuner, verbs: _Remembering) -> None:
    try:
        tuner.fit()
    except TuneError:
        if verbs.error:
            raise verbs.error from None
        raise


def _inspect(worker: str, config: SweepConfig) -> Inspection:
    os.environ.update(worker_environment(config))
    look: TrialWorker = pkgutil.resolve_name(worker)(config, None)
    return look.inspect()


def _logging_problems(config: SweepConfig) -> tuple[tuple[str, str], ...]:
    if not config.logging:
        return ()
    from tuner.backends.ray_logging import logging_problems  # noqa: PLC0415 -- imports every logger there is

    return logging_problems(config)


def _logging(config: SweepConfig, folder: Path, study: StudyVerbs) -> AbstractContextManager[list[tune.Callback]]:
    if not config.logging:
        return contextlib.nullcontext([])
    from tuner.backends.ray_logging import logging_to  # noqa: PLC0415 -- imports every logger there is

    return logging_to(config, folder, study)
