"""Shows a sweep's trials in MLflow, Weights & Biases and TensorBoard, by Ray's own callbacks. Runs on the driver.

A trial of the study is several of Ray's, if it waits and comes back, and only the study knows why one ended. So the callback here
reads the study's records, and Ray's loggers get what is new in them, one trial for each of the study's. Each logger works
on a thread of its own: a server that is slow or down keeps no trial waiting and ends no sweep. The journal is the only truth.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import TBXLoggerCallback

from tuner.backends import StudyVerbs
from tuner.errors import LoggingError
from tuner.folder import SweepFolder
from tuner.front import GIB
from tuner.trial import Metric, Metrics, ParamValue, TrialRecord, TrialSpec, TrialState, folder_name

if TYPE_CHECKING:
    from tuner.config import LoggerName, SweepConfig

PACKAGES: dict[LoggerName, str] = {"mlflow": "mlflow", "wandb": "wandb", "tensorboard": "tensorboardX"}
"""Logger -> what Ray's callback imports."""

TRIAL_TAG = "tuner.trial"
"""MLflow's tag by which a trial's run is found again after a `resume`."""

STEP = "training_iteration"
"""Ray's loggers take the step from this key."""

UPLOAD_TIMEOUT_S = 120
"""How long Weights & Biases may take to close a run."""

_Change = tuple[TrialRecord, int]
"""A record, and how many of its rungs were passed on before."""


def logging_problems(config: SweepConfig) -> tuple[tuple[str, str], ...]:
    """Say which of the sweep's loggers are not installed, as (key, message)."""
    missing = [name for name in config.logging if importlib.util.find_spec(PACKAGES[name]) is None]
    return tuple(("logging", f"{name} is not installed; `pip install 'tuner[{name}]'`") for name in missing)


@contextlib.contextmanager
def logging_to(config: SweepConfig, folder: Path, study: StudyVerbs) -> Iterator[list[Callback]]:
    """Set the sweep's loggers up, and close them at the end.

    Args:
        config: Names them.
        folder: The sweep's; its journal has begun.
        study: What is shown.

    Yields:
        Callbacks for Ray.

    Raises:
        LoggingError: A logger can't be set up.
    """
    with contextlib.ExitStack() as stack:
        loggers = {name: _built(name, config, folder) for name in config.logging}
        diaries = {name: _Diary(logger, config.metric, folder, name) for name, logger in loggers.items()}
        queues = [stack.enter_context(_thread(name, diary, folder)) for name, diary in diaries.items()]
        callback = _StudyCallback(study, queues)
        stack.callback(callback.update)  # Ray's last step comes before what the study does at the end
        yield [callback]


class _StudyCallback(Callback):
    """Ray's side: looks after each step for what is new."""

    def __init__(self, study: StudyVerbs, queues: list[SimpleQueue[_Change | None]]) -> None:
        self._study = study
        self._queues = queues
        self._seen = {record.number: record for record in study.records}

    def __getstate__(self) -> dict[str, object]:
        """Nothing: Ray writes its callbacks down for a `restore`, which the journal takes the place of."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self.update()

    def update(self) -> None:
        """Pass on what is new in the study."""
        for record in self._study.records:
            before = self._seen.get(record.number)
            if record == before:
                continue
            self._seen[record.number] = record
            for queue in self._queues:
                queue.put((record, len(before.curve) if before else 0))


@contextlib.contextmanager
def _thread(name: LoggerName, diary: _Diary, folder: Path) -> Iterator[SimpleQueue[_Change | None]]:
    """A thread that writes a diary; what goes wrong there ends the diary, and is told at the end."""
    changes: SimpleQueue[_Change | None] = SimpleQueue()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=name) as pool:
        if error := pool.submit(diary.open).exception():
            msg = f"logging: {name} can't be set up: {error}\nMend that and go on with `tuner resume {folder}`"
            raise LoggingError(msg) from error
        work = pool.submit(diary.keep, changes)
        try:
            yield changes
        finally:
            changes.put(None)
            if error := work.exception():
                warnings.warn(f"{name} misses a part of the sweep, the report does not: {error}", stacklevel=2)


class LoggedTrial(Trial):
    """One of the study's trials as one of Ray's, which Ray itself never sees.

    Args:
        trial_id: The same in every process that works on the sweep.
        label: Its name.
        params: What is shown of its spec.
        place: A folder for files.
    """

    def __init__(self, trial_id: str, label: str, params: dict[str, ParamValue], place: Path) -> None:
        super().__init__("tuner", trial_id=trial_id, config=params, evaluated_params=params, stub=True)
        self.custom_trial_name = label
        self._place = place
        self.steps = 0
        """Those of the last rung passed on."""
        self.ending: dict[str, str] = {}
        """Its state, and the reason for it; empty until it has ended."""

    @property
    def local_path(self) -> str:
        """Where a logger may leave files."""
        return str(self._place)

    def init_local_path(self) -> None:
        """Make the folder."""
        self._place.mkdir(parents=True, exist_ok=True)

    def end(self, ending: dict[str, str]) -> None:
        """Note how it ended; TensorBoard shows it among the parameters."""
        self.ending = ending
        self.evaluated_params = {**self.evaluated_params, **ending}


class _Logger(Protocol):
    """One of Ray's, and a pause."""

    def setup(self) -> None: ...

    def log_trial_start(self, trial: LoggedTrial) -> None: ...

    def log_trial_result(self, iteration: int, trial: LoggedTrial, result: dict[str, Any]) -> None: ...

    def log_trial_pause(self, trial: LoggedTrial) -> None: ...

    def log_trial_end(self, trial: LoggedTrial, failed: bool = False) -> None: ...

    def on_experiment_end(self, trials: list[Trial]) -> None: ...


