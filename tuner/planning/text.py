"""A plan as text: settings, corners, samples, time and money; with `--explain` where each byte goes. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.gpus import ASSUMED_CONTEXT_MIB
from tuner.prediction import Part, Verdict
from tuner.workload import settings_text

if TYPE_CHECKING:
    from tuner.planning import Plan, Planned
    from tuner.prediction import Prediction

BAR_WIDTH = 60
"""Characters of a bar that is as long as the card's memory."""
LETTERS = {
    Part.WEIGHTS: "W",
    Part.QUANTIZED: "Q",
    Part.QUANTIZATION: "q",
    Part.ADAPTERS: "A",
    Part.GRADIENTS: "G",
    Part.OPTIMIZER: "O",
    Part.ACTIVATIONS: "a",
    Part.LOGITS: "L",
    Part.SCRATCH: "s",
    Part.FRAGMENTATION: "-",
    Part.CONTEXT: "C",
}
"""A part's letter in a bar."""


def plan_text(plan: Plan, *, is_explained: bool, price: float | None = None) -> str:
    """The whole plan.

    Args:
        plan: The plan.
        is_explained: Break every corner's peak down.
        price: Of a GPU hour, in any currency.
    """
    lines = [*_head(plan), "", *_table(("corner", *COLUMNS), [_row(one) for one in plan.corners])]
    if plan.samples:
        lines += ["", *_sampled(plan.samples)]
    if is_explained:
        lines += ["", *_explained(plan)]
    return "\n".join([*lines, "", *_cost(plan, price), "", NOTE])


COLUMNS = ("parameters", "allocated", "reserved", "with context", "peak in", "verdict", "side by side", "in one worker")
NOTE = (
    "Predicted from shapes, not measured. Checked against runs on a Tesla T4 and an H100 (docs/memory.md); other cards,\n"
    "generation and full fine-tuning were not run on a GPU."
)


def gib(num_bytes: float) -> str:
    """Memory for people."""
    return f"{num_bytes / GIB:.2f} GiB"


def _head(plan: Plan) -> Iterator[str]:
    gpu, model = plan.gpu, plan.model
    assumed = ", assumed" if gpu.context_mib == ASSUMED_CONTEXT_MIB else ""
    context = f"{gib(gpu.context_bytes)} of them the CUDA context{assumed}"
    yield f"{plan.name} on {gpu.name}: {gib(gpu.memory_bytes)}, {context}"
    yield f"base: {model.family}, {model.num_params:,} parameters, {len(model.layers)} linear layers in its blocks; {plan.origin}"
    yield f"settings (objectives.memory): {settings_text(plan.workload)}"


def _row(planned: Planned) -> tuple[str, ...]:
    found = planned.prediction
    return (
        planned.label,
        f"{planned.trainable_params:,}",
        gib(found.allocated_bytes),
        gib(found.reserved_bytes),
        gib(found.total_bytes),
        str(found.phase),
        str(found.verdict),
        str(found.side_by_side()),
        str(max(0, found.together())),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        first, *rest = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join((first, *rest)).rstrip()


def _sampled(samples: Sequence[Planned]) -> Iterator[str]:
    verdicts = Counter(one.prediction.verdict for one in samples)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in Verdict if verdicts[verdict])
    peaks = [one.prediction.allocated_bytes for one in samples]
    middle = statistics.median(peaks)
    yield f"{len(samples)} sampled trials: {counts}"
    yield f"allocated: {gib(min(peaks))} to {gib(max(peaks))}, median {gib(middle)}"
    methods = Counter(str(one.prediction.method) for one in samples)
    yield "predicted: " + ", ".join(f"{num} {method}" for method, num in methods.items())
    for one in samples:
        if one.prediction.verdict is not Verdict.FITS:
            ranks = ", ".join(f"{key}: {rank}" for key, rank in one.lora.rank_pattern)
            what = f"{'+'.join(one.lora.target_modules)} r {one.lora.r}{f' ({ranks})' if ranks else ''}"
            yield f"  {one.prediction.verdict}: {what}, {gib(one.prediction.total_bytes)}"


def _explained(plan: Plan) -> Iterator[str]:
    yield "where the memory goes at the peak, GiB"
    parts = [part for part in Part if any(dict(one.prediction.parts).get(part) for one in plan.corners)]
    rows = [(one.label, *(_part(one.prediction, part) for part in parts)) for one in plan.corners]
    yield from _table(("corner", *map(str, parts)), rows)
    yield ""
    legend = ", ".join(f"{LETTERS[part]} {part}" for part in parts)
    yield f"{legend}; the bar ends at {gib(plan.gpu.memory_bytes)}: |"
    width = max(len(one.label) for one in plan.corners)
    for one in plan.corners:
        yield f"{one.label.ljust(width)}  {bar(one.prediction)}"
    yield ""
    for one in plan.corners:
        found = one.prediction
        phases = ", ".join(f"{phase} {gib(num_bytes)}" for phase, num_bytes in found.phases)
        yield f"{one.label}: {phases}"
        yield f"  at the peak {found.last} was allocated; the largest tensor beside weights: {found.largest} ({found.method})"
    yield from _lesson(plan.corners)


def _lesson(corners: Sequence[Planned]) -> Iterator[str]:
    """What ranks change, and what modules change."""
    peaks = {one.label: one.prediction.allocated_bytes for one in corners}
    by_rank = [
        abs(peaks[label] - peaks[label.removesuffix("smallest") + "largest"])
        for label in peaks
        if label.endswith("smallest") and label.removesuffix("smallest") + "largest" in peaks
    ]
    same_rank = [num_bytes for label, num_bytes in peaks.items() if label.endswith("largest")]
    if by_rank and len(same_rank) > 1:
        yield ""
        yield (
            f"between the smallest and the largest ranks lie at most {gib(max(by_rank))}, between the sets of modules at their "
            f"largest ranks {gib(max(same_rank) - min(same_rank))}"
        )


def bar(prediction: Prediction) -> str:
    """The parts as letters, as long as their bytes; `|` is the end of the card."""
    scale, text, done = BAR_WIDTH / prediction.capacity_bytes, "", 0.0
    for part, num_bytes in prediction.parts:
        done += max(num_bytes, 0) * scale
        text += LETTERS[part] * (round(done) - len(text))
    return text.ljust(BAR_WIDTH, ".")[:BAR_WIDTH] + "|" + text[BAR_WIDTH:]


def _part(prediction: Prediction, part: Part) -> str:
    return f"{dict(prediction.parts).get(part, 0) / GIB:.2f}"


def _cost(plan: Plan, price: float | None) -> Iterator[str]:
    yield f"at most {plan.num_steps:,} optimizer steps in the search"
    if plan.hours is None:
        yield "give --step-s, or --like DIR with a sweep that has run, for hours and cost"
        return
    cost = "" if price is None else f", {plan.hours * price:,.2f} at {price:g} an hour"
    evaluations = "evaluations count as far as the step time has them in it"
    yield f"{plan.step_s:.3g} s a step: {plan.hours:,.1f} GPU hours{cost}; {evaluations}"
