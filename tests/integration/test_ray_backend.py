"""The Ray backend keeps the contract, survives lost workers, and gives what the local backend gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.contracts import BackendContract
from tests.drivers import results
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import ResourcesError, TooManyFailuresError
from tuner.trial import FailReason, TrialState

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
DYING, DYING_AT_THE_START = "tests.workers:DyingWorker", "tests.workers:DyingAtTheStartWorker"


class TestRayBackend(BackendContract):
    backend: ClassVar[str] = "ray"


def run(folder: Path, backend: str, changes: dict[str, Any], worker: str | None = None) -> sweep.Sweep:
    folder.mkdir(exist_ok=True)
    file = write_sweep(folder, changes)
    if worker is None:
        return sweep.run(file, out=folder / "out", backend=backend)
    return sweep.run(file, out=folder / "out", backend=backend, worker=worker)


@pytest.mark.parametrize("resources", [{"gpus_per_trial": 8}, {"cpus_per_trial": 512.0}])
def test_more_than_any_node_has_is_refused_before_anything_is_written(
    tmp_path: Path, resources: dict[str, Any]
) -> None:
    changes = {f"resources.{key}": value for key, value in resources.items()}

    with pytest.raises(ResourcesError, match="no node of the cluster has that"):
        run(tmp_path, "ray", changes, SYNTHETIC)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("worker", [DYING, DYING_AT_THE_START])
def test_a_trial_goes_on_after_its_worker_was_lost(tmp_path: Path, worker: str) -> None:
    (tmp_path / "deaths").write_text("1")

    swept = run(tmp_path, "ray", {"pruning.method": "none", "resources.max_concurrent_trials": 1}, worker)

    assert {record.state for record in swept.records} == {TrialState.COMPLETE}
    assert (tmp_path / "deaths").read_text() == "0"


@pytest.mark.parametrize("worker", [DYING, DYING_AT_THE_START])
def test_a_trial_whose_worker_is_lost_each_time_fails_and_the_sweep_goes_on(tmp_path: Path, worker: str) -> None:
    (tmp_path / "deaths").write_text("99")

    swept = run(tmp_path, "ray", {"pruning.method": "none", "resources.max_worker_restarts": 1}, worker)

    outcomes = [record.outcome for record in swept.trials if record.outcome]
    assert [outcome.reason for outcome in outcomes] == [None, FailReason.WORKER_LOST, None, None]


def test_what_kept_a_worker_from_starting_is_told(tmp_path: Path) -> None:
    changes = {"resources.max_failures_in_a_row": 1, "resources.max_worker_restarts": 0}

    with pytest.raises(TooManyFailuresError, match=r"(?s)worker lost.*this node does not see .*/out"):
        run(tmp_path, "ray", changes, "tests.workers:UnbuildableWorker")


@pytest.mark.slow
def test_real_trials_give_the_same_on_the_local_backend_and_on_ray_with_one_worker_or_two(tmp_path: Path) -> None:
    changes = {"pruning.method": "none"}
    local = run(tmp_path / "local", "local", changes)
    one = run(tmp_path / "one", "ray", {**changes, "resources.max_concurrent_trials": 1})
    two = run(tmp_path / "two", "ray", {**changes, "resources.max_concurrent_trials": 2})

    assert results(one.records) == results(local.records)
    assert results(two.records) == results(local.records)
    assert {record.state for record in two.records} == {TrialState.COMPLETE}


@pytest.mark.slow
def test_a_worker_process_loads_the_base_model_once_for_all_its_trials(tmp_path: Path) -> None:
    run(tmp_path, "ray", {"pruning.method": "none", "resources.max_concurrent_trials": 1})

    logs = [file.read_text() for file in (tmp_path / "out" / "logs").iterdir()]
    assert len(logs) == 1
    assert logs[0].count("base model loaded") == 1
    assert len(re.findall(r"^\S+ \S+ trial \d+: TrialSpec\(", logs[0], flags=re.MULTILINE)) == 4
