"""What summary.json holds, as values: its schema is that of these classes (`docs/summary.schema.json`). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.prediction import Phase, Verdict
from tuner.report.findings.diagnoses import Diagnosis
from tuner.report.findings.held_out import Confirmation, Flattery
from tuner.report.findings.importance import Importances
from tuner.report.findings.intervals import Estimate, Gap
from tuner.report.findings.progress import Growth, Timeline
from tuner.report.rows import Standing
from tuner.trial import Baseline, MemoryKind, Metric, ParamValue, StopReason, TrialState

VERSION = 2
"""Raised when a key changes its meaning or goes."""

Interval = tuple[float, float]
"""Low and high end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AtRung:
    """What a trial reported at a rung."""

    steps: int
    value: float | None
    """The sweep's metric; null where it is not finite."""
    standard_error: float | None
    loss: float | None
    """Validation cross entropy in nats."""
    train_loss: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """A trial's memory as known before it began."""

    allocated_gib: float
    reserved_gib: float
    phase: Phase
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A trial, a baseline, an audit or a trial trained anew."""

    number: int
    """Below 0 beside the search."""
    state: TrialState
    standing: Standing
    seed: int
    learning_rate: float | None
    params: dict[str, ParamValue]
    """Searched parameter -> value."""
    baseline: Baseline | None
    audits: int | None
    """The stopped trial that it finishes."""
    confirms: int | None
    """The trial that it trains anew."""
    reason: str
    """What went wrong; may be empty."""
    stop: StopReason | None
    trainable_params: int | None
    peak_memory_gib: float | None
    train_s: float | None
    mean_rank: float | None
    """Over the layers that are adapted."""
    others: dict[str, float]
    """The task's other metrics at the last report."""
    curve: tuple[AtRung, ...]
    test: Estimate | None
    """Score on the test data, with its interval."""
    predicted: Predicted | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A recommended trial."""

    number: int
    rules: tuple[str, ...]
    """As `tuner export --pick` takes them."""
    validation: Estimate
    test: Estimate | None
    trainable_params: int
    share_of_model: float | None
    peak_memory_gib: float
    memory_kind: MemoryKind
    adapter_bytes: int
    train_s: float
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two recommended trials."""

    one: int
    other: int
    gap: Gap
    """By how much the first is better."""
    is_clear: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditSummary:
    """What stopping early has lost. An interval is null for a census."""

    num_stopped: int
    num_audited: int
    num_failed: int
    is_census: bool
    steps: int
    on_front: tuple[int, ...]
    share_on_front: float | None
    share_on_front_interval: Interval | None
    num_lost: float | None
    num_lost_interval: Interval | None
    hypervolume_loss: float
    mean_hypervolume_loss: float | None
    mean_hypervolume_loss_interval: Interval | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPoint:
    """The best finished trial of a rank and scale."""

    scale: float | None
    rank: float
    number: int
    num_trials: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Accuracy against rank."""

    points: tuple[RankPoint, ...]
    plateau_rank: float | None
    """From which nothing more is gained; null where the highest is better than all lower ones."""
    largest_gain: Gap | None
    """Of the best higher rank over the plateau's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Examples and their fingerprint."""

    num_train: int
    num_validation: int
    num_test: int
    majority_share: float
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Optimizer steps of the search."""

    spent: int
    without_pruning: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What was spent beside the search."""

    steps: int
    train_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """Ranks on the front, by module and depth band."""

    module: str
    band: str
    ranks: dict[int, float]
    """Trial -> mean rank there; 0 where it is not adapted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A sweep in numbers."""

    version: int
    name: str
    tuner_version: str
    metric: Metric
    objectives: tuple[str, ...]
    headline: str
    states: dict[TrialState, int]
    """Trials of the search."""
    steps: Steps
    train_s: float
    num_begun: int
    """Trials of the search that were begun."""
    beside: Cost
    """What the baselines cost."""
    front: tuple[int, ...]
    """Cheapest first."""
    picks: dict[str, int]
    """Rule -> trial."""
    answers: tuple[Answer, ...]
    comparisons: tuple[Pair, ...]
    flattery: Flattery | None
    confirmations: tuple[Confirmation, ...]
    diagnoses: tuple[Diagnosis, ...]
    importances: Importances | None
    mattered: tuple[str, ...]
    """Choices that explain more than chance would."""
    ranks: Ranks | None
    heat: tuple[Heat, ...]
    growth: Growth | None
    is_more_likely_to_help: bool | None
    """Whether another trial is; null where nobody can tell."""
    timeline: Timeline | None
    ties: dict[int, tuple[int, ...]]
    """Trial on the front -> the others on it that it can't be told apart from."""
    stops: dict[StopReason, int]
    audit: AuditSummary | None
    memory_kind: MemoryKind | None
    prediction_errors: tuple[float, ...]
    """Measured over predicted peak, less 1."""
    data: Data
    settings: dict[str, str]
    reproduction: dict[str, str]
    trials: tuple[Trial, ...]
