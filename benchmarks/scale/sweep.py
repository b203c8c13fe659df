"""What a decision costs in a sweep of 10,000 trials on 1,000 workers: `python -m benchmarks.scale.sweep`. Run by hand.

The real study, scheduler, sampler and journal (a file, synced), and what the driver does around them; only the workers are
simulated: they answer at once, on a clock of their own. Then the journal is opened anew and the report written, each in a process
of its own, as `tuner resume` and `tuner report` do. Writes sweep.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tests.builders import make_config
from tuner.backends.simulated import SimulatedBackend
from tuner.folder import SweepFolder
from tuner.front import front, objectives_of
from tuner.live import NoView
from tuner.mirror import Mirror
from tuner.pareto import hypervolume
from tuner.study import Study, create_study
from tuner.sweep import Driver
from tuner.sweep_file import write_sweep_file
from tuner.trial import TrialState
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.backends import StudyVerbs
    from tuner.config import SweepConfig
    from tuner.trial import Metrics, Result

RESULTS = Path(__file__).with_suffix(".json")
NUM_REPEATS = 5
VERBS = ("ask", "report", "tell")
OPEN = """
import sys, time
from pathlib import Path
from tuner.folder import SweepFolder
from tuner.study import open_study
from tuner.sweep_file import load_sweep_file
folder = SweepFolder(Path(sys.argv[1]))
config = load_sweep_file(folder.sweep_file)
begun = time.perf_counter()
study = open_study(folder.journal, config)
print(time.perf_counter() - begun, len(study.records))
"""
REPORT = """
import sys, time
from pathlib import Path
from tuner import sweep
from tuner.report import write_report
loaded = sweep.load(Path(sys.argv[1]))
begun = time.perf_counter()
write_report(loaded.folder, loaded.config, loaded.inspection, loaded.records)
print(time.perf_counter() - begun)
"""


def main() -> None:
    """Run the sweep, read it again, and keep the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, help="Keep the sweep here.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = SweepFolder(asked.folder or Path(place) / "sweep")
        config = config_of(asked.trials, asked.sampler, asked.seed)
        found = {**swept(config, folder, asked.workers), **read_again(folder)}
    setting: dict[str, object] = {
        "trials": asked.trials,
        "workers": asked.workers,
        "sampler": asked.sampler,
        "seed": asked.seed,
        "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
    }
    asked.out.write_text(json.dumps(setting | found, indent=1) + "\n", encoding="utf-8")
    print(asked.out.read_text(encoding="utf-8"))


def config_of(num_trials: int, sampler: str, seed: int) -> SweepConfig:
    """A sweep with a conditional rank, so that TPE has groups of parameters to learn from."""
    space: dict[str, Any] = {
        "r": {"choices": [1, 2, 4, 8, 16, 32, 64]},
        "lora_scale": {"choices": [1.0, 2.0, 4.0]},
        "lora_dropout": {"low": 0.0, "high": 0.2},
        "learning_rate": {"low": 1e-4, "high": 2e-1, "log": True},
        "target_modules": {"choices": {"attention": ["attention"], "all": ["all-linear"]}},
        "rank_pattern": {"mlp": {"low": 1, "high": 16, "log": True}},
    }
    return make_config(
        name="scale",
        data={"path": "/data/rows.jsonl", "validation": 400, "test": 100},
        training={"max_steps": 64},
        search={"num_trials": num_trials, "sampler": sampler, "seed": seed, "space": space},
        pruning={"min_steps": 4, "audit": 5},
        resources={"max_failures_in_a_row": num_trials},
    )


def swept(config: SweepConfig, folder: SweepFolder, num_workers: int) -> dict[str, object]:
    """What the decisions and the memory of a whole sweep were."""
    backend = simulated(num_workers)
    folder.create()
    write_sweep_file(config, folder.sweep_file)
    study = create_study(folder.journal, config, backend.inspect(config))
    inner = Timed(study, config.search.num_trials)
    outer = Timed(
        Driver(cast("Study", inner), config, folder, Mirror(folder, None), NoView()), config.search.num_trials
    )
    begun_s, before_bytes = time.perf_counter(), rss_bytes()
    backend.run(config, folder.path, outer)
    wall_s = time.perf_counter() - begun_s
    study.close()
    return {
        "wall_s": round(wall_s, 1),
        "decisions": sum(len(times) for times in outer.seconds.values()),
        "study_ms": inner.summary(),
        "driver_ms": outer.summary(),
        "rss_mib_before": round(before_bytes / 2**20, 1),
        "rss_mib_at_trials": {str(num): round(held / 2**20, 1) for num, held in outer.rss_bytes.items()},
        "most_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),
        "rss_kib_a_trial": round((rss_bytes() - before_bytes) / 2**10 / len(study.records), 2),
        "journal_mib": round(folder.journal.stat().st_size / 2**20, 1),
        "states": {state: sum(record.state is state for record in study.records) for state in TrialState},
        "front": found_front(study, config),
    }