class _Diary:
    """What one logger gets, in its thread."""

    def __init__(self, logger: _Logger, metric: Metric, folder: Path, name: LoggerName) -> None:
        self._logger = logger
        self._metric = metric
        self._sweep_id = sweep_id(folder)
        self._files = folder / "tensorboard" if name == "tensorboard" else None
        self._folder = folder
        self._trials: dict[int, LoggedTrial] = {}
        self._at_work: set[int] = set()

    def open(self) -> None:
        """Set the logger up."""
        self._logger.setup()

    def keep(self, changes: SimpleQueue[_Change | None]) -> None:
        """Write down what comes until nothing more does."""
        for record, num_known in iter(changes.get, None):
            self._write(record, num_known)
        self._logger.on_experiment_end([])

    def _write(self, record: TrialRecord, num_known: int) -> None:
        trial = self._started(record.spec)
        for metrics in record.curve[num_known:]:
            trial.steps = metrics.steps
            self._logger.log_trial_result(metrics.steps, trial, logged_metrics(metrics, self._metric))
        if record.state is TrialState.RUNNING:
            return
        self._at_work.remove(record.number)
        if record.state is TrialState.PAUSED:
            self._logger.log_trial_pause(trial)
            return
        trial.end(_ending(record))
        self._logger.log_trial_end(trial, failed=record.state is TrialState.FAIL)

    def _started(self, spec: TrialSpec) -> LoggedTrial:
        trial = self._trials.setdefault(spec.number, self._trial(spec))
        if spec.number not in self._at_work:
            self._at_work.add(spec.number)
            self._logger.log_trial_start(trial)
        return trial

    def _trial(self, spec: TrialSpec) -> LoggedTrial:
        name = folder_name(spec.number)
        place = self._files / name if self._files else self._folder
        return LoggedTrial(f"{self._sweep_id}-{name}", spec.label, logged_params(spec), place)


class _MLflow(MLflowLoggerCallback):
    """One run for each trial, found again by its tag."""

    def setup(self, *args: object, **info: object) -> None:
        """Find or make the experiment."""
        environment = os.environ.get("MLFLOW_TRACKING_URI")
        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        super().setup()  # type: ignore[no-untyped-call]
        if environment is None:  # MLflow sets it, and the next sweep of this process has a store of its own
            os.environ.pop("MLFLOW_TRACKING_URI", None)

    def log_trial_start(self, trial: Trial) -> None:
        """Go on with its run, or begin one."""
        if trial not in self._trial_runs:
            self._trial_runs[trial] = self._run_id(trial)
        self._client.update_run(self._trial_runs[trial], status="RUNNING")
        super().log_trial_start(trial)

    def log_trial_pause(self, trial: Trial) -> None:
        """It waits."""
        self._client.update_run(self._trial_runs[trial], status="SCHEDULED")

    def log_trial_end(self, trial: LoggedTrial, failed: bool = False) -> None:  # type: ignore[override]  # sees no other
        """Say how it ended, in the study's words too."""
        for key, value in trial.ending.items():
            self._client.set_tag(self._trial_runs[trial], f"tuner.{key}", value)
        super().log_trial_end(trial, failed)

    @property
    def _client(self) -> Any:  # noqa: ANN401 -- mlflow is an extra
        return self.mlflow_util._get_client()  # noqa: SLF001 -- the one that Ray works with

    def _run_id(self, trial: Trial) -> str:
        util, tags = self.mlflow_util, {TRIAL_TAG: trial.trial_id, "trial_name": str(trial)}
        found = self._client.search_runs(
            [util.experiment_id], f"tags.`{TRIAL_TAG}` = '{trial.trial_id}'", max_results=1
        )
        run = found[0] if found else util.start_run(run_name=str(trial), tags=tags)
        return str(run.info.run_id)


