"""Numbers and results as people read them. Pure; runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.config import Choices, Range, SpaceConfig, TargetChoices
from tuner.front import GIB, Objective
from tuner.report.data import ReportData
from tuner.trial import MemoryKind, Metrics, TrialState, param_text

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 2**20
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"

Dimension = Range[int] | Range[float] | Choices[int] | Choices[float] | TargetChoices
"""What the sweep file says of a searched parameter."""

OBJECTIVES = {
    Objective.ACCURACY: "validation accuracy",
    Objective.TRAINABLE_PARAMS: "trainable parameters",
    Objective.PEAK_MEMORY_GIB: "peak memory",
}

MEMORY_KINDS = {
    MemoryKind.CUDA_ALLOCATED: (
        "the most that PyTorch had allocated on the GPU at any time of the trial "
        "(torch.cuda.max_memory_allocated); CUDA's own context is not in it"
    ),
    MemoryKind.CPU_ALLOCATED: (
        "resident tensors plus what PyTorch's allocator handed out (torch.profiler), "
        "at each rung's largest batches; not the size of the process"
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
    peak = max((row.last.peak_memory_bytes for row in data.rows if row.last), default=0)
    return MemoryUnit(name="GiB", num_bytes=GIB) if peak >= GIB else MemoryUnit(name="MiB", num_bytes=MIB)


def percent(share: float) -> str:
    """0.845 -> 84.5%."""
    return f"{100 * share:.1f}%"


def with_error(share: float, error: float) -> str:
    """0.845, 0.018 -> 84.5% ± 1.8, in one piece where lines break."""
    return f"{percent(share)} ± {100 * error:.1f}".replace(" ", NO_BREAK_SPACE)


def short_count(number: float) -> str:
    """12340 -> 12.34k."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.4g}{suffix}"
    return f"{number:.4g}"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    minute, hour = 60, 3600
    if seconds < 2 * minute:
        return f"{seconds:.0f} s"
    return f"{seconds / minute:.0f} min" if seconds < 2 * hour else f"{seconds / hour:.1f} h"


def dimension_of(space: SpaceConfig, name: str) -> Dimension:
    """What the sweep file says of a searched parameter.

    Raises:
        ValueError: The parameter has a fixed value.
    """
    prefix, _, module = name.partition(".")
    found = space.rank_pattern[module] if prefix == "rank_pattern" else getattr(space, name)
    if isinstance(found, (Range, Choices, TargetChoices)):
        return found
    msg = f"{name} is not searched, it is fixed at {found!r}"
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


def headline(data: ReportData) -> str:
    """The result in one to three sentences."""
    if not data.front:
        return _without_front(data)
    if len(data.front) == 1:
        return (
            f"Trial {data.front[0].number} is the whole front: no other finished trial is better in anything weighed."
        )
    return " ".join(_sentences(data))


def _without_front(data: ReportData) -> str:
    counts = data.num_by_state
    words = {TrialState.RUNNING: "still running", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}
    rest = ", ".join(f"{counts[state]} {text}" for state, text in words.items() if counts[state])
    return f"No trial has finished yet ({rest})." if rest else "No trial has finished yet."


def _sentences(data: ReportData) -> Iterator[str]:
    rows = {pick.rule: pick.row for pick in data.picks}
    best, cheap = rows["most-accurate"], rows["cheapest-within:0.01"]
    if best.last is None or cheap.last is None:
        return
    error = best.last.standard_error
    yield f"Trial {best.number} is the most accurate: {with_error(best.last.accuracy, error)}."
    if cheap.number == best.number:
        yield "No cheaper trial on the front comes within 1 point of it."
        return
    savings = " and ".join(_savings(best.last, cheap.last, data.objectives))
    yield f"Trial {cheap.number} reaches {percent(cheap.last.accuracy)} with {savings or 'the same cost'}."
    if (gap := best.last.accuracy - cheap.last.accuracy) < 2 * error:
        examples = f"{best.last.num_validation:,} validation examples"
        yield f"The {100 * gap:.1f} points between the two are within the noise of {examples}."


def _savings(best: Metrics, cheap: Metrics, objectives: tuple[Objective, ...]) -> Iterator[str]:
    for objective in objectives:
        if not objective.is_maximized:
            yield _saving(objective.of(best), objective.of(cheap), OBJECTIVES[objective])


def _saving(before: float, after: float, noun: str) -> str:
    ratio = before / after if after else 1.0
    if ratio >= 2:  # noqa: PLR2004 -- reads better than "50% fewer" from here on
        return f"{ratio:.1f} times {'fewer' if noun.endswith('s') else 'less'} {noun}"
    change = round(100 * (1 - after / before)) if before else 0
    if change == 0:
        return f"the same {noun}"
    return f"{abs(change)}% {'more' if change < 0 else 'fewer' if noun.endswith('s') else 'less'} {noun}"
