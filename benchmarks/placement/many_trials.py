"""1,000 trials that queue for two slots: do all get through, and what does each cost beside its training? Run by hand.

`python benchmarks/placement/many_trials.py` writes `many_trials.json` beside it. The worker is synthetic and takes no time, so
that what is measured is the driver, Ray Tune and the journal.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import platform
import tempfile
import time
from pathlib import Path

import ray

from tests.placed_workers import stays_in
from tests.sweeps import write_sweep
from tuner import sweep

NUM_TRIALS, NUM_SLOTS, NUM_SHOWN = 1000, 2, 100


def main() -> None:
    """Run the sweep, and write what it took."""
    ray.init("local", num_cpus=NUM_SLOTS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        changes = {"search.num_trials": NUM_TRIALS, "pruning.method": "none", "training.max_steps": 2, "data.test": 0}
        begun_s, begun_cpu_s = time.monotonic(), time.process_time()
        swept = sweep.run(
            write_sweep(place, changes), out=place / "out", backend="ray", worker="tests.placed_workers:PlacedWorker"
        )
        wall_s, cpu_s = time.monotonic() - begun_s, time.process_time() - begun_cpu_s
        stays = stays_in(place)
    ends_s = sorted(stay.ended_s for stay in stays)
    found = {
        "trials": NUM_TRIALS,
        "slots": NUM_SLOTS,
        "states": collections.Counter(str(record.state) for record in swept.records),
        "wall_s": round(wall_s, 1),
        "driver_cpu_s": round(cpu_s, 1),
        "s_per_trial_of_the_first_100": round((ends_s[NUM_SHOWN] - ends_s[0]) / NUM_SHOWN, 3),
        "s_per_trial_of_the_last_100": round((ends_s[-1] - ends_s[-1 - NUM_SHOWN]) / NUM_SHOWN, 3),
        "most_at_the_same_time": max(
            sum(other.begun_s <= stay.begun_s < other.ended_s for other in stays) for stay in stays
        ),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load average {load:.1f} before",
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
