"""Numbers and results as people read them. Pure; runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.dimensions import Choices, Range, TargetChoices
from tuner.front import GIB, Objective
from tuner.report.data import ReportData
from tuner.space import dimensions
from tuner.space_config import SpaceConfig
from tuner.trial import Baseline, MemoryKind, Metrics, TrialState, param_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.config import SweepConfig
    from tuner.space import Searched

MIB = 2**20
MOST_NAMED = 6
"""Trials that a sentence names."""

COSTS = {Objective.TRAINABLE_PARAMS: "trainable parameters", Objective.PEAK_MEMORY_GIB: "peak memory"}
"""What a front may weigh beside its metric."""

QUANTIZATIONS = {
    "nf4": "linear layers in NF4 (QLoRA)",
    "fp4": "linear layers in FP4 (QLoRA)",
    "int8": "linear layers in 8-bit integers",
    "none": "not quantized (LoRA)",
}
"""How the frozen layers are stored."""

STATES = {
    TrialState.RUNNING: "still running",
    TrialState.PAUSED: "paused",
    TrialState.PRUNED: "stopped early",
    TrialState.INFEASIBLE: "too large",
    TrialState.FAIL: "failed",
}
"""States of trials that have not finished, inside a sentence."""

MEMORY_KINDS = {
    MemoryKind.CUDA_ALLOCATED: (
        "the most that PyTorch had allocated on the GPU at any time of the trial "
        "(torch.cuda.max_memory_allocated); CUDA's own context is not in it"
    ),
    MemoryKind.CPU_ALLOCATED: (
        "resident tensors plus what PyTorch's allocator handed out (torch.profiler), "
        "in the largest batches; not the size of the process"
    ),
    MemoryKind.PREDICTED: (
        "what PyTorch would have allocated at most on the card that the sweep names (torch.cuda.max_memory_allocated), "
        "predicted from the model's shapes and not measured; CUDA's own context is not in it"
    ),
}
"""How a peak was found, as half a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUnit:
    """The unit that all peaks of one report are shown in."""

    name: str
    """`MiB` or `GiB`."""
    num_bytes: int
    """Bytes in one."""

    def of(self, metrics: Metrics) -> float:
        """The peak in this unit."""
        return metrics.peak_memory_bytes / self.num_bytes

    def text(self, metrics: Metrics) -> str:
        """The peak with its unit."""
        value = self.of(metrics)
        return f"{value:,.1f} {self.name}" if value >= 10 else f"{value:.2f} {self.name}"  # noqa: PLR2004 -- 3 digits


def memory_unit(data: ReportData) -> MemoryUnit:
    """GiB, or MiB where no peak reaches one GiB."""
    if data.peak_memory_bytes >= GIB:
        return MemoryUnit(name="GiB", num_bytes=GIB)
    return MemoryUnit(name="MiB", num_bytes=MIB)


def percent(share: float) -> str:
    """0.845 -> 84.5%."""
    return f"{100 * share:.1f}%"


def counted(number: int, noun: str) -> str:
    """2, "baseline" -> 2 baselines."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def objective_text(objective: Objective) -> str:
    """What a front weighs, inside a sentence."""
    return f"validation {metric_text.name(objective.metric)}" if objective.metric else COSTS[objective]


def result(data: ReportData, metrics: Metrics) -> str:
    """The sweep's metric with its error: `84.5% ± 1.8`, `3.42 ± 0.13`."""
    return metric_text.text_with_error(data.metric, metrics.accuracy, metrics.standard_error)


def majority_name(config: SweepConfig) -> str:
    """What `Inspection.majority_share` is the share of."""
    return f"Most frequent {'class' if config.training.task == 'classification' else 'completion'}"


def baseline_key(data: ReportData) -> str:
    """Which mark is which baseline: `B1 zero-shot · B2, B3 full fine-tuning`; empty without baselines."""
    marks = {kind: ", ".join(row.mark for row in data.baselines if row.baseline is kind) for kind in Baseline}
    return " · ".join(f"{text} {kind}" for kind, text in marks.items() if text)


def short_count(number: float) -> str:
    """12340 -> 12.34k."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{suffix}"
    return f"{number:.4g}"


def numbers_text(numbers: Sequence[int]) -> str:
    """[3, 5, 7] -> trials 3, 5 and 7; of many the first few and how many more."""
    if not numbers:
        return ""
    shown = [str(number) for number in numbers[:MOST_NAMED]]
    if len(numbers) > MOST_NAMED:
        return f"trials {', '.join(shown)} and {len(numbers) - MOST_NAMED} more"
    *first, last = shown
    return f"trials {', '.join(first)} and {last}" if first else f"trial {last}"


def last_line(text: str) -> str:
    """What a traceback says at its end."""
    return text.strip().splitlines()[-1] if text.strip() else "no more is known"


def scale_text(scale: float | None) -> str:
    """What a line of trials of about the same scale is called."""
    return "all scales together" if scale is None else f"scale {param_text(scale)}"


def size_text(num_bytes: int) -> str:
    """In MB or GB, as file managers and download pages count."""
    mega = num_bytes / 1e6
    return f"{mega / 1e3:,.1f} GB" if mega >= 1e3 else f"{mega:,.1f} MB" if mega >= 0.1 else f"{mega * 1e3:,.0f} kB"  # noqa: PLR2004


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    minute, hour = 60, 3600
    if seconds < 2 * minute:
        return f"{seconds:.0f} s"
    return f"{seconds / minute:.0f} min" if seconds < 2 * hour else f"{seconds / hour:.1f} h"


def dimension_of(space: SpaceConfig, name: str) -> Searched:
    """What the sweep file says of a searched parameter.

    Raises:
        ValueError: The parameter has a fixed value.
    """
    found = dimensions(space).get(name)
    if found is not None:
        return found
    msg = f"{name} is not searched, its value is fixed"
    raise ValueError(msg)


def dimension_text(space: SpaceConfig, name: str) -> str:
    """A searched parameter's range or choices."""
    match dimension_of(space, name):
        case Range() as span:
            step = f", step {param_text(span.step)}" if span.step is not None else ""
            return f"{param_text(span.low)} to {param_text(span.high)}{', log scale' if span.log else ''}{step}"
        case Choices(choices=choices):
            return "one of " + ", ".join(param_text(choice) for choice in choices)
        case TargetChoices(choices=sets):
            return "; ".join(f"{key}: {', '.join(modules)}" for key, modules in sets.items())


def savings(best: Metrics, cheap: Metrics, objectives: tuple[Objective, ...]) -> Iterator[str]:
    """What a trial costs less than another, objective by objective."""
    for objective in objectives:
        if objective.metric is None:
            yield _saving(objective.of(best), objective.of(cheap), COSTS[objective])


def _saving(before: float, after: float, noun: str) -> str:
    ratio = before / after if after else 1.0
    if ratio >= 2:  # noqa: PLR2004 -- reads better than "50% fewer" from here on
        return f"{ratio:.1f} times {'fewer' if noun.endswith('s') else 'less'} {noun}"
    change = round(100 * (1 - after / before)) if before else 0
    if change == 0:
        return f"the same {noun}"
    return f"{abs(change)}% {'more' if change < 0 else 'fewer' if noun.endswith('s') else 'less'} {noun}"
