"""Faults on real processes: damaged checkpoints, interrupts, full disks and memory, processes that hang or die."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_lora, make_spec
from tests.drivers import driving, results
from tests.sweeps import small_config, write_sweep
from tuner import sweep
from tuner.trial import FailReason, Interruption, Metrics, Result, TrialRecord, TrialState
from tuner.worker.host import Worker

pytestmark = pytest.mark.slow

SPEC = make_spec(0, lora=make_lora(r=4), learning_rate=5e-3)
ONE_BY_ONE = {"pruning.method": "none", "resources.max_concurrent_trials": 1}
LONG = {"search.num_trials": 2, "training.max_steps": 96, "pruning.min_steps": 48}
"""Rungs that take long enough to be interrupted in."""


def run_trial(worker: Worker) -> list[Metrics]:
    """All reports of SPEC, without what a clock measured."""
    worker.start(SPEC)
    reports: list[Metrics] = []
    while not reports or reports[-1].steps < 8:
        result = worker.advance()
        assert isinstance(result, Metrics), result
        reports.append(dataclasses.replace(result, train_s=0.0, span=None))
    return reports


def plain(reports: list[Metrics]) -> list[Metrics]:
    return [dataclasses.replace(metrics, remarks=()) for metrics in reports]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Metrics]:
    """What SPEC gives when nothing befalls it."""
    return run_trial(Worker(small_config(tmp_path_factory.mktemp("sweep")), None))


def worked(folder: Path, num_rungs: int) -> Worker:
    """A worker that has brought SPEC so far and left its checkpoints."""
    worker = Worker(small_config(folder), folder)
    worker.start(SPEC)
    for _ in range(num_rungs):
        worker.advance()
    return worker


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [flip_a_byte, cut, Path.unlink])
def test_a_damaged_checkpoint_sends_its_trial_back_one_rung_and_says_so(
    tmp_path: Path, alone: list[Metrics], spoil: Callable[[Path], None]
) -> None:
    worked(tmp_path, 2)
    spoil(tmp_path / "checkpoints" / "trial-0000" / "step-000004" / "state.pt")

    reports = run_trial(Worker(small_config(tmp_path), tmp_path))

    assert plain(reports) == alone
    assert reports[0].remarks == (
        "the checkpoint of step 000004 was damaged (state.pt not as written); went on from step 2",
    )


def test_a_trial_whose_checkpoints_are_all_damaged_begins_anew_and_says_so(
    tmp_path: Path, alone: list[Metrics]
) -> None:
    worked(tmp_path, 2)
    for saved in (tmp_path / "checkpoints" / "trial-0000").glob("step-*"):
        (saved / "checksums.json").write_text("{")

    reports = run_trial(Worker(small_config(tmp_path), tmp_path))

    assert plain(reports) == alone
    assert len(reports[0].remarks) == 2


def interrupted_after(num_asked: int) -> Callable[[], bool]:
    """An interruption that comes when it has been asked for so often."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= num_asked


@pytest.mark.parametrize("num_steps", [0, 3, 5])
def test_a_trial_that_was_interrupted_in_the_midst_of_a_rung_goes_on_from_that_step(
    tmp_path: Path, alone: list[Metrics], num_steps: int
) -> None:
    worker = Worker(small_config(tmp_path), tmp_path)
    worker.start(SPEC)
    worker.listen(interrupted_after(num_steps + 1 + sum(rung <= num_steps for rung in (2, 4))))
    told: list[Result] = [worker.advance()]
    while isinstance(told[-1], Metrics):
        told.append(worker.advance())

    resumed = run_trial(Worker(small_config(tmp_path), tmp_path))

    assert told[-1] == Interruption(steps=num_steps)
    heard = [metrics.steps for metrics in told if isinstance(metrics, Metrics)]
    assert plain(resumed) == [metrics for metrics in alone if metrics.steps >= max([*heard, 0])]


