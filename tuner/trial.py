"""The values that cross between driver and worker. Both sides import this module; all values are frozen and plain."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from tuner.gpus import Gpu
from tuner.layers import ModelFacts
from tuner.lora import LoraSpec
from tuner.prediction import Prediction

ParamValue = bool | int | float | str
"""A searched parameter's value."""


def param_text(value: ParamValue) -> str:
    """A searched parameter's value as people read it, to three digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def folder_name(number: int) -> str:
    """Name of a trial's folders: `trial-0007`, or `beside-0001` for number -1, which is not of the search."""
    return f"beside-{-number:04d}" if number < 0 else f"trial-{number:04d}"


class TrialState(enum.StrEnum):
    """How far a trial is; Optuna's words, and two more."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """Waits at a rung with its checkpoint on disk; RUNNING for Optuna."""
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"
    """Needs more memory than there is; PRUNED for Optuna, with a constraint that is not kept."""
    FAIL = "FAIL"

    @property
    def is_open(self) -> bool:
        """Whether the trial may still go on."""
        return self in {TrialState.RUNNING, TrialState.PAUSED}


class Decision(enum.StrEnum):
    """What the study says to a trial that has reported."""

    CONTINUE = "continue"
    PAUSE = "pause"
    """Another trial is worth more now; `ask` gives this one out again when its turn comes."""
    PRUNE = "prune"
    FINISH = "finish"


class Metric(enum.StrEnum):
    """How good a model is on the validation data. A sweep names one as its accuracy objective; none stands in for another."""

    ACCURACY = "accuracy"
    """Classification: share of examples whose most likely class is the right one."""
    MACRO_F1 = "macro_f1"
    """Classification: mean over the classes of the harmonic mean of precision and recall; 0 for a class never found."""
    EXACT_MATCH = "exact_match"
    """Causal language models: share of examples whose whole completion greedy decoding would give."""
    CHOICE_ACCURACY = "choice_accuracy"
    """Causal language models: share of examples whose right completion is the likeliest of the choices."""
    TOKEN_ACCURACY = "token_accuracy"  # noqa: S105 -- a metric, no password
    """Causal language models: share of completion tokens that are the likeliest after those before them."""
    PERPLEXITY = "perplexity"
    """Causal language models: exp of the mean cross entropy of a completion token; lower is better, at least 1."""

    @property
    def is_maximized(self) -> bool:
        """Perplexity goes down, all others go up."""
        return self is not Metric.PERPLEXITY

    def loss(self, value: float) -> float:
        """A value turned so that lower is better."""
        return -value if self.is_maximized else value

    @property
    def is_share(self) -> bool:
        """Whether it lies in [0, 1] and reads best in percent."""
        return self is not Metric.PERPLEXITY

    @property
    def is_hit_rate(self) -> bool:
        """Whether it is the share of examples that are right, so that the number of right ones is binomial."""
        return self in {Metric.ACCURACY, Metric.EXACT_MATCH, Metric.CHOICE_ACCURACY}


class Baseline(enum.StrEnum):
    """What a baseline trial is; it stands beside the search and never on the front."""

    ZERO_SHOT = "zero-shot"
    """The frozen model as it is."""
    HEAD_ONLY = "head only"
    """A classification head on the frozen base."""
    FULL = "full fine-tuning"
    """All weights, in float32, without an adapter."""
    UNQUANTIZED_LORA = "LoRA without quantization"
    """The recommended adapter on a base that is not quantized."""


class FailReason(enum.StrEnum):
    """Why a trial ended as FAIL."""

    OUT_OF_MEMORY = "out of memory"
    LOSS_NOT_FINITE = "loss not finite"
    EXCEPTION = "exception"
    WORKER_LOST = "worker lost"
    HUNG = "no step within the limit"
    MEMORY_KIND = "memory measured in another way than the sweep's"


class StopReason(enum.StrEnum):
    """Why a trial was stopped before its last rung."""

    DOMINATED = "dominated at its rung"
    """Another trial costs no more and is better beyond the noise."""
    BELOW_FLOOR = "no better than the floor"
    """After half of its steps it is no better than answering without learning."""
    OUTRANKED = "outranked at its rung"
    """By the metric alone, with `asha` and `median`."""
    BUDGET = "not worth the rest of the budget"
    """Others contributed more to the front when the budget ended."""
    MEMORY = "more memory than the limit"
    """Known before it began, or measured at its first rung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """That a trial is stopped, and why."""

    reason: StopReason
    """The rule."""
    detail: str = ""
    """Its evidence, for people."""


