"""One trial in this process: adapter, optimizer, schedule, progress. Runs on the worker.

Every draw comes from (seed, step): a trial's result depends neither on what ran before it in the process nor on where it
was interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import get_scheduler

from tuner.trial import FailReason, MemoryKind, Metrics, Outcome, TrialSpec, TrialState
from tuner.worker.adapters import Adapted, attach
from tuner.worker.data import Batch, BatchOrder, Tokenized, collate
from tuner.worker.evaluation import evaluate, forward
from tuner.worker.memory import CpuPeak, CudaPeak, PeakMeter

if TYPE_CHECKING:
    from tuner.config import TrainingConfig
    from tuner.worker.model import BaseModel


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What all trials of a process train and decide on."""

    train: Tokenized
    """Training examples."""
    validation: tuple[Batch, ...]
    """Validation batches, by rising length."""
    num_validation: int
    """Validation examples."""
    pad_id: int
    """Token id that fills up batches."""


class TrialRun:
    """A trial that is being trained.

    Args:
        base: The shared base, without an adapter.
        data: The shared data.
        spec: The trial.
        config: The sweep's `training` section.
    """

    def __init__(self, base: BaseModel, data: TrainingData, spec: TrialSpec, config: TrainingConfig) -> None:
        self._base = base
        self._data = data
        self._spec = spec
        self._config = config
        self.adapted: Adapted = attach(base, spec.lora, spec.seed)
        self._trainable = list(self.adapted.trainable().values())
        self._optimizer = torch.optim.AdamW(self._trainable, lr=spec.learning_rate, weight_decay=config.weight_decay)
        self._schedule = get_scheduler(
            config.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=math.ceil(config.warmup_ratio * config.max_steps),
            num_training_steps=config.max_steps,
        )
        lengths = [len(ids) for ids in data.train.input_ids]
        self._order = BatchOrder(lengths, batch_size=config.batch_size, seed=spec.seed)
        self._memory = self._build_meter()
        self._steps, self._tokens, self._train_s = 0, 0, 0.0
        self.metrics: Metrics | None = None

    def advance(self, steps: int) -> Metrics | Outcome:
        """Train up to a rung and evaluate.

        Args:
            steps: The rung, above the steps done so far.

        Returns:
            Metrics, or a FAIL outcome as soon as a loss is not finite.
        """
        start_s = time.perf_counter()
        largest = self._largest_step(steps)
        self.adapted.model.train()
        while self._steps < steps:
            loss = self._watched_step() if self._steps == largest else self._step()
            if not math.isfinite(loss):
                return self._not_finite(f"training loss {loss} at step {self._steps}")
        scored = evaluate(self._base, self.adapted.model, self._data.validation, self._memory.watch)
        self._train_s += time.perf_counter() - start_s
        if not math.isfinite(scored.loss):
            return self._not_finite(f"validation loss {scored.loss} after step {self._steps}")
        self.metrics = Metrics(
            steps=self._steps,
            tokens=self._tokens,
            train_s=round(self._train_s, 3),
            accuracy=scored.accuracy,
            loss=scored.loss,
            num_validation=self._data.num_validation,
            trainable_params=self.adapted.num_trainable(),
            peak_memory_bytes=self._memory.peak_bytes(),
            memory_kind=self._memory.kind,
            peak_reserved_bytes=self._memory.reserved_bytes(),
        )
        return self.metrics

    def state_dict(self) -> dict[str, Any]:
        """All that a run in another process needs to go on from the rung just reached; only tensors and plain values."""
        metrics = self.metrics
        assert metrics is not None  # noqa: S101 -- there is no state worth keeping before the first rung
        return {
            "trainable": {name: parameter.detach() for name, parameter in self.adapted.trainable().items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "metrics": {**dataclasses.asdict(metrics), "memory_kind": metrics.memory_kind.value},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Metrics:
        """Go on from a state that `state_dict` gave after a rung; returns that rung's metrics."""
        with torch.no_grad():
            for name, parameter in self.adapted.trainable().items():
                parameter.copy_(state["trainable"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.metrics = Metrics(**{**state["metrics"], "memory_kind": MemoryKind(state["metrics"]["memory_kind"])})
        self._steps, self._tokens, self._train_s = self.metrics.steps, self.metrics.tokens, self.metrics.train_s
        self._memory.at_least(self.metrics.peak_memory_bytes, self.metrics.peak_reserved_bytes)
        return self.metrics

    def close(self) -> None:
        """Leave the base as it was."""
        self.adapted.detach()

    def _build_meter(self) -> PeakMeter:
        if self._base.device.type == "cuda":
            return CudaPeak(self._base.device)
        return CpuPeak(self.adapted.model, self._optimizer)

    def _largest_step(self, until: int) -> int:
        """The step before `until` with the largest batch; not the very first, which has no optimizer state yet."""
        steps = range(max(self._steps, min(1, until - 1)), until)
        return max(steps, key=self._order.padded_tokens)

    def _watched_step(self) -> float:
        with self._memory.watch():
            return self._step()

    def _step(self) -> float:
        """One optimizer step; returns the loss before it."""
        batch = collate(
            self._data.train, self._order.at(self._steps), pad_id=self._data.pad_id, device=self._base.device
        )
        torch.manual_seed(_mixed(self._spec.seed, self._steps))
        logits_BC = forward(self._base, self.adapted.model, batch)
        loss = torch.nn.functional.cross_entropy(logits_BC, batch.labels_B)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainable, self._config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        self._tokens += batch.num_tokens
        return float(loss.detach())

    def _not_finite(self, detail: str) -> Outcome:
        return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail=detail)


def _mixed(seed: int, step: int) -> int:
    """A seed of its own for the dropout masks of each step."""
    return (seed * 1_000_003 + step) % 2**63
