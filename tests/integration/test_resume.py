"""A driver that is killed: finished trials stay, unfinished ones go on, and the results are those of an unbroken sweep."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.drivers import driving, results
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.trial import TrialRecord, TrialState

pytestmark = pytest.mark.slow

CHANGES = {"pruning.method": "none", "resources.max_concurrent_trials": 1}


def killed_sweep(folder: Path, backend: str, at: str, sign: signal.Signals) -> Path:
    """Start `tuner run` in a process of its own and kill it as soon as it prints a line with `at`."""
    out = folder / "out"
    with driving("run", str(write_sweep(folder, CHANGES)), "--out", str(out), "--backend", backend) as driver:
        driver.wait_for(at)
        driver.send(sign)
        code = driver.ended()
    assert code != 0, driver.text
    return out


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    """What the sweep gives when nobody kills it."""
    folder = tmp_path_factory.mktemp("unbroken")
    return results(sweep.run(write_sweep(folder, CHANGES), out=folder / "out", backend="local").records)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("backend", "sign"), [("local", signal.SIGKILL), ("ray", signal.SIGKILL), ("local", signal.SIGINT)]
)
def test_a_killed_sweep_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: list[TrialRecord], backend: str, sign: signal.Signals
) -> None:
    out = killed_sweep(tmp_path, backend, "trial   1 · RUNNING  · step 4/8", sign)
    before = sweep.load(out)

    resumed = sweep.resume(out)

    assert [record.state for record in before.records[:2]] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert results(resumed.records) == unbroken
    assert resumed.records[0] == before.records[0]


@pytest.mark.ray
def test_an_interrupted_sweep_on_ray_says_how_to_go_on_and_has_a_report(tmp_path: Path) -> None:
    out = killed_sweep(tmp_path, "ray", "trial   0 · COMPLETE", signal.SIGINT)

    assert (out / "report.html").is_file()
    assert sweep.load(out).records[0].state is TrialState.COMPLETE
