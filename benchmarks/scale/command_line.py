"""Whether the command line has become slower: `make bench-driver`. Fails where it has by half; `--write` keeps new figures.

A command counts as so many times a yardstick: an empty Python and a loop of fixed length, run in turns with it, by processor time
and as medians, so that it matters little which machine this is and what else runs on it. Figures: command_line.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_suffix(".json")
YARDSTICK = (sys.executable, "-c", "for _ in range(5_000_000): pass")
UNRENDERED = """
import sys
from pathlib import Path
from tuner.without_gc import without_gc
with without_gc():
    from tuner import sweep
    from tuner.report.writing import report_data
    loaded = sweep.load(Path(sys.argv[1]))
    report_data(loaded.folder, loaded.config, loaded.inspection, loaded.records)
"""
"""What `tuner report` does before it renders anything."""
WORST = 1.5
"""Times the committed figure from which on a command has become slower."""


def main() -> None:
    """Measure, and compare or keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="Keep the figures.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "example"
        shutil.copytree(ROOT / "reports" / "example", folder)
        figures = measured(commands(folder), asked.repeats)
    if asked.write:
        setting = {"machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"}
        RESULTS.write_text(json.dumps(setting | {"repeats": asked.repeats, "commands": figures}, indent=1) + "\n")
        return
    if slower := slower_ones(figures, json.loads(RESULTS.read_text(encoding="utf-8"))["commands"]):
        raise SystemExit("slower than the committed figures:\n" + "\n".join(slower))


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """Name -> command."""
    tuner = (sys.executable, "-m", "tuner")
    plan = ("plan", str(ROOT / "search_spaces" / "llama-3.1-8b-uniform.yaml"), "--gpu", "L4-24GB")
    return {
        "tuner --help": (*tuner, "--help"),
        "tuner report": (*tuner, "report", str(folder)),
        "tuner report, without rendering": (sys.executable, "-c", UNRENDERED, str(folder)),
        "tuner plan": (*tuner, *plan),
    }


def measured(asked: dict[str, tuple[str, ...]], num_repeats: int) -> dict[str, dict[str, float]]:
    """Name -> what it takes, in yardsticks and in seconds; all are run in turns."""
    every = {"yardstick": YARDSTICK} | asked
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in every}
    for _ in range(num_repeats):
        for name, command in every.items():
            spent[name].append(seconds_of(command))
    yardstick_s = statistics.median(processor_s for _, processor_s in spent["yardstick"])
    figures = {name: summary(values, yardstick_s) for name, values in spent.items()}
    for name, figure in figures.items():
        print(f"{name:13}", " ".join(f"{key} {value:g}" for key, value in figure.items()), flush=True)
    return figures


def summary(spent: list[tuple[float, float]], yardstick_s: float) -> dict[str, float]:
    """The median in yardsticks, and seconds."""
    walls, processors = zip(*spent, strict=True)
    return {
        "yardsticks": round(statistics.median(processors) / yardstick_s, 2),
        "processor_s": round(statistics.median(processors), 3),
        "wall_s": round(statistics.median(walls), 3),
        "least_wall_s": round(min(walls), 3),
        "most_wall_s": round(max(walls), 3),
    }


def seconds_of(command: tuple[str, ...]) -> tuple[float, float]:
    """Wall time and processor time of a command and all that it has waited for."""
    begun_s = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)]
    pid = os.posix_spawn(command[0], command, {**os.environ, "PYTHONPATH": str(ROOT)}, file_actions=silent)
    _, status, used = os.wait4(pid, 0)
    assert status == 0, f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}"
    return time.perf_counter() - begun_s, used.ru_utime + used.ru_stime


def slower_ones(figures: dict[str, dict[str, float]], kept: dict[str, dict[str, float]]) -> list[str]:
    """What takes half as many yardsticks again as it did."""
    return [
        f"{name}: {figures[name]['yardsticks']:g} yardsticks, committed {kept[name]['yardsticks']:g}"
        for name in kept
        if name in figures and figures[name]["yardsticks"] > WORST * kept[name]["yardsticks"]
    ]


if __name__ == "__main__":
    main()
