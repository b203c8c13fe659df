"""The worker: one base model, one trial at a time. Runs in its own process, or in the driver's with the local backend."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import os
import platform
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from tuner.trial import Baseline, FailReason, Metrics, Outcome, Span, TrialSpec, TrialState, folder_name
from tuner.worker.batches import evaluation_batches, evaluation_order
from tuner.worker.checkpoint import restore_checkpoint, save_checkpoint
from tuner.worker.data import Splits, load_splits
from tuner.worker.evaluation import Choices
from tuner.worker.inspection import inspect_sweep
from tuner.worker.model import BaseModel, load_base
from tuner.worker.token_files import Scored, Tokenized
from tuner.worker.tokens import tokenize_splits
from tuner.worker.training import ScoringData, TrainingData, TrialRun

if TYPE_CHECKING:
    from tuner.config import ModelConfig, SweepConfig
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
        self._loaded: Loaded | None = None
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
            log.exception("%s failed", self._spec.label)
            self._forget()
        if isinstance(result, Outcome):
            self.close()
        return result

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

    def _advance(self, spec: TrialSpec) -> Metrics | Outcome:
        begun_s = time.time()
        if spec.scores is not None:
            return _timed(self._score(spec, spec.scores), begun_s)
        checkpoint = self._folder / "checkpoints" / folder_name(spec.number) if self._folder else None
        if self._run is None:
            loaded = self._load(base_for(self._config, spec))
            self._run = TrialRun(loaded.base, loaded.data, spec, self._config)
            log.info("%s: %s", spec.label, spec)
            if checkpoint and (metrics := restore_checkpoint(self._run, checkpoint)):
                log.info("%s goes on from step %d", spec.label, metrics.steps)
                return metrics
        result = _timed(self._run.advance(self._next_rung(spec, self._run)), begun_s)
        if isinstance(result, Metrics):
            self._run.metrics = result
        if checkpoint and isinstance(result, Metrics) and spec.baseline is None:
            is_last = result.steps == self._config.training.max_steps
            save_checkpoint(self._run, checkpoint, with_adapter=is_last)
        return result

    def _score(self, spec: TrialSpec, number: int) -> Metrics | Outcome:
        """Score a kept adapter."""
        if self._folder is None:
            raise FileNotFoundError("no adapter is kept without a sweep folder")
        loaded = self._load(base_for(self._config, spec))
        adapter = self._folder / "adapters" / folder_name(number)
        self._run = TrialRun(loaded.base, loaded.data, spec, self._config, adapter)
        return self._run.score()

    def _next_rung(self, spec: TrialSpec, run: TrialRun) -> int:
        if spec.baseline is Baseline.ZERO_SHOT:
            return 0
        done = run.metrics.steps if run.metrics else 0
        return next(rung for rung in self._config.rungs if rung > done)

    def _load(self, wanted: BaseSpec) -> Loaded:
        """The base in the form that a trial needs; the one before goes first, for both may not fit."""
        if self._loaded is None or self._loaded.spec != wanted:
            self._loaded = None
            _free_memory()
            self._loaded = load(self._config, wanted)
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


def device_of(config: SweepConfig) -> torch.device:
    """Trials that ask for a GPU run on it, all others on the CPU."""
    return torch.device("cuda" if config.resources.gpus_per_trial > 0 else "cpu")


def prepare_data(config: SweepConfig, base: BaseModel, splits: Splits) -> TrainingData:
    """Tokenize the splits, and put the validation data on the device."""
    tokenized = tokenize_splits(base.tokenizer, splits, config)
    build = functools.partial(_scoring_data, batch_size=config.training.eval_batch_size, base=base)
    return TrainingData(
        train=tokenized.train,
        validation=build(tokenized.validation),
        build_test=lambda: build(tokenized.test),
        capacity=config.data.max_length if config.training.packing else None,
    )


def _scoring_data(scored: Scored, *, batch_size: int, base: BaseModel) -> ScoringData:
    build = functools.partial(evaluation_batches, batch_size=batch_size, pad_id=base.pad_id, device=base.device)
    order = _order(scored.tokens, batch_size)
    if (asked := scored.choices) is None:
        return ScoringData(batches=build(scored.tokens), order=order)
    choices = Choices(
        batches=build(asked.tokens),
        order=_order(asked.tokens, batch_size),
        example=asked.example,
        is_right=asked.is_right,
    )
    return ScoringData(batches=build(scored.tokens), order=order, choices=choices)


def _order(tokens: Tokenized, batch_size: int) -> npt.NDArray[np.int64]:
    """Which example each row of an evaluation is."""
    return np.array([index for chunk in evaluation_order(tokens, batch_size) for index in chunk], dtype=np.int64)


def _timed(result: Metrics | Outcome, begun_s: float) -> Metrics | Outcome:
    """With where and when it was worked out."""
    if isinstance(result, Outcome):
        return result
    worker = f"{platform.node()}-{os.getpid()}"
    return dataclasses.replace(result, span=Span(worker=worker, begun_s=begun_s, ended_s=time.time()))


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