def test_a_trial_that_runs_out_of_memory_is_told_so_and_the_next_is_as_if_alone(
    tmp_path: Path, alone: list[Metrics]
) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "tests.out_of_memory", str(tmp_path)], capture_output=True, text=True, check=False
    )

    first, *rest = asked.stdout.splitlines()
    assert first == FailReason.OUT_OF_MEMORY.value, asked.stderr
    assert rest == [f"{metrics.steps} {metrics.accuracy} {metrics.loss!r}" for metrics in alone]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    """What the sweep of long rungs gives when nothing befalls it."""
    folder = tmp_path_factory.mktemp("unbroken")
    return results(sweep.run(write_sweep(folder, ONE_BY_ONE | LONG), out=folder / "out", backend="local").records)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("backend", "sign"), [("local", signal.SIGINT), ("ray", signal.SIGINT), ("ray", signal.SIGTERM)]
)
def test_one_interrupt_finishes_the_step_saves_and_reports_and_the_sweep_goes_on_from_there(
    tmp_path: Path, unbroken: list[TrialRecord], backend: str, sign: signal.Signals
) -> None:
    out = tmp_path / "out"
    file = write_sweep(tmp_path, ONE_BY_ONE | LONG)
    with driving("run", str(file), "--out", str(out), "--backend", backend) as driver:
        driver.wait_for("trial   0 · RUNNING  · step 48/96")
        driver.interrupt(sign)
        code = driver.ended()

    saved = sorted(path.name for path in (out / "checkpoints" / "trial-0000").glob("step-*"))
    assert code == 130, driver.text
    assert "finishing the steps under way" in driver.text
    assert "`tuner resume DIR` goes on from there" in driver.text
    assert "Traceback" not in driver.text
    assert (out / "report.html").is_file()
    assert 48 <= int(saved[-1].removeprefix("step-")) < 96
    assert results(sweep.resume(out, backend="local").records) == unbroken


@pytest.mark.ray
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_two_interrupts_stop_at_once_and_the_sweep_can_be_resumed(
    tmp_path: Path, unbroken: list[TrialRecord], backend: str
) -> None:
    out = tmp_path / "out"
    file = write_sweep(tmp_path, ONE_BY_ONE | LONG)
    with driving("run", str(file), "--out", str(out), "--backend", backend) as driver:
        driver.wait_for("trial   0 · RUNNING  · step 48/96")
        driver.interrupt()
        driver.wait_for("finishing the steps under way")
        driver.interrupt()
        code = driver.ended()

    assert code == 130, driver.text
    assert (out / "report.html").is_file()
    assert results(sweep.resume(out, backend="local").records) == unbroken


def test_a_second_driver_is_refused_until_the_first_is_gone_however_it_went(
    tmp_path: Path, unbroken: list[TrialRecord]
) -> None:
    out = tmp_path / "out"
    file = write_sweep(tmp_path, ONE_BY_ONE | LONG)
    with driving("run", str(file), "--out", str(out)) as first:
        first.wait_for("trial   0 · RUNNING  · step 48/96")
        with driving("resume", str(out)) as second:
            refused = second.ended()
        first.kill()
        first.ended()

    assert refused == 2
    assert f"{out} is in use by another tuner process" in second.text
    assert results(sweep.resume(out).records) == unbroken


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.ray
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_full_disk_stops_the_sweep_with_the_reason_and_it_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path, unbroken: list[TrialRecord], backend: str
) -> None:
    out = small_disk / "out"
    file = write_sweep(tmp_path, ONE_BY_ONE | LONG)
    with driving("run", str(file), "--out", str(out), "--backend", backend) as driver:
        driver.wait_for("trial   0 · RUNNING  · step 48/96")
        ballast = fill(small_disk)
        code = driver.ended()
    ballast.unlink()

    assert code == 1, driver.text
    assert f"error: no space left for {out}" in driver.text
    assert f"`tuner resume {out}`" in driver.text
    assert "Traceback" not in driver.text
    assert results(sweep.resume(out, backend="local").records) == unbroken


def fill(disk: Path) -> Path:
    """Leave no byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return ballast


@pytest.mark.ray
@pytest.mark.parametrize(("num_hangs", "state"), [(1, TrialState.COMPLETE), (2, TrialState.FAIL)])
def test_a_trial_that_hangs_is_taken_on_once_by_another_process(
    tmp_path: Path, ray_cluster: None, num_hangs: int, state: TrialState
) -> None:
    (tmp_path / "hangs").write_text(str(num_hangs))
    changes: dict[str, Any] = {**ONE_BY_ONE, "search.num_trials": 2, "resources.heartbeat_limit_s": 5.0}

    swept = sweep.run(
        write_sweep(tmp_path, changes), out=tmp_path / "out", backend="ray", worker="tests.hanging:HangingWorker"
    )

    hung, other = swept.trials
    assert (hung.state, other.state) == (state, TrialState.COMPLETE)
    if state is TrialState.FAIL:
        assert hung.outcome is not None
        assert hung.outcome.reason is FailReason.HUNG
        assert "hang_for_ever" in hung.outcome.detail  # where it stood
    else:
        remarks = [remark for metrics in hung.curve for remark in metrics.remarks]
        assert len(remarks) == 1
        assert "its process was ended and another took it on" in remarks[0]
