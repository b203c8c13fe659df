"""A sweep sent to a real Ray head as one of its jobs: followed, listed, stopped, resumed, fetched; and tokens."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.clusters import Head, ray_head, wait_for
from tests.models import causal_document
from tests.sweeps import ROOT, write_sweep
from tuner import sweep
from tuner.sweep_file import load_sweep_file
from tuner.trial import TrialState

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TOKEN = "0123456789abcdef" * 2
SYNTHETIC, SLOW = "tuner.worker.synthetic:SyntheticWorker", "tests.workers:SlowWorker"
RAY: dict[str, Any] = {"resources.backend": "ray", "pruning.method": "none", "data.test": None}


def python_with(folder: Path, worker: str) -> Path:
    """A folder with a `python` whose tuner has another worker, but for sweeps called real: what a job finds first in its PATH."""
    folder.mkdir()
    script = f"""#!/bin/sh
if [ "$2" = tuner ] && ! grep -q "^name: real" sweep.yaml; then
    shift 2; exec {sys.executable} -m tests.with_worker {worker} "$@"
fi
exec {sys.executable} "$@"
"""
    (folder / "python").write_text(script, encoding="utf-8")
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head that asks for a token, as those of our cluster files do."""
    folder = python_with(tmp_path_factory.mktemp("head") / "bin", SLOW)
    with ray_head(token=TOKEN, path=str(folder)) as one:
        yield one


def tuner(head: Head, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`tuner words...` as from a laptop that has the token."""
    command = [sys.executable, "-m", "tuner", *words, "--address", head.dashboard]
    return subprocess.run(
        command, env=head.env | env, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


def small_sweep(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A sweep for workers that train nothing: its model and its data are only there to travel."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    return write_sweep(folder, RAY | {"model.name": "./model", "data.path": "./rows.jsonl"} | (changes or {}))


def sent(head: Head, file: Path, out: Path, *words: str) -> str:
    """The id of a job that nobody follows."""
    done = tuner(head, "submit", str(file), "--out", str(out), "--no-follow", *words)
    assert done.returncode == 0, done.stderr
    return done.stderr.split()[-1]


def states(out: Path) -> list[TrialState]:
    return [record.state for record in sweep.load(out).records] if (out / "study.journal").exists() else []


def test_a_sweep_is_sent_followed_listed_and_fetched(head: Head, tmp_path: Path) -> None:
    file = tmp_path / "real.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(
            causal_document(tmp_path, RAY | {"name": "real", "search.num_trials": 1}), stream
        )

    followed = tuner(head, "submit", str(file), "--out", str(tmp_path / "there"))
    job_id = followed.stderr.split()[2]
    listed = tuner(head, "status")
    fetched = tuner(head, "fetch", job_id, "--to", str(tmp_path / "here"), "--like", str(file))

    assert followed.returncode == 0, followed.stderr
    assert "trial   0 · COMPLETE" in followed.stdout
    assert f"{job_id}  succeeded" in listed.stdout
    assert fetched.returncode == 0, fetched.stderr
    assert sweep.load(tmp_path / "here").records == sweep.load(tmp_path / "there").records
    assert (tmp_path / "here" / "report.html").read_bytes() == (tmp_path / "there" / "report.html").read_bytes()
    assert sweep.load(tmp_path / "here").config.data.path == load_sweep_file(file).data.path
    assert list(head.folder.glob("session_*/logs/tuner-fetch-*")) == []


def test_a_sweep_that_is_stopped_saves_and_is_resumed_by_another_job(head: Head, tmp_path: Path) -> None:
    file, out = small_sweep(tmp_path, {"search.num_trials": 6}), tmp_path / "there"
    job_id = sent(head, file, out)
    wait_for(lambda: TrialState.COMPLETE in states(out), 200)

    stopped = tuner(head, "stop", job_id)
    between = states(out)
    again = tuner(head, "submit", str(file), "--out", str(out), "--resume")

    assert stopped.stdout == f"{job_id}: stopped\n"
    assert (out / "report.html").is_file()
    assert len(between) < 6 or TrialState.RUNNING in between
    assert again.returncode == 0, again.stdout + again.stderr
    assert states(out) == [TrialState.COMPLETE] * 6


def test_who_stops_following_does_not_stop_the_sweep(head: Head, tmp_path: Path) -> None:
    file, out = small_sweep(tmp_path, {"search.num_trials": 2}), tmp_path / "there"
    command = [sys.executable, "-m", "tuner", "submit", str(file), "--out", str(out), "--address", head.dashboard]
    following = subprocess.Popen(
        command,
        env=head.env,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert following.stdout
    next(line for line in following.stdout if "trial" in line)

    following.send_signal(signal.SIGINT)
    _, printed = following.communicate(timeout=200)
    wait_for(lambda: states(out) == [TrialState.COMPLETE] * 2, 200)

    assert following.returncode == 130, printed
    assert "goes on" in printed


def test_a_sweep_that_can_not_start_says_why_and_fails(head: Head, tmp_path: Path) -> None:
    file = small_sweep(tmp_path, {"resources.gpus_per_trial": 8, "resources.cpus_per_trial": 64.0})

    done = tuner(head, "submit", str(file), "--out", str(tmp_path / "there"))

    assert done.returncode == 2
    assert "error: resources: a trial asks for" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [["status", "no-such"], ["stop", "no-such"], ["fetch", "no-such", "--to", "x"]])
def test_a_job_that_is_not_there_is_told(head: Head, command: list[str]) -> None:
    done = tuner(head, *command)

    assert done.returncode == 2
    assert "knows no sweep no-such" in done.stderr


@pytest.mark.parametrize("token", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"])
def test_a_wrong_token_is_refused_at_once(head: Head, tmp_path: Path, token: dict[str, str]) -> None:
    asked = tuner(head, "status", **token)
    command = [sys.executable, "-m", "tuner", "run", str(small_sweep(tmp_path)), "--address", head.address]
    ran = subprocess.run(
        command, env=head.env | token, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )

    assert (asked.returncode, ran.returncode) == (2, 2)
    assert "refuses the token" in asked.stderr
    assert "refuses the token" in ran.stderr
    assert "Traceback" not in asked.stderr + ran.stderr
    assert not (tmp_path / "reports").exists()


def test_a_token_for_a_cluster_that_asks_for_none_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuner", "run", str(small_sweep(tmp_path)), "--address"]
    with ray_head(num_cpus=1) as head:
        ran = subprocess.run(
            [*command, head.address],
            env=head.env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 32},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    assert ran.returncode == 2
    assert "asks for no token" in ran.stderr
    assert not (tmp_path / "reports").exists()


def test_a_driver_with_the_token_runs_on_the_cluster(head: Head, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.with_worker", SYNTHETIC, "run", str(small_sweep(tmp_path))]
    done = subprocess.run(
        [*command, "--address", "auto", "--out", str(tmp_path / "out")],
        env=head.env | {"RAY_ADDRESS": head.address},  # a head finds itself; here others may run beside it
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "out") == [TrialState.COMPLETE] * 4