class MemoryKind(enum.StrEnum):
    """How a peak was found. Two kinds never share a front."""

    CUDA_ALLOCATED = "measured: CUDA allocated"
    """`torch.cuda.max_memory_allocated` over the trial."""
    CPU_ALLOCATED = "measured: CPU allocated"
    """Resident tensors plus the allocator's events, by `torch.profiler`, in the largest batches."""
    PREDICTED = "predicted: CUDA allocated"
    """What `torch.cuda.max_memory_allocated` would tell on the card that the sweep names; nobody has measured it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """All that a worker needs to know of a trial beside the sweep file: the result depends on these two alone."""

    number: int
    """Optuna's trial number, from 0; what stands beside the search has -1, -2 and so on, baselines first."""
    lora: LoraSpec | None
    """None only in baselines."""
    learning_rate: float
    """Peak of the schedule."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay; not on biases and norms."""
    lora_plus_ratio: float = 1.0
    """Learning rate of B over that of A; 1 is LoRA, above 1 LoRA+. Source: arXiv 2402.12354."""
    seed: int
    """Start of every draw: head and adapter weights, order of batches, dropout masks."""
    params: tuple[tuple[str, ParamValue], ...] = ()
    """(searched parameter, value) as sampled, for the report."""
    baseline: Baseline | None = None
    """None for a trial of the search."""
    audits: int | None = None
    """Number of the stopped trial that this one finishes, to see what stopping it has lost; None for all others."""
    scores: int | None = None
    """Number of the trial whose adapter this one scores on the test data, training nothing; None for all others."""
    confirms: int | None = None
    """Number of the trial that this one trains anew from another seed; None for all others."""

    @property
    def is_searched(self) -> bool:
        """Whether it is a trial of the search; all others stand beside it."""
        return self.number >= 0

    @property
    def sees_test(self) -> bool:
        """Whether it is scored on the test data at its end: what stands beside the search, audits left out."""
        return not self.is_searched and self.audits is None

    @property
    def label(self) -> str:
        """What people call it: `trial 7`, `baseline 1 (full fine-tuning)`, `audit of trial 7`, `test of trial 7`."""
        if self.audits is not None:
            return f"audit of trial {self.audits}"
        if self.scores is not None:
            return f"test of trial {self.scores}"
        if self.confirms is not None:
            return f"trial {self.confirms} with seed {self.seed}"
        return f"baseline {-self.number} ({self.baseline})" if self.baseline else f"trial {self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """How good a trial is on the test data, which no decision sees."""

    accuracy: float
    """The sweep's accuracy objective on the test data."""
    standard_error: float
    """Of `accuracy`, in its unit, from the test examples' spread."""
    loss: float
    """Mean cross entropy in nats."""
    num_test: int
    """Examples behind it."""
    resampled: tuple[float, ...] = ()
    """`accuracy` on resamples of the test examples. Their draws are the same for all trials of a sweep, so that two trials
    can be compared pair by pair."""
    others: tuple[tuple[str, float], ...] = ()
    """(metric, value) of the task's metrics that are not the objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Where and when something was worked on."""

    worker: str
    """Names the process: node and process id."""
    begun_s: float
    """Seconds since 1970, by the worker's clock."""
    ended_s: float
    """The same, later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """What a trial's last report would be on the examples that it was scored on before, so that its curve can be followed."""

    accuracy: float
    """As in `Metrics`."""
    loss: float
    """As in `Metrics`."""
    num: int
    """Examples behind them."""


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
    """The sweep's accuracy objective on the validation data; `SweepConfig.metric` says which one and so the unit."""
    standard_error: float
    """Of `accuracy`, in its unit, from the validation examples' spread."""
    loss: float
    """Mean cross entropy on the validation data, in nats: of an example's class, or of a completion's token."""
    num_validation: int
    """Examples behind `accuracy` and `loss`: all of the validation data at the last rung, maybe fewer before."""
    trainable_params: int
    """Counted on the wrapped model, head included."""
    peak_memory_bytes: int
    """Largest so far; `memory_kind` says of what."""
    memory_kind: MemoryKind
    """How the peak was found."""
    peak_reserved_bytes: int | None = None
    """`torch.cuda.max_memory_reserved`; None on a CPU."""
    others: tuple[tuple[str, float], ...] = ()
    """(metric, value) of the task's metrics that are not the objective."""
    train_loss: float | None = None
    """Mean cross entropy of the training batches since the report before, in nats, each before its step; None if unknown."""
    worst_train_loss: float | None = None
    """The largest of them."""
    held_out: HeldOut | None = None
    """Scores on the test data: only at the end of what stands beside the search."""
    sampled: Sampled | None = None
    """At the last rung, where the ones before were on fewer examples."""
    span: Span | None = None
    """The work since the report before; None in journals from before it was kept, and in simulations."""
    remarks: tuple[str, ...] = ()
    """What befell the trial on its way here and left its results as they are, such as a checkpoint that had to be left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    """COMPLETE, PRUNED, INFEASIBLE or FAIL."""
    reason: FailReason | None = None
    """Set when something went wrong: always with FAIL, with INFEASIBLE where a trial ran out of memory."""
    stop: StopReason | None = None
    """Set exactly when the state is PRUNED or INFEASIBLE; None in journals from before reasons were kept."""
    detail: str = ""
    """For people: the exception's text and traceback of a failure, or the evidence for a stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """A trial that has saved its state and stopped in the midst; it goes on from there when the sweep is resumed."""

    steps: int
    """Optimizer steps done."""
    problem: str = ""
    """What keeps trials from going on, such as a full disk; empty where somebody has asked for the interruption."""


