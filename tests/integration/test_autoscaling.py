"""A real autoscaler starts and stops real node processes on this machine while a sweep runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clusters import HEAD_ID, Head, node_type, ray_head, wait_for
from tests.sweeps import ROOT, write_sweep
from tuner import sweep
from tuner.trial import TrialState

if TYPE_CHECKING:
    import psutil

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODE_TYPES = {"l4": node_type(cpus=1, gpus=1, max_nodes=2, name="l4", **{"tuner/gpu": "L4-24GB"})}
CHANGES: dict[str, Any] = {
    "search.num_trials": 12,
    "pruning.method": "none",
    "data.test": 0,
    "resources.backend": "ray",
    "resources.gpus_per_trial": 1,
}


def started(folder: Path, head: Head, changes: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """A sweep of slow trials that each need a GPU, in a driver of its own on the head."""
    command = [sys.executable, "-m", "tests.with_worker", "tests.workers:SlowWorker", "run"]
    command += [str(write_sweep(folder, CHANGES | (changes or {}))), "--out", str(folder / "out")]
    command += ["--address", head.address]
    return subprocess.Popen(command, env=head.env, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_begun(folder: Path, num_complete: int) -> bool:
    if not (folder / "out" / "study.journal").exists():
        return False
    states = [record.state for record in sweep.load(folder / "out").records]
    return states.count(TrialState.COMPLETE) >= num_complete


def node_processes(head: Head) -> list[psutil.Process]:
    """Raylets of the nodes that the autoscaler started."""
    return [one for one in head.processes("raylet/raylet") if "--head" not in one.info["cmdline"]]


def test_nodes_come_when_trials_wait_and_go_when_idle(tmp_path: Path) -> None:
    seen: set[str] = set()
    with ray_head(num_cpus=1, autoscaling=NODE_TYPES) as head:
        before = head.alive()
        driver = started(tmp_path, head)
        while driver.poll() is None:
            seen |= head.alive()
        _, printed = driver.communicate()
        wait_for(lambda: head.alive() == before, 60)

    assert driver.returncode == 0, printed
    assert before == {HEAD_ID}
    assert len(seen - before) == 2
    assert {record.state for record in sweep.load(tmp_path / "out").records} == {TrialState.COMPLETE}
    assert len(sweep.load(tmp_path / "out").records) == 12


def test_a_node_that_is_killed_while_a_sweep_runs_costs_no_trial(tmp_path: Path) -> None:
    with ray_head(num_cpus=1, autoscaling=NODE_TYPES) as head:
        driver = started(tmp_path, head, {"search.num_trials": 8})
        wait_for(lambda: is_begun(tmp_path, 1) or driver.poll() is not None, 200)
        raylets = node_processes(head)
        raylets[0].kill()
        printed = driver.communicate()[1]

    records = sweep.load(tmp_path / "out").records
    assert driver.returncode == 0, printed
    assert [record.state for record in records] == [TrialState.COMPLETE] * 8
