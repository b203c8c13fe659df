"""Runs one of the two programs as a process, samples the memory of it and all it starts, and reads what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tuner.sweep import load
from tuner.trial import TrialState

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLE_S = 3.0
"""Between two samples of memory; each costs some hundredths of a second."""


@dataclass(kw_only=True, slots=True)
class Trial:
    """A trial that was trained to the end."""

    params: dict[str, Any]
    finished_s: float
    """Since the command began."""
    accuracy: float
    trainable_params: int
    peak_memory_bytes: int


@dataclass(kw_only=True, slots=True)
class Run:
    """What one run of a program gave."""

    program: str
    """`tuner` or `by-hand`."""
    example: str
    is_pruned: bool
    num_trials: int
    max_steps: int
    dtype: str
    """Of activations and of what multiplies them, the same in both programs."""
    wall_s: float
    """Of the whole command."""
    device: str = "cpu"
    """What trains: the CPU, or the card's name."""
    workers: int = 2
    """Processes that train."""
    trials_per_worker: int | str = 1
    """Trials that a process trains together; by hand always one."""
    has_cudnn_attention: bool = True
    """By hand on a card: whether torch may take cuDNN's attention, as it does by itself; `tuner` never does."""
    peak_memory_bytes: int
    """Sum of the proportional set sizes (PSS) of all its processes, sampled."""
    cpu_s: float
    """Processor time of all its processes."""
    load_before: float
    """Load average of a minute before."""
    steps: int = 0
    """Optimizer steps of all trials."""
    training_begun_s: float = 0.0
    """When the first worker began to train, since the command began."""
    trials: list[Trial] = field(default_factory=list)
    """Finished ones, by time."""
    phases: dict[str, float] = field(default_factory=dict)
    """Phase -> seconds of workers, all of them together."""
    cpu_phases: dict[str, float] = field(default_factory=dict)
    """The same in processor time, which other work on the machine does not move as much."""
    workers_s: float = 0.0
    """Wall time of the workers, from the command's begin to the last trial's end, all of them together."""


def measure(run: Run, command: list[str], folder: Path, environment: Mapping[str, str]) -> float:
    """Carry out a command, and put wall time, memory and phases into the run; returns when it began."""
    stretches = folder / "phases"
    stretches.mkdir(parents=True)
    python_path = os.pathsep.join(filter(None, (str(HERE), str(ROOT), os.environ.get("PYTHONPATH"))))
    whole = {**os.environ, **environment, "BENCH_PHASES": str(stretches), "PYTHONPATH": python_path}
    begun_s = time.time()
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, env=whole, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        meter = _Meter(process.pid)
        meter.start()
        code = process.wait()
        meter.stop()
    if code:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text(encoding='utf-8')[-3000:]}")
    run.wall_s, run.peak_memory_bytes, run.cpu_s = time.time() - begun_s, meter.peak_bytes, meter.cpu_s
    return begun_s


def read_tuner(run: Run, out: Path, begun_s: float) -> None:
    """What the journal tells."""
    for record in load(out).trials:
        if record.last is not None:
            run.steps += record.last.steps
        if record.state is TrialState.COMPLETE and record.last and record.last.span:
            run.trials.append(
                Trial(
                    params=dict(record.spec.params),
                    finished_s=record.last.span.ended_s - begun_s,
                    accuracy=record.last.accuracy,
                    trainable_params=record.last.trainable_params,
                    peak_memory_bytes=record.last.peak_memory_bytes,
                )
            )
    run.trials.sort(key=lambda trial: trial.finished_s)


def read_by_hand(run: Run, out: Path, begun_s: float) -> None:
    """What Ray Tune wrote down."""
    for file in sorted(out.glob("by-hand/*/result.json")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not lines:
            continue
        last = lines[-1]
        run.steps += last["steps"]
        if last["steps"] >= run.max_steps:
            run.trials.append(
                Trial(
                    params=last["config"],
                    finished_s=last["reported_s"] - begun_s,
                    accuracy=last["accuracy"],
                    trainable_params=last["trainable_params"],
                    peak_memory_bytes=last["peak_memory"],
                )
            )
    run.trials.sort(key=lambda trial: trial.finished_s)


def read_phases(run: Run, folder: Path, begun_s: float) -> None:
    """Seconds of workers by phase; `start` is what comes before a worker's first, `rest` what no phase explains."""
    for file in (folder / "phases").glob("*.jsonl"):
        stretches = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if not any(one["phase"] == "training" for one in stretches):
            continue  # the driver, or a process that only looked at model and data
        first_s = min(one["begun_s"] for one in stretches)
        last_s = max(one["ended_s"] for one in stretches)
        known = {"start": first_s - begun_s}
        training_s = min(one["begun_s"] for one in stretches if one["phase"] == "training") - begun_s
        run.training_begun_s = min(run.training_begun_s or training_s, training_s)
        for one in stretches:
            known[one["phase"]] = known.get(one["phase"], 0.0) + one["ended_s"] - one["begun_s"]
            run.cpu_phases[one["phase"]] = run.cpu_phases.get(one["phase"], 0.0) + one["cpu_s"]
        run.workers_s += last_s - begun_s
        for phase, spent_s in (known | {"rest": last_s - begun_s - sum(known.values())}).items():
            run.phases[phase] = run.phases.get(phase, 0.0) + spent_s


class _Meter(threading.Thread):
    """Samples the memory of a process and all that it starts."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._cpu_s: dict[int, float] = {}
        self.peak_bytes = 0

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes, each up to when it was last seen."""
        return sum(self._cpu_s.values())

    def run(self) -> None:
        """Until it is stopped."""
        while not self._ended.wait(SAMPLE_S):
            processes = self._processes()
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, processes)))
            self._cpu_s |= {process.pid: spent_s for process in processes if (spent_s := _cpu_s(process))}

    def stop(self) -> None:
        """No more samples."""
        self._ended.set()
        self.join()

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _pss_bytes(process: psutil.Process) -> int:
    """Shared pages counted in parts; nothing for a process that is gone."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _cpu_s(process: psutil.Process) -> float:
    """Processor time so far; nothing of a process that is gone."""
    try:
        spent = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)