def simulated(num_workers: int) -> SimulatedBackend:
    """Workers that answer at once, on a clock of their own."""
    return SimulatedBackend(SyntheticWorker, num_workers, cost_s=_cost_s)


def found_front(study: Study, config: SweepConfig) -> dict[str, float]:
    """How good the sweep's front is: hypervolume with costs on a log scale, from a fixed reference point."""
    best = [record.last for record in front(study.records, objectives_of(config)) if record.last]
    points = np.array(
        [[1 - last.accuracy, np.log2(last.trainable_params) / 20, last.peak_memory_bytes / 2**28] for last in best]
    )
    return {"size": len(best), "hypervolume": round(hypervolume(points, np.ones(3)), 5)}


def read_again(folder: SweepFolder) -> dict[str, object]:
    """Seconds to open the journal for a driver and to write the report, each in a process of its own."""
    opened = [float(of_process(OPEN, folder).split()[0]) for _ in range(NUM_REPEATS)]
    reported = [float(of_process(REPORT, folder)) for _ in range(NUM_REPEATS)]
    return {"reopen_s": spread(opened), "report_s": spread(reported)}


def of_process(program: str, folder: SweepFolder) -> str:
    """What a program prints about a sweep."""
    command = [sys.executable, "-c", program, str(folder.path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def spread(values: list[float]) -> dict[str, float]:
    """Median and ends."""
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


class Timed:
    """Passes a sweep's verbs on and times each call.

    Args:
        verbs: What answers.
        num_trials: Of the sweep; a tenth of it makes a window.
    """

    def __init__(self, verbs: StudyVerbs, num_trials: int) -> None:
        self._verbs = verbs
        self._num_trials = num_trials
        self._num_begun = 0
        self.seconds: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        """(verb, window) -> wall and processor time of each call; in the window after the last all trials have begun."""
        self.rss_bytes: dict[int, int] = {}
        """Trials begun -> what the process holds."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever the study has under that name
        found = getattr(self._verbs, name)
        return self._timed(name, found) if name in VERBS else found

    def _timed(self, verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: object) -> object:
            begun = time.perf_counter(), time.process_time()
            answer = call(*values)
            spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
            self.seconds[verb, 10 * self._num_begun // self._num_trials].append(spent)
            if verb == "ask" and answer is not None and answer.number >= self._num_begun:
                self._num_begun = answer.number + 1
                if self._num_begun % (self._num_trials // 10) == 0:
                    self.rss_bytes[self._num_begun] = rss_bytes()
                    print(f"{self._num_begun} trials have begun", file=sys.stderr, flush=True)
            return answer

        return timed

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Verb -> window -> milliseconds."""
        names = {0: "first_tenth", 1: "second_tenth", 5: "sixth_tenth", 9: "last_tenth", 10: "all_begun"}
        return {
            verb: {name: _milliseconds(self.seconds[verb, window]) for window, name in names.items()} for verb in VERBS
        }


def rss_bytes() -> int:
    """What this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _milliseconds(spent: list[tuple[float, float]]) -> dict[str, float]:
    """Median and 95th percentile; of processor time too, for other work on the machine counts into the rest."""
    if len(spent) < 2:  # noqa: PLR2004 -- fewer have no percentiles
        return {"calls": len(spent)}
    wall_ms, processor_ms = (sorted(1e3 * value for value in values) for values in zip(*spent, strict=True))
    return {
        "calls": len(spent),
        "median": round(statistics.median(wall_ms), 2),
        "p95": round(statistics.quantiles(wall_ms, n=20)[-1], 2),
        "processor_median": round(statistics.median(processor_ms), 2),
        "processor_p95": round(statistics.quantiles(processor_ms, n=20)[-1], 2),
    }


def _cost_s(before: Metrics | None, now: Result) -> float:
    """Trials of other sizes take other times, so that reports come one by one and not in waves."""
    steps = getattr(now, "steps", 0) - (before.steps if before else 0)
    return float(steps) * (1 + getattr(now, "trainable_params", 0) % 97 / 97)


if __name__ == "__main__":
    main()