class _WandbActor(_WandbLoggingActor):
    """The process that Ray gives a run; with the driver's settings, of which Ray passes on the key alone (ray 2.60)."""

    def __init__(self, *args: Any, environment: dict[str, str], **kwargs: Any) -> None:  # noqa: ANN401 -- Ray's
        os.environ.update(environment)
        super().__init__(*args, **kwargs)

    def run(self) -> None:
        """Write down what comes, to the last byte: Ray kills the process as soon as this returns (wandb 0.31)."""
        super().run()  # type: ignore[no-untyped-call]
        self._wandb.teardown()


class _Wandb(WandbLoggerCallback):
    """One run for each trial; the process behind it ends while the trial waits."""

    AUTO_CONFIG_KEYS = ["state", "reason"]  # noqa: RUF012 -- Ray's
    _logger_actor_cls = _WandbActor

    def log_trial_pause(self, trial: Trial) -> None:
        """Close the run; it goes on under its id."""
        future = self._trial_logging_futures[trial]
        super().log_trial_end(trial)
        ray.get(
            future, timeout=UPLOAD_TIMEOUT_S
        )  # raises what went wrong in the process, which Ray's callback does not
        self._cleanup_logging_actors()

    def log_trial_end(self, trial: LoggedTrial, failed: bool = False) -> None:  # type: ignore[override]  # sees no other
        """Say how it ended, and close the run."""
        self.log_trial_result(trial.steps, trial, {STEP: trial.steps, **trial.ending})
        self.log_trial_pause(trial)

    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        """Close the runs of trials that were interrupted."""
        for trial in list(self._trial_queues):
            self.log_trial_pause(trial)


class _TensorBoard(TBXLoggerCallback):
    """One folder for each trial."""

    def log_trial_start(self, trial: Trial) -> None:
        """Open a file, unless there is one: a second one within a second would take its name."""
        if trial not in self._trial_writer:
            super().log_trial_start(trial)

    def log_trial_pause(self, trial: Trial) -> None:
        """Its file stays open."""

    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        """Close the files of trials that were interrupted."""
        for writer in self._trial_writer.values():
            writer.close()


def _built(name: LoggerName, config: SweepConfig, folder: Path) -> _Logger:
    if name == "mlflow":
        file = str(folder / "mlflow.db").replace("%", "%25").replace("?", "%3F")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{file}"
        return _MLflow(tracking_uri=uri, experiment_name=config.name)
    if name == "wandb":
        settings = {key: value for key, value in os.environ.items() if key.startswith("WANDB_")}
        return _Wandb(project=config.name, group=sweep_id(folder), environment=settings, resume="allow")
    return _TensorBoard()  # type: ignore[no-untyped-call]


def sweep_id(folder: Path) -> str:
    """Tells a sweep from others of its name, also after a `resume`."""
    return hashlib.sha256(SweepFolder(folder).identity()).hexdigest()[:12]


def logged_params(spec: TrialSpec) -> dict[str, ParamValue]:
    """A trial's parameters, by names that MLflow takes: it refuses the `@` of `rank_pattern.query@last`."""
    params: dict[str, ParamValue] = dict(spec.params)
    params |= {"learning_rate": spec.learning_rate, "seed": spec.seed}
    if spec.lora is not None:
        params |= {"r": spec.lora.r, "lora_alpha": spec.lora.lora_alpha}
    return {re.sub(r"[^\w.:-]", "_", name.replace("@", ":")): value for name, value in params.items()}


def logged_metrics(metrics: Metrics, metric: Metric) -> dict[str, float]:
    """What is shown of a rung, and the step at which."""
    return {
        STEP: metrics.steps,
        "steps": metrics.steps,
        str(metric): metrics.accuracy,
        "loss": metrics.loss,
        "trainable_params": metrics.trainable_params,
        "peak_memory_gib": metrics.peak_memory_bytes / GIB,
        "train_s": metrics.train_s,
        **dict(metrics.others),
    }


def _ending(record: TrialRecord) -> dict[str, str]:
    outcome = record.outcome
    reason = outcome and (outcome.reason or outcome.stop)
    return {"state": str(record.state)} | ({"reason": str(reason)} if reason else {})
