"""A trial's peak on a GPU: build, trace, replay."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.gpus import NUM_WORKSPACES
from tuner.prediction import Method, Part, Phase, Prediction
from tuner.sizes import ROUNDING
from tuner.vram import cuda
from tuner.vram.build import build
from tuner.vram.replay import replay
from tuner.vram.steps import Trace, trace
from tuner.vram.tracker import Peak, Tracker

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tuner.gpus import Gpu
    from tuner.lora import LoraSpec
    from tuner.trial import Baseline
    from tuner.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A trial on a model of some depth."""

    config: PretrainedConfig
    """transformers' configuration of the base."""
    task: str
    """`classification` or `causal-lm`."""
    lora: LoraSpec | None
    """The adapter; None in some baselines."""
    baseline: Baseline | None
    """What kind of baseline it is."""
    workload: Workload
    """What is run."""
    gpu: Gpu
    """Where."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSeen:
    """A phase's peak."""

    parts: Mapping[Part, float]
    """What for -> bytes; they add up to the peak."""
    last: str
    """What was allocated at last."""
    largest: str
    """The largest tensor beside weights and what is trained."""

    @property
    def num_bytes(self) -> float:
        """Allocated at the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a trace tells about a trial."""

    phases: Mapping[Phase, PhaseSeen]
    """In the order in which they ran."""
    slack_bytes: float
    """What the allocator's blocks are larger than the tensors in them, at the peak."""
    unused_bytes: float
    """What is reserved beyond the largest that was allocated."""
    trainable_params: float
    """Numbers that are trained."""


def predict(case: Case) -> Prediction:
    """Trace all layers."""
    return prediction_from(look(case), case.gpu, Method.TRACE)


def look(case: Case) -> Seen:
    """Trace a trial and replay it."""
    traced = traced_on_gpu(case)
    tracker = traced.tracker
    allocator = replay(traced, case.gpu, case.workload)
    workspaces = NUM_WORKSPACES * case.gpu.workspace_bytes
    phases = {phase: _phase_seen(tracker, peak, workspaces) for phase, peak in tracker.peaks.items()}
    return Seen(
        phases=phases,
        slack_bytes=allocator.most_allocated - max(seen.num_bytes for seen in phases.values()),
        unused_bytes=allocator.most_reserved - allocator.most_allocated,
        trainable_params=traced.trainable_params,
    )


def prediction_from(seen: Seen, gpu: Gpu, method: Method) -> Prediction:
    """Put together what is said of a trial."""
    phase, peak = max(seen.phases.items(), key=lambda item: item[1].num_bytes)
    allocated = round(peak.num_bytes + seen.slack_bytes)
    reserved = round(allocated + seen.unused_bytes)
    parts = {part: round(num_bytes) for part, num_bytes in peak.parts.items()}
    parts[Part.FRAGMENTATION] = reserved - sum(parts.values())
    parts[Part.CONTEXT] = gpu.context_bytes
    return Prediction(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        context_bytes=gpu.context_bytes,
        capacity_bytes=gpu.memory_bytes,
        trainable_params=round(seen.trainable_params),
        phase=phase,
        last=peak.last,
        largest=peak.largest,
        parts=tuple((part, parts[part]) for part in Part if parts.get(part)),
        phases=tuple((phase, round(seen.num_bytes)) for phase, seen in seen.phases.items()),
        method=method,
    )


def traced_on_gpu(case: Case) -> Trace:
    """Run the trial's steps as a GPU would."""
    config = copy.deepcopy(case.config)
    built = build(config, case.task, case.workload, case.lora, case.baseline)
    vocabulary = 0 if case.task == "classification" else int(config.get_text_config().vocab_size)
    tracker = Tracker(cuda.handlers(case.workload), rounding=ROUNDING, vocabulary=vocabulary)
    return trace(built, case.workload, tracker, cuda.functions(case.gpu, case.workload))


def _phase_seen(tracker: Tracker, peak: Peak, workspaces: int) -> PhaseSeen:
    living = tracker.living_at(peak)
    parts: Counter[Part] = Counter({Part.SCRATCH: workspaces})
    for storage in living:
        parts[storage.part] += storage.num_bytes
    passing = [storage for storage in living if storage.part in {Part.ACTIVATIONS, Part.LOGITS, Part.SCRATCH}]
    largest = max(passing, key=lambda storage: storage.num_bytes).text if passing else ""
    return PhaseSeen(parts=parts, last=peak.text, largest=largest)