Result = Metrics | Outcome | Interruption
"""What a worker brings back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What a worker that has several trials at work brings at a time."""

    results: tuple[tuple[int, Result], ...]
    """(trial number, what came of it), of those that have something to tell."""
    room: int
    """Trials that it could take on beside those that it has, these among them."""


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
    prediction: Prediction | None = None
    """Its peak as known before it began; None where the sweep names no card and runs on none."""

    @property
    def number(self) -> int:
        """Optuna's trial number."""
        return self.spec.number

    @property
    def place(self) -> tuple[bool, int]:
        """Sort key: trials by number, then baselines from -1 down."""
        return self.number < 0, abs(self.number)

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
    """Examples put aside; no decision of the sweep sees them, and what is on the front at the end is scored on them."""
    labels: tuple[str, ...] = ()
    """Class names by class index."""
    majority_share: float = 0.0
    """Share of the most frequent answer (class or completion) in the validation data, in [0, 1]."""
    num_duplicates: int = 0
    """Examples left out because their input came before, in the same split or in one that is held out."""
    longest_train: int = 0
    """Tokens of the longest training example; 0 where nobody has counted."""
    longest_validation: int = 0
    """Tokens of the longest validation example."""
    most_learned: int = 0
    """Most tokens that are learned of one training example."""
    most_scored: int = 0
    """Most tokens that are scored of one validation example."""
    num_too_long: int = 0
    """Examples left out because they are longer than `data.max_length`; classification cuts them off instead."""
    model: ModelFacts = field(default_factory=ModelFacts)
    """What the base model is made of."""
    gpu: Gpu | None = None
    """The card that the worker runs on; None on a CPU."""
    model_fingerprint: str = ""
    """SHA-256 of the base model's configuration and, of each weight file, its size, first and last MiB."""
    versions: tuple[tuple[str, str], ...] = ()
    """(package, version) on the worker, Python among them."""
    hardware: str = ""
    """What the worker runs on, such as `Linux x86_64, 16 CPU cores, NVIDIA L4`."""
