"""The worker: one base model, one trial at a time. Runs in its own process, or in the driver's with the local backend."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuner.errors import StorageError
from tuner.redaction import keepable
from tuner.storage import LOGS
from tuner.trial import (
    Baseline,
    FailReason,
    Interruption,
    Metrics,
    Outcome,
    Result,
    Span,
    TrialSpec,
    TrialState,
)
from tuner.worker.checkpoint import is_full, restore_checkpoint, save_checkpoint
from tuner.worker.data import load_splits
from tuner.worker.inspection import inspect_sweep
from tuner.worker.keeping import Keeper
from tuner.worker.model import BaseModel, load_base
from tuner.worker.prepared import TrainingData, prepare_data
from tuner.worker.pulse import HUNG, Pulse, hang_remarks, second_hang
from tuner.worker.stepping import Steps, alone
from tuner.worker.training import TrialRun

if TYPE_CHECKING:
    from tuner.config import ModelConfig, SweepConfig
    from tuner.trial import Inspection

log = logging.getLogger(__name__)


class Worker:
    """Trains trials one after another on a base model that it loads once.

    Args:
        config: The sweep, paths absolute.
        folder: The sweep's folder, seen by driver and workers under the same path unless `resources.storage` is named. None
            keeps nothing on disk.
        loads: Brings base and data; from the disk by default.
        pulse: Beats at each step; its own by default.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path | None,
        loads: Callable[[SweepConfig, BaseSpec], Loaded] | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        self._config = config
        self._keeper = Keeper(config, folder)
        self._loads = loads or load
        self._log: Path | None = None
        self._loaded: Loaded | None = None
        self._spec: TrialSpec | None = None
        self._run: TrialRun | None = None
        self._remarks: tuple[str, ...] = ()
        self._pulse = pulse or pulse_of(config)
        torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
        if self._keeper.folder is not None:
            self._log = self._keeper.folder / LOGS / f"worker-{platform.node()}-{os.getpid()}.log"
            _log_to(self._log)

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""
        return inspect_sweep(self._config)

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """From now on ask this between steps: where it says so, the trial's state is saved and `advance` returns."""
        self._pulse.is_interrupted = is_interrupted

    def start(self, spec: TrialSpec) -> None:
        """Make a trial the current one; what the one before left behind is gone."""
        self.close()
        self._spec = spec

    def advance(self) -> Result:
        """`advancing`, each step made alone."""
        return alone(self.advancing())

    def advancing(self) -> Steps[Result]:
        """Bring the current trial to its next rung.

        A trial that has a checkpoint first repeats its last report, for the driver may not have heard it.

        Returns:
            Metrics; the outcome FAIL, for what goes wrong in a trial is data; an interruption if one was asked for, or if
            the disk is full or the storage away.
        """
        assert self._spec is not None  # noqa: S101 -- start() comes first
        try:
            result = yield from self._advancing(self._spec)
        except StorageError as error:
            result = Interruption(steps=self._run.steps if self._run else 0, problem=str(error))
        except Exception as error:
            result = _failure(error)
            log.exception("%s failed", self._spec.label)
            self._forget()
        if not isinstance(result, Metrics):
            self.close()
        if self._log is not None:
            self._keeper.keep_log(self._log)
        return result

    @property
    def place(self) -> Path | None:
        """Where the current trial's checkpoints are."""
        return self._keeper.checkpoints(self._spec.number) if self._spec else None

    def close(self) -> None:
        """Drop the current trial's adapter, optimizer and cached memory."""
        self._spec = None
        if self._run is not None:
            self._run.close()
            is_spoilt = self._run.is_base_spoilt
            self._run = None
            if is_spoilt:
                self._loaded = None
        _free_memory()

    def _advancing(self, spec: TrialSpec) -> Steps[Result]:
        if self._pulse.is_interrupted():  # before minutes go by in loading a base
            return Interruption(steps=self._run.steps if self._run else 0)
        begun_s = time.time()
        place = self._keeper.checkpoints(spec.number)
        run = self._run
        if run is None:
            if place and (hung := second_hang(place)):
                return Outcome(state=TrialState.FAIL, reason=FailReason.HUNG, detail=hung)
            run = self._run = self._begun(spec, place)
            if run.metrics is not None:
                return self._told(run.metrics, begun_s)
        with self._pulse.watching(place / HUNG if place else None):
            result = yield from self._worked_on(spec, run)
        if isinstance(result, Outcome):
            return result
        if isinstance(result, Metrics):
            result = run.metrics = self._told(result, begun_s)
        if place is None or spec.baseline is not None or spec.scores is not None:
            return result
        saved = self._saved(run, result, place)
        self._keeper.keep(spec.number)
        return saved

    def _begun(self, spec: TrialSpec, place: Path | None) -> TrialRun:
        """The trial's run, brought to where it was."""
        log.info("%s: %s", spec.label, spec)
        loaded = self._load(base_for(self._config, spec))
        run = TrialRun(loaded.base, loaded.data, spec, self._config, self._adapter(spec))
        if place is not None:
            self._keeper.bring(spec.number)
            self._remarks = (*hang_remarks(place), *restore_checkpoint(run, place))
        for remark in self._remarks:
            log.warning("%s: %s", spec.label, remark)
        if run.steps:
            log.info("%s goes on from step %d", spec.label, run.steps)
        return run

    def _worked_on(self, spec: TrialSpec, run: TrialRun) -> Steps[Result]:
        if spec.scores is not None:
            return run.score(self._pulse)
        result: Result = yield from run.advancing(self._next_rung(spec, run), self._pulse)
        return result

    def _saved(self, run: TrialRun, result: Metrics | Interruption, place: Path) -> Metrics | Interruption:
        """Keep what was reached; what can't be kept was not reached."""
        is_last = run.steps == self._config.training.max_steps and isinstance(result, Metrics)
        try:
            save_checkpoint(run, place, with_adapter=is_last)
        except (OSError, RuntimeError) as error:  # torch has an error of its own for a file that can't be written
            if not is_full(error, place.parent):
                raise
            return Interruption(steps=run.steps, problem=f"no space left for {place}")
        log.info("%s reached step %d", place.name, run.steps)
        return result

    def _told(self, metrics: Metrics, begun_s: float) -> Metrics:
        """With where and when it was worked out, and what befell the trial."""
        remarks = tuple(dict.fromkeys((*metrics.remarks, *self._remarks)))
        self._remarks = ()
        worker = f"{platform.node()}-{os.getpid()}"
        span = metrics.span or Span(worker=worker, begun_s=begun_s, ended_s=time.time())
        return dataclasses.replace(metrics, remarks=remarks, span=span)

    def _adapter(self, spec: TrialSpec) -> Path | None:
        """A kept adapter, where one is to be scored."""
        return None if spec.scores is None else self._keeper.adapter(spec.scores)

    def _next_rung(self, spec: TrialSpec, run: TrialRun) -> int:
        if spec.baseline is Baseline.ZERO_SHOT:
            return 0
        done = run.metrics.steps if run.metrics else 0
        return next(rung for rung in self._config.rungs if rung > done)

    def _load(self, wanted: BaseSpec) -> Loaded:
        """The base in the form that a trial needs; the one before goes first, for both may not fit."""
        if self._loaded is None or self._loaded.spec != wanted:
            is_own = is_own_process(self._config)
            self._loaded = None
            if is_own:
                gc.unfreeze()
            _free_memory()
            self._loaded = self._loads(self._config, wanted)
            if is_own:  # what stays for all trials need not be searched for cycles after each of them
                gc.freeze()
        return self._loaded

    def _forget(self) -> None:
        """After an exception nobody knows what state the base is in: load it anew."""
        self._run = None
        self._loaded = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSpec:
    """The form in which a trial needs the base."""

    config: ModelConfig
    """What to load."""
    is_trained: bool = False
    """Whether its weights are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a process keeps from trial to trial."""

    spec: BaseSpec
    base: BaseModel
    data: TrainingData


