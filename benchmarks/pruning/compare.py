"""Every method on the same curves with the same budgets: `python benchmarks/pruning/compare.py [--seeds 50] [TASK ...]`.

Writes results/methods-TASK.csv (hypervolume at each budget by method and seed), results/methods-TASK-seeds.csv (one line a seed)
and, from what lies there, results/methods.md and results/methods.png. With `--variants` it does the same for other settings of
tuner's own rule, as results/variants-*.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
from others import OTHERS
from ours import OURS, VARIANTS
from recording import Recording

if TYPE_CHECKING:
    from replay import Finish

    from tuner.trial import Metrics

TASKS = ("wordnet10", "movie-reviews", "tool-calling")
RESULTS = Path(__file__).parent / "results"
BUDGETS = np.array(sorted({*np.round(np.arange(0.02, 1.001, 0.02), 2).tolist(), 0.05, 0.15, 0.25}))
"""Shares of the steps that training the whole table takes."""
SHOWN = (0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0)
ENOUGH = 0.99
"""The share of the whole table's hypervolume that counts as all of it."""
GROUPS = {"methods": {**OURS, **OTHERS}, "variants": VARIANTS}
"""Name of the results -> what is compared."""


def main() -> None:
    """Replay, then summarize."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--variants", action="store_const", const="variants", default="methods", dest="group")
    parser.add_argument("--only", nargs="*", help="methods to replay anew; the others' figures stay")
    asked = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    for task in asked.tasks:
        methods = asked.only or [*GROUPS[asked.group]]
        work = [*itertools.product([asked.group], [task], methods, range(asked.seeds))]
        with ProcessPoolExecutor(asked.processes) as pool:
            found = [*pool.map(_replayed, work, chunksize=5)]
        _keep(_file(asked.group, task), [row for rows, _ in found for row in rows], methods)
        _keep(_file(asked.group, f"{task}-seeds"), [line for _, line in found], methods)
        print(task, "done", flush=True)
    done = [task for task in TASKS if _file(asked.group, task).exists()]
    summary = "\n".join(_summary(asked.group, task) for task in done)
    (RESULTS / f"{asked.group}.md").write_text(summary, encoding="utf-8")
    _draw(asked.group, done)


def _keep(file: Path, rows: list[dict[str, object]], methods: list[str]) -> None:
    """Write rows, beside those of other methods that lie there."""
    table = pd.DataFrame(rows)
    if file.exists():
        before = pd.read_csv(file)
        table = pd.concat([before[~before["method"].isin(methods)], table])
    table.to_csv(file, index=False, float_format="%.4f")


def _file(group: str, name: str) -> Path:
    return RESULTS / f"{group}-{name}.csv"


@functools.cache
def _recording(task: str) -> Recording:
    return Recording(task)


def _replayed(work: tuple[str, str, str, int]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """(hypervolume at each budget, one line about the whole) of a method with a seed."""
    group, task, method, seed = work
    warnings.simplefilter("ignore")
    recording = _recording(task)
    finishes = GROUPS[group][method](recording, seed)
    curve = _hypervolumes(recording, finishes)
    rows: list[dict[str, object]] = [
        {"method": method, "seed": seed, "budget": budget, "hypervolume": _at(curve, budget)} for budget in BUDGETS
    ]
    reached = {recording.curves[finish.curve].config for finish in finishes}
    line: dict[str, object] = {
        "method": method,
        "seed": seed,
        "to_99": next((share for share, volume in curve if volume >= ENOUGH), math.inf),
        "recall": len(reached & recording.front) / len(recording.front),
        "steps": finishes[-1].spent_steps / recording.full_steps if finishes else 0.0,
    }
    return rows, line


def _hypervolumes(recording: Recording, finishes: list[Finish]) -> list[tuple[float, float]]:
    """(share of the table's steps, share of its hypervolume) after each finished trial."""
    reports = [recording.curves[finish.curve].reports[-1] for finish in finishes]
    return [
        (finish.spent_steps / recording.full_steps, recording.share_of_hypervolume(reports[: place + 1]))
        for place, finish in enumerate(finishes)
    ]


def _at(curve: list[tuple[float, float]], budget: float) -> float:
    return max((volume for share, volume in curve if share <= budget + 1e-9), default=0.0)


def oracle(recording: Recording) -> list[tuple[float, float]]:
    """What any rule could reach at best: only trials of the front are begun, the one that adds most first, one at a time."""
    left = [curve for curve in recording.finished if curve.config in recording.front]
    taken: list[tuple[float, float]] = []
    reports: list[Metrics] = []
    while left:
        best = max(left, key=lambda curve: recording.share_of_hypervolume([*reports, curve.reports[-1]]))
        left.remove(best)
        reports.append(best.reports[-1])
        share = len(reports) * recording.rungs[-1] / recording.full_steps
        taken.append((share, recording.share_of_hypervolume(reports)))
    return taken


def _summary(group: str, task: str) -> str:
    """A task's table: medians over the seeds, quartiles where they tell."""
    recording = _recording(task)
    rows, seeds = pd.read_csv(_file(group, task)), pd.read_csv(_file(group, f"{task}-seeds"))
    budgets = " | ".join(f"{share:.0%}" for share in SHOWN)
    lines = [
        f"### {task}",
        "",
        f"{len(recording.curves)} configurations, {len(recording.front)} on the front, {recording.full_steps:,} steps in all, at "
        + ", ".join(map(str, recording.rungs))
        + f", {seeds['seed'].nunique()} seeds. Median hypervolume of finished trials at a share of the steps; share of steps to "
        "99 % of the hypervolume; share of the front found; steps spent in all.",
        "",
        f"| method | {budgets} | to 99 %: quartiles | front found | steps |",
        "| --- |" + " --- |" * (len(SHOWN) + 3),
    ]
    for method in GROUPS[group]:
        mine = rows[rows["method"] == method]
        at = [mine[np.isclose(mine["budget"], share)]["hypervolume"].median() for share in SHOWN]
        line = seeds[seeds["method"] == method]
        quartiles = " / ".join(_share(value) for value in line["to_99"].quantile([0.25, 0.5, 0.75], "higher"))
        lines.append(
            f"| {method} | {' | '.join(f'{value:.3f}' for value in at)} | {quartiles} | {line['recall'].mean():.0%} "
            f"| {line['steps'].median():.0%} |"
        )
    best = oracle(recording)
    at = [_at(best, share) for share in SHOWN]
    enough = next(share for share, volume in best if volume >= ENOUGH)
    lines.append(
        f"| *oracle* | {' | '.join(f'{value:.3f}' for value in at)} | {enough:.1%} | 100% | {best[-1][0]:.0%} |"
    )
    return "\n".join([*lines, ""])


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "never"


def _draw(group: str, tasks: list[str]) -> None:
    """Median hypervolume over steps spent, with quartiles, a panel for each task."""
    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 -- after the backend is chosen

    figure, axes = plt.subplots(1, len(tasks), figsize=(5.6 * len(tasks), 4.4), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        rows = pd.read_csv(_file(group, task))
        for method in GROUPS[group]:
            is_ours = method in {**OURS, next(iter(VARIANTS)): None}
            by_budget = rows[rows["method"] == method].groupby("budget")["hypervolume"]
            line = axis.plot(
                by_budget.median(), linewidth=2.6 if is_ours else 1.2, label=method, zorder=3 if is_ours else 2
            )
            low, high = by_budget.quantile(0.25), by_budget.quantile(0.75)
            axis.fill_between(low.index, low, high, color=line[0].get_color(), alpha=0.12, linewidth=0)
        axis.set(title=task, xlabel="share of all training steps", ylabel="share of the whole hypervolume", xlim=(0, 1))
        axis.axhline(ENOUGH, color="grey", linewidth=0.6, linestyle=":")
    axes[0][-1].legend(fontsize=7, loc="lower right")
    figure.savefig(RESULTS / f"{group}.png", dpi=110)


if __name__ == "__main__":
    main()
