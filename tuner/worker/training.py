"""One trial in this process: adapter, optimizer, schedule, progress. Runs on the worker.

Every draw comes from (seed, step): a trial's result depends neither on what ran before it in the process nor on where it
was interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.optim.adamw import PagedAdamW8bit
from transformers import get_scheduler

from tuner.lora import Init
from tuner.trial import (
    Baseline,
    FailReason,
    HeldOut,
    Interruption,
    MemoryKind,
    Metrics,
    Outcome,
    Result,
    Span,
    TrialSpec,
    TrialState,
)
from tuner.worker.adapters import Adapted, attach, attach_nothing, attach_saved
from tuner.worker.batches import Batch, BatchOrder, collate, collate_packed
from tuner.worker.evaluation import Choices, Evaluation, evaluate, forward, num_learned, summed_loss
from tuner.worker.memory import CpuPeak, CudaPeak, PeakMeter, empty_cache
from tuner.worker.pulse import UNWATCHED, Pulse
from tuner.worker.starts import NUM_EVA_BATCHES
from tuner.worker.token_files import Tokenized

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn
    from transformers import PreTrainedModel

    from tuner.config import SweepConfig
    from tuner.worker.model import BaseModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringData:
    """A split that trials are scored on, on the device."""

    batches: tuple[Batch, ...]
    """Its examples by rising length; empty where it has none."""
    order: npt.NDArray[np.int64]
    """Which example of the data each row of the batches is."""
    choices: Choices | None = None
    """What the choice accuracy is measured on; None where it is not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What all trials of a process train and decide on."""

    train: Tokenized
    """Training examples."""
    validation: ScoringData
    """What decisions are made on."""
    build_test: Callable[[], ScoringData]
    """Gives what no decision sees, for the trials that are scored on it; it takes no room before that."""
    capacity: int | None
    """Tokens in a packed row; None without packing."""


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
        self._spec = spec
        self._config = config.training
        self._metric = config.metric
        lengths = data.train.input_ids.lengths
        self._order = BatchOrder(lengths, batch_size=config.training.batch_size, seed=spec.seed)
        self.adapted: Adapted = self._attach(adapter)
        self._trainable = list(self.adapted.trainable().values())
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
        """Train up to a rung and evaluate.

        Args:
            steps: The rung, above the steps done so far.
            pulse: Beats at each step, and may ask to stop after one.

        Returns:
            Metrics; a FAIL outcome as soon as a loss is not finite; an interruption where it was asked for.
        """
        start_s = time.perf_counter()
        stopped = self._train(steps, pulse)
        if stopped is not None:
            self._train_s += time.perf_counter() - start_s
            return stopped
        # an evaluation's logits fit into no block of a training step: without this both would stay reserved
        empty_cache(self._base.device)
        scored = self._evaluated(self._data.validation, pulse)
        empty_cache(self._base.device)
        self._train_s += time.perf_counter() - start_s
        if not math.isfinite(scored.loss):
            return self._not_finite(f"validation loss {scored.loss} after step {self.steps}")
        metrics = self._measured(scored)
        if self._spec.sees_test and self._is_last:
            metrics = dataclasses.replace(metrics, held_out=self._held_out(pulse))
        self.metrics, self._losses = metrics, []
        return metrics

    def score(self, pulse: Pulse = UNWATCHED) -> Result:
        """Score the adapter as it is, as after the last rung."""
        self.steps = self._config.max_steps
        return self.advance(self.steps, pulse)

    def _train(self, steps: int, pulse: Pulse) -> Outcome | Interruption | None:
        """Train up to a rung; returns what keeps it from getting there."""
        largest = self._largest_step(steps)
        self.adapted.model.train()
        while self.steps < steps:
            if pulse.is_interrupted():
                return Interruption(steps=self.steps)
            pulse.beat()
            loss = self._watched_step() if self.steps == largest else self._step()
            if not math.isfinite(loss):
                return self._not_finite(f"training loss {loss} at step {self.steps}")
            self._losses.append(loss)
        return None

    @property
    def _is_last(self) -> bool:
        return self.steps == self._config.max_steps or self._spec.baseline is Baseline.ZERO_SHOT

    def _evaluated(self, data: ScoringData, pulse: Pulse) -> Evaluation:
        return evaluate(self._base, self.adapted.model, data.batches, data.choices, self._memory.watch, pulse.beat)

    def _held_out(self, pulse: Pulse) -> HeldOut | None:
        """Scores on the test data; None where there is none."""
        data = self._data.build_test()
        if not data.batches:
            return None
        scored = self._evaluated(data, pulse)
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
        _stop_checkpointing(self._base.model)
        self.adapted.detach()

    @property
    def is_base_spoilt(self) -> bool:
        """Whether the base is no longer what was loaded."""
        return self._spec.baseline is Baseline.FULL

    def _attach(self, adapter: Path | None) -> Adapted:
        if adapter is not None:
            assert self._spec.lora is not None  # noqa: S101 -- saved adapters come from one
            return attach_saved(self._base, self._spec.lora, adapter)
        if self._spec.baseline is Baseline.FULL:
            return attach_nothing(self._base, self._spec.seed)
        is_asked = self._spec.lora is not None and self._spec.lora.init_lora_weights is Init.EVA
        seen = [self._batch(index) for index in range(NUM_EVA_BATCHES)] if is_asked else []
        return attach(self._base, self._spec.lora, self._spec.seed, seen)

    def _build_meter(self) -> PeakMeter:
        if self._base.device.type == "cuda":
            return CudaPeak(self._base.device)
        return CpuPeak(self.adapted.model, self._optimizer)

    def _largest_step(self, until: int) -> int:
        """The step before `until` with the largest batch; not the very first, which has no optimizer state yet."""
        steps = range(max(self.steps, min(1, until - 1)), until)
        return max(steps, key=lambda step: max(map(self._order.padded_tokens, self._batches_of(step))), default=-1)

    def _batches_of(self, step: int) -> range:
        """Numbers of the batches of an optimizer step."""
        num = self._config.gradient_accumulation_steps
        return range(step * num, (step + 1) * num)

    def _batch(self, index: int) -> Batch:
        examples, pad_id, device = self._order.at(index), self._base.pad_id, self._base.device
        if self._data.capacity is None:
            return collate(self._data.train, examples, pad_id=pad_id, device=device)
        return collate_packed(self._data.train, examples, capacity=self._data.capacity, pad_id=pad_id, device=device)

    def _watched_step(self) -> float:
        with self._memory.watch():
            return self._step()

    def _step(self) -> float:
        """One optimizer step; returns the mean loss before it.

        The mean is over all that the step's batches teach, so that accumulating gives what one large batch would.
        """
        batches = {index: self._batch(index) for index in self._batches_of(self.steps)}
        count = sum(map(num_learned, batches.values()))
        loss = sum(self._backward(batch, index, count) for index, batch in batches.items())
        torch.nn.utils.clip_grad_norm_(self._trainable, self._config.max_grad_norm)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self._tokens += sum(batch.num_tokens for batch in batches.values())
        return float(loss)

    def _backward(self, batch: Batch, index: int, count: int) -> float:
        """A batch's share of the step's mean loss, its gradients added."""
        torch.manual_seed(_mixed(self._spec.seed, index))
        # no name for the logits: they are gone when the backward pass begins
        loss = summed_loss(forward(self._base, self.adapted.model, batch), batch.labels) / count
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _not_finite(self, detail: str) -> Outcome:
        return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail=detail)


def build_optimizer(model: nn.Module, spec: TrialSpec, name: str) -> torch.optim.Optimizer:
    """AdamW, or bitsandbytes' paged one with 8-bit state; B learns faster than A by the spec's ratio.

    Args:
        model: With what is trained.
        spec: Gives learning rate, weight decay and ratio.
        name: `adamw` or `paged_adamw_8bit`.
    """
    kind = PagedAdamW8bit if name == "paged_adamw_8bit" else torch.optim.AdamW
    nothing = [{"params": [torch.nn.Parameter(torch.zeros(1))]}]  # zero-shot; an optimizer must hold something
    built: torch.optim.Optimizer = kind(parameter_groups(model, spec) or nothing, lr=spec.learning_rate)
    return built


def parameter_groups(model: nn.Module, spec: TrialSpec) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and weight decay: B apart from the rest, biases and norms without decay.

    PEFT's `create_loraplus_optimizer` (0.21) would raise the rate of biases and magnitudes with that of B.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = spec.learning_rate * (spec.lora_plus_ratio if ".lora_B." in name else 1.0)
            decay = spec.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def use_checkpointing(model: PreTrainedModel) -> None:
    """Compute blocks again in the backward pass."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # its name in transformers from 5.20 or so
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def _stop_checkpointing(model: PreTrainedModel) -> None:
    """Off again, with the hooks that PEFT and transformers put on the embeddings for it (transformers 5.23)."""
    if not model.is_gradient_checkpointing:
        return
    disable: Any = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()
    hooks = model.get_input_embeddings()._forward_hooks  # noqa: SLF001 -- torch has no public way to find them
    for key in [key for key, hook in hooks.items() if "make_inputs_require_grads" in getattr(hook, "__name__", "")]:
        del hooks[key]


def _plain(metrics: Metrics) -> dict[str, Any]:
    """As plain values, for a checkpoint."""
    return {**dataclasses.asdict(metrics), "memory_kind": metrics.memory_kind.value}


def _metrics_of(kept: Mapping[str, Any]) -> Metrics:
    held_out, span = kept["held_out"], kept["span"]
    whole = {
        "memory_kind": MemoryKind(kept["memory_kind"]),
        "held_out": HeldOut(**held_out) if held_out else None,
        "span": Span(**span) if span else None,
    }
    return Metrics(**{**kept, **whole, "remarks": tuple(kept["remarks"])})


def _mixed(seed: int, index: int) -> int:
    """A seed of its own for the dropout masks of each batch."""
    return (seed * 1_000_003 + index) % 2**63
