"""Kill workers, nodes, drivers and heads of short sweeps, a hundred times and more, and look at what is lost.

    .venv/bin/python benchmarks/chaos/chaos.py --kills 110 --real-kills 20

Each storm is one sweep of 16 trials on a head and two nodes on this machine. Most are of the tests' worker that takes its time
but needs no torch, some are real training on MiniLM. Victims and moments are drawn at random: the seed decides on them, the
machine on what they hit. Each sweep's records are held against those of the same sweep undisturbed on the local backend.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.chaos import STEPPING, Storm, Toll, Victim, compare, quick_to_notice  # noqa: E402 -- after the path
from tests.sweeps import write_sweep  # noqa: E402
from tuner import sweep  # noqa: E402
from tuner.backends import WORKER  # noqa: E402

KILLS_IN_A_STORM = 6
VICTIMS = (Victim.WORKER, Victim.WORKER, Victim.NODE, Victim.DRIVER, Victim.HEAD, Victim.HEAD_AND_DRIVER)
"""Drawn from; workers twice as often."""
CHANGES: dict[str, Any] = {
    "search.num_trials": 16,
    "training.max_steps": 64,
    "pruning.min_steps": 8,
    "pruning.method": "none",
    "resources.max_worker_restarts": 1000,
}


def storms(worker: str, num_kills: int, draw: random.Random, home: Path) -> list[Toll]:
    """Storms until so many kills have hit."""
    calm = _calm(worker, home / "calm")
    tolls: list[Toll] = []
    while (killed := sum(sum(toll.kills.values()) for toll in tolls)) < num_kills:
        place = home / f"storm-{len(tolls)}"
        place.mkdir()
        file = write_sweep(place, CHANGES | {"resources.backend": "ray"})
        num = min(KILLS_IN_A_STORM, num_kills - killed)
        toll = Storm(file, place / "out", worker, draw).rage(draw.choices(VICTIMS, k=num))
        compare(place / "out", calm.records, toll)
        print(f"{killed + sum(toll.kills.values())} kills: {toll}", flush=True)
        tolls.append(toll)
    return tolls


def summary(tolls: list[Toll]) -> dict[str, object]:
    """All storms of a worker in numbers."""
    kills: Counter[Victim] = sum((toll.kills for toll in tolls), Counter())
    return {
        "kills": {victim.value: kills[victim] for victim in Victim},
        "kills_in_all": sum(kills.values()),
        "sweeps": len(tolls),
        "drivers_started": sum(toll.num_drivers for toll in tolls),
        "trials_finished": sum(toll.num_finished for toll in tolls),
        "finished_trials_lost": sum(toll.num_lost for toll in tolls),
        "rungs_kept_twice": sum(toll.num_twice for toll in tolls),
        "sweeps_with_the_records_of_a_calm_one": sum(not toll.differing for toll in tolls),
        "wall_s": round(sum(toll.wall_s for toll in tolls)),
    }


def main() -> None:
    """Storm, and write what it cost beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=110)
    parser.add_argument("--real-kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)  # noqa: S311 -- no secret
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    with quick_to_notice():
        found = {
            name: summary(storms(worker, num, draw, _made(home / name)))
            for name, worker, num in (("synthetic", STEPPING, asked.kills), ("real", WORKER, asked.real_kills))
            if num
        }
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    results = Path(__file__).with_name(f"results-seed-{asked.seed}.json")
    results.write_text(json.dumps({"machine": machine, "seed": asked.seed, **found}, indent=1) + "\n", encoding="utf-8")
    print(results.read_text(encoding="utf-8"))
    shutil.rmtree(home)


def _calm(worker: str, place: Path) -> sweep.Sweep:
    return sweep.run(write_sweep(_made(place), CHANGES), out=place / "out", backend="local", worker=worker)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    main()
