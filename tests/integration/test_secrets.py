"""Canaries in the environment and in what fails: none of them is in the sweep's folder or on the screen afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sweeps import write_sweep
from tests.telling import CANARIES, Telling
from tuner import sweep
from tuner.errors import TooManyFailuresError
from tuner.trial import Inspection
from tuner.worker.host import Worker
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.trial import Result, TrialSpec
    from tuner.worker.stepping import Steps


class FailingWorker(Worker):
    """The real worker, whose trials fail with secrets in their errors."""

    def inspect(self) -> Inspection:
        return SyntheticWorker(self._config, None).inspect()

    def _advancing(self, spec: TrialSpec) -> Steps[Result]:
        Telling()
        raise AssertionError


def leaks(text: str) -> list[str]:
    return [word for word in text.lower().split() if "canary" in word]


def leaks_in(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.name == "study.journal" for file in files)
    return [f"{file}: {word}" for file in files for word in leaks(file.read_bytes().decode("utf-8", "ignore"))]


@pytest.fixture
def _canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_canaries")
def test_no_secret_of_a_failed_trial_is_in_the_folder_or_on_the_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    with pytest.raises(TooManyFailuresError, match=r"(?s)RuntimeError: 401 at https://\*\*\*@hub.org/a") as caught:
        sweep.run(write_sweep(tmp_path, {"search.num_trials": 8}), out=out, worker=f"{__name__}:FailingWorker")

    assert "RuntimeError: 401" in (out / "study.journal").read_text(encoding="utf-8")
    assert any("RuntimeError: 401" in file.read_text(encoding="utf-8") for file in (out / "logs").iterdir())
    assert leaks_in(out) == []
    assert leaks(str(caught.value)) == leaks("".join(capfd.readouterr())) == []


@pytest.mark.ray
@pytest.mark.usefixtures("_canaries", "ray_cluster")
def test_no_secret_that_comes_by_way_of_ray_is_in_the_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    changes: dict[str, Any] = {
        "resources.max_worker_restarts": 0,
        "resources.max_failures_in_a_row": 2,
        "resources.cpus_per_trial": 0.5,
    }

    with pytest.raises(TooManyFailuresError, match=r"(?s)RuntimeError.*401 at https://\*\*\*@hub.org/a") as caught:
        sweep.run(write_sweep(tmp_path, changes), out=out, backend="ray", worker="tests.telling:UnbuildableWorker")

    assert leaks_in(out) == []
    assert leaks(str(caught.value)) == leaks("".join(capfd.readouterr())) == []


def test_an_error_that_nobody_has_foreseen_is_shown_without_secrets(tmp_path: Path) -> None:
    program = (
        "from tuner import cli, sweep; from tests.telling import Telling\n"
        "sweep.run = lambda *_, **__: Telling(); cli.main()"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "run", str(write_sweep(tmp_path))],
        env={**os.environ, **CANARIES},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "RuntimeError: 401 at https://***@hub.org/a" in done.stderr
    assert leaks(done.stdout + done.stderr) == []
