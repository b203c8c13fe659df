"""The worker: one base model, one trial at a time. Runs in its own process, or in the driver's with the local backend."""

from __future__ import annotations

import gc
import logging
import os
import platform
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuner.trial import FailReason, Metrics, Outcome, TrialSpec, TrialState
from tuner.worker.checkpoint import restore_checkpoint, save_checkpoint
from tuner.worker.data import Splits, evaluation_batches, load_splits, tokenize
from tuner.worker.inspection import inspect_sweep
from tuner.worker.model import BaseModel, load_base
from tuner.worker.training import TrainingData, TrialRun

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.trial import Inspection

log = logging.getLogger(__name__)


class Worker:
    """Trains trials one after another on a base model that it loads once.

    Args:
        config: The sweep, paths absolute.
        folder: The sweep's folder, seen by driver and workers under the same path. None keeps nothing on disk.
    """

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        self._config = config
        self._folder = folder
        self._loaded: tuple[BaseModel, TrainingData] | None = None
        self._spec: TrialSpec | None = None
        self._run: TrialRun | None = None
        torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
        if folder is not None:
            _log_to(folder / "logs" / f"worker-{platform.node()}-{os.getpid()}.log")

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""
        return inspect_sweep(self._config)

    def start(self, spec: TrialSpec) -> None:
        """Make a trial the current one; what the one before left behind is gone."""
        self.close()
        self._spec = spec

    def advance(self) -> Metrics | Outcome:
        """Bring the current trial to its next rung.

        A trial that has a checkpoint first repeats its last report, for the driver may not have heard it.

        Returns:
            Metrics, or the outcome FAIL: what goes wrong in a trial is data.
        """
        assert self._spec is not None  # noqa: S101 -- start() comes first
        try:
            result = self._advance(self._spec)
        except Exception as error:
            result = _failure(error)
            log.exception("trial %d failed", self._spec.number)
            self._forget()
        if isinstance(result, Outcome):
            self.close()
        return result

    def close(self) -> None:
        """Drop the current trial's adapter, optimizer and cached memory."""
        self._spec = None
        if self._run is not None:
            self._run.close()
            self._run = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _advance(self, spec: TrialSpec) -> Metrics | Outcome:
        checkpoint = self._folder / "checkpoints" / f"trial-{spec.number:04d}" if self._folder else None
        if self._run is None:
            base, data = self._load()
            self._run = TrialRun(base, data, spec, self._config.training)
            log.info("trial %d: %s", spec.number, spec)
            if checkpoint and (metrics := restore_checkpoint(self._run, checkpoint)):
                log.info("trial %d goes on from step %d", spec.number, metrics.steps)
                return metrics
        done = self._run.metrics.steps if self._run.metrics else 0
        result = self._run.advance(next(rung for rung in self._config.rungs if rung > done))
        if checkpoint and isinstance(result, Metrics):
            is_last = result.steps == self._config.training.max_steps
            save_checkpoint(self._run, checkpoint, with_adapter=is_last and spec.lora is not None)
        return result

    def _load(self) -> tuple[BaseModel, TrainingData]:
        if self._loaded is None:
            splits = load_splits(self._config.data)
            base = load_base(self._config.model, splits.labels, device_of(self._config))
            self._loaded = base, prepare_data(self._config, base, splits)
        return self._loaded

    def _forget(self) -> None:
        """After an exception nobody knows what state the base is in: load it anew."""
        self._run = None
        self._loaded = None


def device_of(config: SweepConfig) -> torch.device:
    """Trials that ask for a GPU run on it, all others on the CPU."""
    return torch.device("cuda" if config.resources.gpus_per_trial > 0 else "cpu")


def prepare_data(config: SweepConfig, base: BaseModel, splits: Splits) -> TrainingData:
    """Tokenize the splits that trials see."""
    pad_id = base.tokenizer.pad_token_id
    max_length = config.data.max_length
    train = tokenize(base.tokenizer, splits.train, splits.labels, max_length=max_length)
    validation = tokenize(base.tokenizer, splits.validation, splits.labels, max_length=max_length)
    batches = evaluation_batches(
        validation, batch_size=config.training.eval_batch_size, pad_id=pad_id, device=base.device
    )
    return TrainingData(train=train, validation=batches, num_validation=len(validation), pad_id=pad_id)


def _failure(error: Exception) -> Outcome:
    text = "".join(traceback.format_exception(error))
    return Outcome(state=TrialState.FAIL, reason=_reason(error), detail=text)


def _reason(error: Exception) -> FailReason:
    # torch's CPU allocator has no exception of its own
    is_cpu_oom = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if is_cpu_oom or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return FailReason.OUT_OF_MEMORY
    return FailReason.EXCEPTION


def _log_to(file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("tuner")
    package.setLevel(logging.INFO)
    package.propagate = False
    for former in package.handlers:
        former.close()
    package.handlers = [handler]
