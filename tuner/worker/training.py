"""One trial in this process: adapter, optimizer, schedule, progress. Runs on the worker.

Every draw comes from (seed, step): a trial's result depends neither on what ran before it in the process nor on where it
was interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import get_scheduler

from tuner.lora import Init
from tuner.trial import (
    Baseline,
    FailReason,
    HeldOut,
    Interruption,
    MemoryKind,
    Metric,
    Metrics,
    Outcome,
    Result,
    Sampled,
    Span,
    TrialSpec,
    TrialState,
)
from tuner.worker.adapters import Adapted, attach, attach_nothing, attach_saved
from tuner.worker.batches import Batch, BatchOrder, collate, collate_packed
from tuner.worker.dropout import take_over_dropouts
from tuner.worker.evaluation import Evaluation, Watch, evaluate, forward, summed_loss
from tuner.worker.memory import CudaPeak, PeakMeter, StepPeak, empty_cache
from tuner.worker.optimizer import build_optimizer
from tuner.worker.plain_lora import take_over_lora
from tuner.worker.prepared import Sample, ScoringData, TrainingData
from tuner.worker.pulse import UNWATCHED, Pulse
from tuner.worker.recomputing import stop_checkpointing, use_checkpointing
from tuner.worker.starts import NUM_EVA_BATCHES
from tuner.worker.stepping import Seeded, Stepped, Steps, alone, num_taught

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.worker.model import BaseModel


class TrialRun:
    """A trial that is being trained.

    Args:
        base: The shared base, without an adapter.
        data: The shared data.
        spec: The trial.
        config: The sweep.
        adapter: Folder of a saved adapter, to be scored as it is; a fresh one by default.
    """

    def __init__(
        self,
        base: BaseModel,
        data: TrainingData,
        spec: TrialSpec,
        config: SweepConfig,
        adapter: Path | None = None,
    ) -> None:
        self._base = base
        self._data = data
        self.spec = spec
        """The trial."""
        self._config = config.training
        self._metric = config.metric
        self._is_beside_others = config.resources.trials_per_worker != 1
        lengths = data.train.input_ids.lengths
        self._order = BatchOrder(lengths, batch_size=config.training.batch_size, seed=spec.seed)
        self.adapted: Adapted = self._attach(adapter)
        if base.device.type == "cpu":
            take_over_dropouts(self.adapted.model)
            take_over_lora(self.adapted.model)
        self.trainable = list(self.adapted.trainable().values())
        """What is trained."""
        self._optimizer = build_optimizer(self.adapted.model, spec, config.training.optimizer)
        self._schedule = get_scheduler(
            config.training.lr_scheduler_type,
            self._optimizer,
            num_warmup_steps=math.ceil(config.training.warmup_ratio * config.training.max_steps),
            num_training_steps=config.training.max_steps,
        )
        if config.training.gradient_checkpointing:
            use_checkpointing(base.model)
        self._memory = self._build_meter()
        self.steps = 0
        """Optimizer steps done."""
        self._tokens, self._train_s = 0, 0.0
        self._losses: list[float] = []
        self.metrics: Metrics | None = None
        """The last report."""

    def advance(self, steps: int, pulse: Pulse = UNWATCHED) -> Result:
        """`advancing`, each step made alone."""
        return alone(self.advancing(steps, pulse))

    def advancing(self, steps: int, pulse: Pulse = UNWATCHED) -> Steps[Result]:
        """Train up to a rung and evaluate.

        Args:
            steps: The rung, above the steps done so far.
            pulse: Beats at each step, and may ask to stop after one.

        Returns:
            Metrics; a FAIL outcome as soon as a loss is not finite; an interruption where it was asked for.
        """
        stopped = yield from self._training(steps, pulse)
        if stopped is not None:
            return stopped
        start_s = time.perf_counter()
        # an evaluation's logits fit into no block of a training step: without this both would stay reserved
        empty_cache(self._base.device)
        scored, sampled = self._validated(pulse)
        empty_cache(self._base.device)
        self._train_s += time.perf_counter() - start_s
        if not math.isfinite(scored.loss):
            return self._not_finite(f"validation loss {scored.loss} after step {self.steps}")
        metrics = dataclasses.replace(self._measured(scored), sampled=sampled)
        if self.spec.sees_test and self._is_last:
            metrics = dataclasses.replace(metrics, held_out=self._held_out(pulse))
        self.metrics, self._losses = metrics, []
        return metrics

    def score(self, pulse: Pulse = UNWATCHED) -> Result:
        """Score the adapter as it is, as after the last rung."""
        self.steps = self._config.max_steps
        return self.advance(self.steps, pulse)

    def _training(self, steps: int, pulse: Pulse) -> Steps[Outcome | Interruption | None]:
        """Train up to a rung; returns what keeps it from getting there."""
        largest = self._larger_step(steps)
        self.adapted.model.train()
        while self.steps < steps:
            if pulse.is_interrupted():
                return Interruption(steps=self.steps)
            pulse.beat()
            # the largest batch is measured, and always alone: what a trial needs is not a matter of who is beside it
            done = self._watched_step() if self.steps == largest else (yield self) or self.step()
            self._train_s += done.seconds
            if not math.isfinite(done.loss):
                return self._not_finite(f"training loss {done.loss} at step {self.steps}")
            self._losses.append(done.loss)
        return None

    @property
    def _reported_steps(self) -> int:
        """The last rung that was reported; 0 before the first."""
        return self.metrics.steps if self.metrics else 0

    @property
    def _is_last(self) -> bool:
        return self.steps == self._config.max_steps or self.spec.baseline is Baseline.ZERO_SHOT

    def _validated(self, pulse: Pulse) -> tuple[Evaluation, Sampled | None]:
        """Scores on the validation data; on a sample of it before the last rung, and then on the sample too.

        Each evaluation needs the same memory, so the trial's first is watched, as if it were on all.
        """
        whole, sample = self._data.validation, self._data.sample
        watch = nullcontext if self._reported_steps else self._memory.watch
        if sample is None or self._is_last:
            scored = self._evaluated(whole, watch, pulse)
            return scored, None if sample is None else self._told_of(sample, scored)
        if not self._reported_steps:
            self._evaluated(dataclasses.replace(whole, batches=whole.batches[-1:], choices=None), watch, pulse)
        return self._evaluated(sample.data, nullcontext, pulse), None

    def _told_of(self, sample: Sample, scored: Evaluation) -> Sampled:
        rows = np.flatnonzero(np.isin(self._data.validation.order, sample.examples))
        chosen = sample.examples if self._metric is Metric.CHOICE_ACCURACY else rows
        return Sampled(accuracy=scored.statistics[self._metric](chosen), loss=scored.loss_of(rows), num=len(rows))

    def _evaluated(self, data: ScoringData, watch: Watch, pulse: Pulse) -> Evaluation:
        return evaluate(self._base, self.adapted.model, data.batches, data.choices, watch, pulse.beat)

    def _held_out(self, pulse: Pulse) -> HeldOut | None:
        """Scores on the test data; None where there is none."""
        data = self._data.build_test()
        if not data.batches:
            return None
        scored = self._evaluated(data, self._memory.watch, pulse)
        score = scored.scores[self._metric]
        return HeldOut(
            accuracy=score.value,
            standard_error=score.standard_error,
            loss=scored.loss,
            num_test=scored.num_examples,
            resampled=tuple(round(value, 6) for value in scored.resampled(self._metric, data.order)),
            others=self._others(scored),
        )

    def _others(self, scored: Evaluation) -> tuple[tuple[str, float], ...]:
        return tuple((name.value, other.value) for name, other in scored.scores.items() if name != self._metric)

    def _measured(self, scored: Evaluation) -> Metrics:
        score = scored.scores[self._metric]
        return Metrics(
            steps=self.steps,
            tokens=self._tokens,
            train_s=round(self._train_s, 3),
            accuracy=score.value,
            standard_error=score.standard_error,
            loss=scored.loss,
            num_validation=scored.num_examples,
            trainable_params=self.adapted.num_trainable(),
            peak_memory_bytes=self._memory.peak_bytes(),
            memory_kind=self._memory.kind,
            peak_reserved_bytes=self._memory.reserved_bytes(),
            others=self._others(scored),
            train_loss=math.fsum(self._losses) / len(self._losses) if self._losses else None,
            worst_train_loss=max(self._losses, default=None),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a run in another process needs to go on from here; only tensors and plain values."""
        progress = {
            "steps": self.steps,
            "tokens": self._tokens,
            "train_s": self._train_s,
            "losses": self._losses,
            "peak_bytes": self._memory.peak_bytes(),
            "reserved_bytes": self._memory.reserved_bytes(),
        }
        return {
            "trainable": {name: parameter.detach() for name, parameter in self.adapted.trainable().items()},
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "progress": progress,
            "metrics": None if self.metrics is None else _plain(self.metrics),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave; `metrics` is then the last report before it."""
        with torch.no_grad():
            for name, parameter in self.adapted.trainable().items():
                parameter.copy_(state["trainable"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self.metrics = None if state["metrics"] is None else _metrics_of(state["metrics"])
        progress = state["progress"]
        self.steps, self._tokens, self._train_s = progress["steps"], progress["tokens"], progress["train_s"]
        self._losses = list(progress["losses"])
        self._memory.at_least(progress["peak_bytes"], progress["reserved_bytes"])

    def close(self) -> None:
        """Leave the base as it was; full fine-tuning can't, its base must be loaded anew."""
        stop_checkpointing(self._base.model)
        self.adapted.detach()

    @property
    def is_base_spoilt(self) -> bool:
        """Whether the base is no longer what was loaded."""
        return self.spec.baseline is Baseline.FULL

    def _attach(self, adapter: Path | None) -> Adapted:
        if adapter is not None:
            assert self.spec.lora is not None  # noqa: S101 -- saved adapters come from one
            return attach_saved(self._base, self.spec.lora, adapter)
        if self.spec.baseline is Baseline.FULL:
            return attach_nothing(self._base, self.spec.seed)
        is_asked = self.spec.lora is not None and self.spec.lora.init_lora_weights is Init.EVA
        seen = [self._batch(index) for index in range(NUM_EVA_BATCHES)] if is_asked else []
        return attach(self._base, self.spec.lora, self.spec.seed, seen)

    def _build_meter(self) -> PeakMeter:
        if self._base.device.type == "cuda" and not self._is_beside_others:
            return CudaPeak(self._base.device)
        return StepPeak(self.adapted.model, self._optimizer, self._base.device)

    def _larger_step(self, until: int) -> int | None:
        """The step on the way to a rung whose batch is larger than all before that way; None where there is none.

        Not the very first, which has no optimizer state yet. Where the trial was interrupted makes no difference.
        """
        if self.steps == until:  # an adapter that is only scored
            return None
        begun = self._reported_steps
        largest = max(range(max(begun, min(1, until - 1)), until), key=self._size_of)
        most = self._size_of(largest)
        return largest if all(self._size_of(step) < most for step in range(1, begun)) else None

    def _size_of(self, step: int) -> int:
        """Tokens of a step's largest batch, padding included."""
        return max(map(self._order.padded_tokens, self._batches_of(step)))

    def _batches_of(self, step: int) -> range:
        """Numbers of the batches of an optimizer step."""
        num = self._config.gradient_accumulation_steps
        return range(step * num, (step + 1) * num)

    def _batch(self, index: int) -> Batch:
        examples, pad_id, device = self._order.at(index), self._base.pad_id, self._base.device
        if self._data.capacity is None:
            return collate(self._data.train, examples, pad_id=pad_id, device=device)
        return collate_packed(self._data.train, examples, capacity=self._data.capacity, pad_id=pad_id, device=device)

    def step(self) -> Stepped:
        """One optimizer step.

        The loss is the mean over all that the step's batches teach, so that accumulating gives what one large batch would.
        """
        start_s = time.perf_counter()
        plan = self.planned()
        loss = self.backward(plan)
        self.finish_step(plan)
        return Stepped(loss=loss, seconds=time.perf_counter() - start_s)

    def planned(self) -> tuple[Seeded, ...]:
        """What the next step trains on."""
        numbers = self._batches_of(self.steps)
        return tuple(Seeded(batch=self._batch(number), seed=_mixed(self.spec.seed, number)) for number in numbers)

    def backward(self, plan: Sequence[Seeded]) -> float:
        """Add the gradients of a step's mean loss, and return it."""
        count = num_taught(plan)
        return sum(self._backward(seeded, count) for seeded in plan)

    def finish_step(self, plan: Sequence[Seeded]) -> None:
        """Take the step that the gradients ask for."""
        torch.nn.utils.clip_grad_norm_(self.trainable, self._config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self.drop_gradients()
        self.steps += 1
        self._tokens += sum(seeded.batch.num_tokens for seeded in plan)

    def drop_gradients(self) -> None:
        """As before a step."""
        self._optimizer.zero_grad(set_to_none=True)

    def _watched_step(self) -> Stepped:
        with self._memory.watch():
            return self.step()

    def _backward(self, seeded: Seeded, count: int) -> float:
        """A batch's share of the step's mean loss, its gradients added."""
        torch.manual_seed(seeded.seed)
        # no name for the logits: they are gone when the backward pass begins
        loss = summed_loss(forward(self._base, self.adapted.model, seeded.batch), seeded.batch.labels) / count
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _not_finite(self, detail: str) -> Outcome:
        return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail=detail)


def _plain(metrics: Metrics) -> dict[str, Any]:
    """As plain values, for a checkpoint."""
    return {**dataclasses.asdict(metrics), "memory_kind": metrics.memory_kind.value}


def _metrics_of(kept: Mapping[str, Any]) -> Metrics:
    held_out, span = kept["held_out"], kept["span"]
    sampled = kept.get("sampled")  # missing in checkpoints from before it was kept
    whole = {
        "memory_kind": MemoryKind(kept["memory_kind"]),
        "held_out": HeldOut(**held_out) if held_out else None,
        "span": Span(**span) if span else None,
        "sampled": Sampled(**sampled) if sampled else None,
    }
    return Metrics(**{**kept, **whole, "remarks": tuple(kept["remarks"])})


def _mixed(seed: int, index: int) -> int:
    """A seed of its own for the dropout masks of each batch."""
    return (seed * 1_000_003 + index) % 2**63
