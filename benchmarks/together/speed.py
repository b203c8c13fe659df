"""Steps a second of trials together, against the same trials one after another in the same process.

    .venv/bin/python benchmarks/together/speed.py search_spaces/quickstart.yaml search_spaces/tool-calling-smollm2.yaml

One thread, as a worker has it. Interleaved: in each round every size makes its steps once, and alone comes before and after.
Prints and stores the median over rounds of (steps a second together / alone), with the smallest and largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch

from tuner.config import SweepConfig
from tuner.layers import Layer
from tuner.space import Suggestion, suggest
from tuner.space_config import SpaceConfig
from tuner.sweep_file import load_sweep_file
from tuner.trial import TrialSpec
from tuner.worker.architecture import layers_of
from tuner.worker.host import BaseSpec, Loaded, load
from tuner.worker.lockstep import Lockstep
from tuner.worker.training import TrialRun
from tuner.worker.twin import twin_of

RESULTS = Path(__file__).parent / "results.json"
SIZES = (2, 4, 8)


def main() -> None:
    """Measure each file, and keep what others have measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="sweep files")
    parser.add_argument("--set", action="append", default=[], help="as of tuner run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each trial in a round")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for file in asked.files:
        name = " ".join([file.stem, *asked.set])
        config = load_sweep_file(file, asked.set)
        found[name] = measured(config, *start(config, max(SIZES)), asked.rounds, asked.steps)
        sys.stdout.write(f"{name}: {json.dumps(found[name])}\n")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(
    config: SweepConfig, lockstep: Lockstep, runs: Sequence[TrialRun], rounds: int, steps: int
) -> dict[str, Any]:
    """One sweep's trials."""
    difference = lockstep.difference(runs[:2])
    ratios: dict[int, list[float]] = {size: [] for size in SIZES}
    alone_s: list[float] = []
    for _ in range(rounds + 1):  # the first warms up
        for size in SIZES:
            before = _alone_s(runs[:size], steps)
            beside = _together_s(lockstep, runs[:size], steps)
            after = _alone_s(runs[:size], steps)
            ratios[size].append((before + after) / 2 / beside)
            alone_s.append((before + after) / 2 / steps / size)
    return {
        "machine": f"{_device(config)}, torch {torch.__version__}",
        "rounds": rounds,
        "gradients_differ_by": difference,
        "alone_s_per_step": round(statistics.median(alone_s[len(SIZES) :]), 4),
        "speedup": {str(size): _spread(found[1:]) for size, found in ratios.items()},
    }


def start(config: SweepConfig, num: int) -> tuple[Lockstep, list[TrialRun]]:
    """So many trials of a sweep before their first step, and what makes their steps together."""
    loaded = load(config, BaseSpec(config=config.model))
    lockstep = Lockstep(loaded.base, is_checkpointed=config.training.gradient_checkpointing)
    specs = drawn(config.search.space, layers_of(loaded.base.model), num)
    return lockstep, [_run(loaded, spec, config) for spec in specs]


def _device(config: SweepConfig) -> str:
    if config.resources.uses_gpu:
        return torch.cuda.get_device_name()
    return f"{platform.system()} {platform.machine()}, 1 thread"


def drawn(space: SpaceConfig, layers: tuple[Layer, ...], num: int) -> list[TrialSpec]:
    """Points of the search space, always the same, of adapters that can compute together."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    specs: list[TrialSpec] = []
    while len(specs) < num:
        found: Suggestion = suggest(study.ask(), space, layers)
        spec = found.as_spec(len(specs), seed=0)
        if spec.lora and not spec.lora.use_dora and not spec.lora.init_lora_weights.is_base_changed:
            specs.append(spec)
    return specs


def _run(loaded: Loaded, spec: TrialSpec, config: SweepConfig) -> TrialRun:
    run = TrialRun(twin_of(loaded.base), loaded.data, spec, config)
    run.adapted.model.train()
    return run


def _alone_s(runs: Sequence[TrialRun], steps: int) -> float:
    begun_s = time.perf_counter()
    for run in runs:
        for _ in range(steps):
            run.step()
    return _since(begun_s)


def _together_s(lockstep: Lockstep, runs: Sequence[TrialRun], steps: int) -> float:
    begun_s = time.perf_counter()
    for _ in range(steps):
        lockstep.step(runs)
    return _since(begun_s)


def _since(begun_s: float) -> float:
    """Once a card has done what it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun_s


def _spread(ratios: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


if __name__ == "__main__":
    main()
