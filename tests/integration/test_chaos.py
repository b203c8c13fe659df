"""A short storm; `benchmarks/chaos/chaos.py` has the long one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import STEPPING, Storm, Victim, compare, quick_to_notice
from tests.sweeps import write_sweep
from tuner import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CHANGES: dict[str, Any] = {
    "search.num_trials": 12,
    "training.max_steps": 64,
    "pruning.min_steps": 16,
    "pruning.method": "none",
    "resources.max_worker_restarts": 1000,
}


def test_a_sweep_in_a_storm_ends_as_one_that_nobody_disturbs(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "storm").mkdir()
    file = write_sweep(tmp_path, CHANGES | {"resources.backend": "ray"})
    calm_file = write_sweep(tmp_path / "calm", CHANGES)
    calm = sweep.run(calm_file, out=tmp_path / "calm" / "out", backend="local", worker=STEPPING)

    with quick_to_notice():
        storm = Storm(file, tmp_path / "storm" / "out", STEPPING, random.Random(8))
        toll = storm.rage([Victim.WORKER, Victim.NODE, Victim.DRIVER, Victim.WORKER, Victim.HEAD])
    compare(tmp_path / "storm" / "out", calm.records, toll)

    assert sum(toll.kills.values()) == 5
    assert toll.is_equal
    assert (toll.num_lost, toll.num_twice) == (0, 0)