def load(config: SweepConfig, spec: BaseSpec) -> Loaded:
    """Load base and data."""
    splits = load_splits(config.data, config.training.task)
    device = device_of(config)
    base = load_base(spec.config, config.training.task, splits.labels, device, is_trained=spec.is_trained)
    return Loaded(spec=spec, base=base, data=prepare_data(config, base, splits))


def base_for(config: SweepConfig, spec: TrialSpec) -> BaseSpec:
    """The base that a trial trains on: the sweep's, or for two of the baselines the same without quantization."""
    if spec.baseline not in {Baseline.FULL, Baseline.UNQUANTIZED_LORA}:
        return BaseSpec(config=config.model)
    plain = config.model.model_copy(update={"quantization": "none"})
    return BaseSpec(config=plain, is_trained=spec.baseline is Baseline.FULL)


def pulse_of(config: SweepConfig) -> Pulse:
    """A heartbeat with the sweep's limit, where the process is the worker's own: to end the driver's would end the sweep."""
    return Pulse(config.resources.heartbeat_limit_s if is_own_process(config) else None)


def is_own_process(config: SweepConfig) -> bool:
    """Whether nobody else lives in the worker's process."""
    return config.resources.backend != "local"


def device_of(config: SweepConfig) -> torch.device:
    """Trials that ask for a GPU run on it, all others on the CPU."""
    return torch.device("cuda" if config.resources.uses_gpu else "cpu")


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _failure(error: Exception) -> Outcome:
    text = keepable("".join(traceback.format_exception(error)), os.environ)
    return Outcome(state=TrialState.FAIL, reason=_reason(error), detail=text)


def _reason(error: Exception) -> FailReason:
    # torch's CPU allocator has no exception of its own
    is_cpu_oom = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if is_cpu_oom or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return FailReason.OUT_OF_MEMORY
    return FailReason.EXCEPTION


class _Formatter(logging.Formatter):
    """Lines without secrets, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return keepable(super().format(record), os.environ)


def _log_to(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("tuner")
    package.setLevel(logging.INFO)
    package.propagate = False
    for former in package.handlers:
        former.close()
    package.handlers = [handler]
