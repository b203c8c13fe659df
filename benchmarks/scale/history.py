"""How many trials a point has to be learned from: `python -m benchmarks.scale.history`. Run by hand.

Whole sweeps on simulated workers with TPE told of more or fewer trials, beside random points. Writes history.json beside it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks.scale.sweep import config_of, found_front, simulated
from tuner import sampler
from tuner.front import objectives_of
from tuner.journal import memory_journal
from tuner.study import Study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.trial import TrialRecord

RESULTS = Path(__file__).with_suffix(".json")


def newest(records: Sequence[TrialRecord], num: int) -> list[TrialRecord]:
    """The newest, whatever their state: as it was before."""
    return [*records[-num:]]


RULES = {
    "random points": None,
    "newest 1000": functools.partial(newest, num=1000),
    "newest 500 with a report, 250 without (tuner's)": sampler.newest,
}


def main() -> None:
    """Run every rule with some seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1500)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 500])
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    found: dict[str, dict[str, dict[str, object]]] = {}
    for num_workers in asked.workers:
        for rule in RULES:
            results = [swept(rule, asked.trials, num_workers, seed) for seed in range(asked.seeds)]
            found.setdefault(f"{num_workers} workers", {})[rule] = {
                name: [result[name] for result in results] for name in results[0]
            }
            print(num_workers, rule, found[f"{num_workers} workers"][rule], flush=True)
    setting = {"trials": asked.trials, "seeds": asked.seeds}
    RESULTS.write_text(json.dumps(setting | found, indent=1) + "\n", encoding="utf-8")


def swept(rule: str, num_trials: int, num_workers: int, seed: int) -> dict[str, float]:
    """How good a sweep's front is, and the points that it tried last."""
    choose = RULES[rule]
    config = config_of(num_trials, "random" if choose is None else "tpe", seed)
    backend = simulated(num_workers)
    study = Study(memory_journal(config.name, objectives_of(config), backend.inspect(config)), config)
    with mock.patch.object(sampler, "newest", choose):
        backend.run(config, Path(), study)
    last = [record for record in study.records if record.number >= 0.75 * num_trials]
    losses = [record.curve[0].loss for record in last if record.curve]
    return {
        "hypervolume": found_front(study, config)["hypervolume"],
        "late_loss_at_first_rung": round(statistics.median(losses), 4),
        "late_failed": round(1 - len(losses) / len(last), 3),
    }


if __name__ == "__main__":
    main()
