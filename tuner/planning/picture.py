"""A plan's corners as stacked bars. Runs on the driver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

from tuner.front import GIB
from tuner.prediction import Part

if TYPE_CHECKING:
    from tuner.planning import Plan

COLORS = {
    Part.WEIGHTS: "#4c566a",
    Part.QUANTIZED: "#5e81ac",
    Part.QUANTIZATION: "#81a1c1",
    Part.ADAPTERS: "#d08770",
    Part.GRADIENTS: "#bf616a",
    Part.OPTIMIZER: "#ebcb8b",
    Part.ACTIVATIONS: "#a3be8c",
    Part.LOGITS: "#b48ead",
    Part.SCRATCH: "#88c0d0",
    Part.FRAGMENTATION: "#d8dee9",
    Part.CONTEXT: "#aaaaaa",
}
"""One for each part, the same in every picture."""


def draw_plan(plan: Plan, file: Path) -> None:
    """Write the picture: a bar for each corner, a line where the card ends."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 -- after the backend is chosen

    labels = [corner.label for corner in plan.corners]
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.42 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for part in Part:
        widths = [dict(corner.prediction.parts).get(part, 0) / GIB for corner in plan.corners]
        if any(widths):
            axis.barh(labels, widths, left=left, color=COLORS[part], label=str(part), height=0.7)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.axvline(plan.gpu.memory_bytes / GIB, color="black", linestyle="--", linewidth=1)
    axis.invert_yaxis()
    axis.set(xlabel="GiB at the peak, predicted", title=f"{plan.name} on {plan.gpu.name} (dashed: its memory)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)
