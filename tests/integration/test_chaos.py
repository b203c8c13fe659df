"""A short storm; `benchmarks/chaos/chaos.py` has the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import STEPPING
from tests.drivers import results
from tests.sweeps import write_sweep
from tuner import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

VICTIMS = ("WORKER", "NODE", "DRIVER", "WORKER", "HEAD")
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

    told = subprocess.run(
        [sys.executable, "-m", "tests.chaos", str(file), str(tmp_path / "storm" / "out"), "8", *VICTIMS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout

    assert json.loads(told) == {"kills": 5, "lost": 0, "twice": 0}
    assert results(sweep.load(tmp_path / "storm" / "out").records) == results(calm.records)
