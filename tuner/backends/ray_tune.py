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
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
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
from tuner.errors import TunerError
from tuner.placing import inspecting_request
from tuner.trial import Decision, FailReason, Inspection, Metrics, Outcome, TrialRecord, TrialSpec, TrialState

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction

INTERRUPT_POLL_S = 0.25
"""How often a worker asks whether it is to stop."""
_NO_LIMIT = 1_000_000
"""Of Ray's own to the trials that wait: what is asked for is limited instead."""
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
            look = ray.remote(_inspect).options(
                num_cpus=request.cpus,
                num_gpus=request.gpus,
                scheduling_strategy=place,
                runtime_env={"env_vars": worker_environment(config)},
            )
            inspection: Inspection = ray.get(look.remote(self._worker, config))
        return replace(inspection, problems=(*inspection.problems, *_logging_problems(config)))

    def run(self, config: SweepConfig, folder: Path, study: StudyVerbs) -> None:
        """Work until the study gives out no more trials."""
        self._connect()
        placement = Placement(config, study, ray_cluster, time.monotonic)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(_NO_LIMIT)
        verbs, trials = _Remembering(study), _Trials(config.resources.max_worker_restarts)
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
                    search_alg=_StudySearcher(verbs, trials, placement),
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


@dataclass(slots=True)
class _Trials:
    """What searcher and scheduler both know of Ray's trials, by Ray's id."""

    max_restarts: int
    specs: dict[str, TrialSpec] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    """What Ray said when the worker was last lost."""
    again: list[TrialSpec] = field(default_factory=list)
    """To be given to another worker, as other trials of Ray's."""
    _num_restarts: Counter[int] = field(default_factory=Counter)

    def number(self, trial_id: str) -> int:
        """The study's."""
        return self.specs[trial_id].number

    def lost(self, trial: Trial) -> None:
        """Keep what Ray says; it calls this each time that a worker is lost, also where the trial then goes on."""
        # not trial.get_error(), which looks in the storage, where the file comes only later (ray 2.60)
        said = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self.errors[trial.trial_id] = said
        # Tune has no restart for a trial whose worker dies while it takes the trial on (ray 2.60): that one is PENDING
        number = self.number(trial.trial_id)
        if trial.status == Trial.PENDING and self._num_restarts[number] < self.max_restarts:
            self._num_restarts[number] += 1
            self.again.append(self.specs[trial.trial_id])


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
    """A worker process: keeps its worker, and so its base model, from trial to trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Build the worker and start the first trial."""
        factory = pkgutil.resolve_name(config["worker"])
        self._worker: TrialWorker = factory(config["config"], Path(config["folder"]))
        self._worker.listen(config["interruption"].is_set)
        self._worker.start(config["spec"])

    def step(self) -> dict[str, Any]:
        """Bring the trial to its next rung."""
        return {RESULT: self._worker.advance()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial on."""
        self._worker.start(new_config["spec"])
        return True

    def cleanup(self) -> None:
        """The process ends."""
        self._worker.close()


class _StudySearcher(Searcher):
    """Passes `suggest` on to `ask`."""

    def __init__(self, study: StudyVerbs, trials: _Trials, placement: Placement) -> None:
        super().__init__(metric=None, mode=None)
        self._study = study
        self._trials = trials
        self._placement = placement

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: object
    ) -> bool:
        """Keep what all trials share."""
        del metric, mode, spec
        self._shared = config
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        """A trial of the study as one of Ray's; a paused one comes back as another of Ray's. None is "not now"."""
        if not self._placement.may_ask():
            return None
        may_again = self._trials.again and not self._study.is_interrupted
        spec: TrialSpec | None = self._trials.again.pop(0) if may_again else self._study.ask()
        if spec is None:
            return str(Searcher.FINISHED) if self._study.is_over else None
        self._trials.specs[trial_id] = spec
        return {**self._shared, "spec": spec, REQUEST: self._placement.asked(trial_id, spec)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell a trial whose worker was lost once too often; the scheduler has told all others."""
        self._placement.ended(trial_id)
        if error and self._trials.specs[trial_id] not in self._trials.again:
            detail = self._trials.errors.get(trial_id, "")
            outcome = Outcome(state=TrialState.FAIL, reason=FailReason.WORKER_LOST, detail=detail)
            self._study.tell(self._trials.number(trial_id), outcome)

    def save(self, checkpoint_path: str) -> None:
        """The journal is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """The journal is the only state."""


class _StudyScheduler(FIFOScheduler):
    """Passes results on to `report` and `tell`."""

    def __init__(self, study: StudyVerbs, trials: _Trials, interruption: _Interruption, placement: Placement) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._study = study
        self._trials = trials
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
        decision = hand_in(self._study, self._trials.number(trial.trial_id), result[RESULT])
        return str(TrialScheduler.CONTINUE if decision is Decision.CONTINUE else TrialScheduler.STOP)

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
