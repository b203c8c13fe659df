"""Which early signal tells how a trial ends, and how far seeds lie apart: `python benchmarks/pruning/signals.py [TASK ...]`.

Writes results/signals.md: Spearman's correlation of cross entropy and of the metric at each rung with the metric at the end, over
all configurations of seed 0; and what a second training seed changes for the third that was trained twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from compare import RESULTS, TASKS
from recording import Curve, Recording
from scipy.stats import spearmanr


def main() -> None:
    """Write the page."""
    tasks = sys.argv[1:] or [task for task in TASKS if (Path(__file__).parent / "curves" / f"{task}.csv").exists()]
    lines = ["| task | steps | cross entropy | metric |", "| --- | --- | --- | --- |"]
    for task in tasks:
        lines += _signals(Recording(task))
    lines += [
        "",
        "| task | trained twice | spread of the final metric | order kept (Spearman) | front of one seed on the other's |",
    ]
    lines += ["| --- | --- | --- | --- | --- |", *(_seeds(task) for task in tasks)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "signals.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def _signals(recording: Recording) -> list[str]:
    final = [curve.reports[-1].accuracy for curve in recording.finished]
    lines = []
    for place, steps in enumerate(recording.rungs[:-1]):
        reports = [curve.reports[place] for curve in recording.finished]
        loss = _correlation([-report.loss for report in reports], final)
        metric = _correlation([report.accuracy for report in reports], final)
        lines.append(f"| {recording.task} | {steps} of {recording.rungs[-1]} | {loss} | {metric} |")
    return lines


def _correlation(one: list[float], other: list[float]) -> str:
    return "none: all equal" if len(set(one)) == 1 else f"{spearmanr(one, other)[0]:.2f}"


def _seeds(task: str) -> str:
    one, other = Recording(task, seed=0), Recording(task, seed=1)
    first = {curve.config: curve for curve in one.finished}
    second = {curve.config: curve for curve in other.finished}
    shared = sorted(first.keys() & second.keys())
    pairs = np.array([(_final(first[config]), _final(second[config])) for config in shared])
    spread = np.sqrt(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2 / 2))
    front = one.front_of(shared)
    kept = f"{len(front & other.front_of(shared))} of {len(front)}"
    return f"| {task} | {len(shared)} | {spread:.3f} | {spearmanr(pairs[:, 0], pairs[:, 1])[0]:.2f} | {kept} |"


def _final(curve: Curve) -> float:
    return curve.reports[-1].accuracy


if __name__ == "__main__":
    main()
