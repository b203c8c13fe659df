"""The values that cross between driver and worker. Both sides import this module; all values are frozen and plain."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

ParamValue = bool | int | float | str
"""A searched parameter's value."""


def param_text(value: ParamValue) -> str:
    """A searched parameter's value as people read it, to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class TrialState(enum.StrEnum):
    """How far a trial is; Optuna's words."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"


class Decision(enum.StrEnum):
    """What the study says to a trial that has reported."""

    CONTINUE = "continue"
    PRUNE = "prune"
    FINISH = "finish"


class FailReason(enum.StrEnum):
    """Why a trial ended as FAIL."""

    OUT_OF_MEMORY = "out of memory"
    LOSS_NOT_FINITE = "loss not finite"
    EXCEPTION = "exception"
    WORKER_LOST = "worker lost"
    MEMORY_KIND = "memory measured in another way than the sweep's"


class MemoryKind(enum.StrEnum):
    """How a peak was found. Two kinds never share a front."""

    CUDA_ALLOCATED = "measured: CUDA allocated"
    """`torch.cuda.max_memory_allocated` over the trial."""
    CPU_ALLOCATED = "measured: CPU allocated"
    """Resident tensors plus the allocator's events, by `torch.profiler`, at each rung's largest batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSpec:
    """One adapter, in PEFT's words."""

    r: int
    """Rank of every target module that `rank_pattern` does not name; at least 1."""
    lora_alpha: float
    """Scaling numerator at rank `r`. Other ranks get an alpha that keeps `lora_alpha / r` the same for all modules."""
    lora_dropout: float
    """Probability in [0, 1)."""
    target_modules: tuple[str, ...]
    """Module names, or dotted ends of them, such as `query` or `attention.output.dense`."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """(target module, rank); rank 0 means "not adapted"."""

    @property
    def scale(self) -> float:
        """The factor alpha / r on B A x, the same for every module."""
        return self.lora_alpha / self.r

    def ranks(self) -> dict[str, int]:
        """Target module -> rank, without those of rank 0."""
        own = dict(self.rank_pattern)
        ranks = {target: own.get(target, self.r) for target in self.target_modules}
        return {target: r for target, r in ranks.items() if r > 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """All that a worker needs to know of a trial beside the sweep file: the result depends on these two alone."""

    number: int
    """Optuna's trial number, from 0."""
    lora: LoraSpec | None
    """None trains the classification head alone, on the frozen base."""
    learning_rate: float
    """Peak of the schedule."""
    seed: int
    """Start of every draw: head and adapter weights, order of batches, dropout masks."""
    params: tuple[tuple[str, ParamValue], ...] = ()
    """(searched parameter, value) as sampled, for the report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """What a trial reports at a rung."""

    steps: int
    """Optimizer steps done since the trial began."""
    tokens: int
    """Tokens trained on so far, padding not counted."""
    train_s: float
    """Seconds of training and evaluation so far, over all processes that worked on the trial."""
    accuracy: float
    """On the validation data, in [0, 1]."""
    loss: float
    """Mean cross entropy on the validation data, in nats."""
    num_validation: int
    """Examples behind `accuracy` and `loss`."""
    trainable_params: int
    """Counted on the wrapped model, head included."""
    peak_memory_bytes: int
    """Largest so far; `memory_kind` says of what."""
    memory_kind: MemoryKind
    """How the peak was found."""
    peak_reserved_bytes: int | None = None
    """`torch.cuda.max_memory_reserved`; None on a CPU."""

    @property
    def standard_error(self) -> float:
        """Of the accuracy, in [0, 0.5]: sqrt(p (1 - p) / n) of a binomial share."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.num_validation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    """COMPLETE, PRUNED or FAIL."""
    reason: FailReason | None = None
    """Set exactly when the state is FAIL."""
    detail: str = ""
    """For people: the exception's text and traceback of a failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """All that the study knows of a trial."""

    spec: TrialSpec
    """What was tried."""
    state: TrialState
    """How far it is."""
    curve: tuple[Metrics, ...] = ()
    """One entry per rung reached, by rising steps."""
    outcome: Outcome | None = None
    """None while it runs."""

    @property
    def number(self) -> int:
        """Optuna's trial number."""
        return self.spec.number

    @property
    def last(self) -> Metrics | None:
        """The newest report; None before the first rung."""
        return self.curve[-1] if self.curve else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a worker found when it looked at the model and the data, before anything is trained."""

    problems: tuple[tuple[str, str], ...]
    """(dotted key in the sweep file, message) for everything that would stop each trial."""
    data_fingerprint: str = ""
    """SHA-256 of the rows as split, so that a resumed sweep can tell that its data changed."""
    num_train: int = 0
    """Training examples."""
    num_validation: int = 0
    """Validation examples."""
    num_test: int = 0
    """Examples put aside; no decision of the sweep sees them."""
    labels: tuple[str, ...] = ()
    """Class names by class index."""
    majority_share: float = 0.0
    """Share of the most frequent class in the validation data, in [0, 1]."""
