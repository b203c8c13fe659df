"""What a cluster is told to do, what it answers, and what people are shown of it."""

from __future__ import annotations

import importlib.metadata
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from tests.clusters import free_ports
from tuner.cluster.fetching import _unpack, archive_in
from tuner.cluster.job_text import job_text, jobs_text
from tuner.cluster.jobs import Cluster, Job
from tuner.cluster.pack import pack
from tuner.cluster.request import JobRequest, pack_request, pinned_requirements, sweep_request
from tuner.errors import ClusterError


def request(*, folder: str | None = None, is_resumed: bool = False, is_installed: bool = False) -> JobRequest:
    return sweep_request("mine", folder=folder, is_resumed=is_resumed, is_installed=is_installed)


def folder_that_a_shell_reads(entrypoint: str, env: dict[str, str]) -> str:
    """The word after --out."""
    words = entrypoint.removeprefix("exec python -m tuner run sweep.yaml --out ")
    return subprocess.run(
        ["sh", "-c", f"printf %s {words}"], env=env, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HOME": "/home/ray"}, "/home/ray/reports/mine"),
        ({"HOME": "/home/ray", "TUNER_REPORTS": "/mnt/all of us"}, "/mnt/all of us/mine"),
    ],
)
def test_a_sweeps_folder_is_where_the_cluster_keeps_them(env: dict[str, str], expected: str) -> None:
    assert folder_that_a_shell_reads(request().entrypoint, env) == expected


@pytest.mark.parametrize("folder", ["/mnt/$(touch x)/a b", "/mnt/'; exit 1; '"])
def test_a_folder_that_is_given_is_one_word_whatever_is_in_it(folder: str) -> None:
    assert folder_that_a_shell_reads(request(folder=folder).entrypoint, {}) == folder


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(ClusterError, match="absolute path on the cluster, got reports/x"):
        request(folder="reports/x")


def test_a_sweep_is_stopped_as_by_ctrl_c_and_may_take_its_time() -> None:
    env = request().environment["env_vars"]

    assert env == {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "900"}


def test_nothing_is_installed_unless_it_is_asked_for() -> None:
    assert request().environment.keys() == {"env_vars"}
    assert request(is_installed=True).environment.keys() == {"env_vars", "py_modules", "pip"}


def test_what_is_installed_is_pinned_to_what_is_here_without_ray() -> None:
    pins = dict(requirement.split("==") for requirement in pinned_requirements())

    assert pins["optuna"] == importlib.metadata.version("optuna")
    assert "+" not in pins["torch"]
    assert "ray" not in pins
    assert "pytest" not in pins


def test_a_folder_is_packed_where_its_sweep_was_told_to_write() -> None:
    entrypoint = pack_request(request(folder="/mnt/x").metadata).entrypoint

    assert entrypoint == "exec python -m tuner.cluster.pack /mnt/x"


def job(status: JobStatus = JobStatus.RUNNING, *, begun_s: float | None = 100.0, ended_s: float | None = None) -> Job:
    return Job(
        id="mine-1", sweep="mine", folder="/x", status=status, message="", begun_s=begun_s, ended_s=ended_s, exit_code=None,
        metadata=(),
    )  # fmt: skip


def test_the_list_has_a_line_for_each_sweep() -> None:
    jobs = [job(), job(JobStatus.SUCCEEDED, ended_s=3761.0), job(JobStatus.PENDING, begun_s=None)]

    assert jobs_text(jobs, now_s=165.0).splitlines() == [
        "mine-1  running    0:01:05",
        "mine-1  succeeded  1:01:01",
        "mine-1  pending    not begun",
    ]
    assert jobs_text([], now_s=0.0) == "no sweep was sent to this cluster"


def test_one_sweep_is_told_with_what_it_printed_last() -> None:
    text = job_text(job(), "\n".join(f"line {number}" for number in range(100)), now_s=160.0)

    assert text.splitlines()[:4] == ["mine-1: running", "time: 0:01:00", "folder there: /x", "line 85"]


def test_where_an_archive_lies_is_read_from_among_other_lines() -> None:
    log = 'noise\ntuner-packed: {"node_id": "n", "filename": "f", "sha256": "s", "size_bytes": 3}\nnoise\n'

    found = archive_in(log)

    assert found
    assert (found.node_id, found.filename, found.size_bytes) == ("n", "f", 3)
    assert archive_in("noise\n") is None


def test_what_only_a_driver_needs_is_not_packed(tmp_path: Path) -> None:
    for name in ("adapters/trial-0001/a", "checkpoints/trial-0002/c", "logs/one.log"):
        (tmp_path / "sweep" / name).parent.mkdir(parents=True)
        (tmp_path / "sweep" / name).write_text("x", encoding="utf-8")
    (tmp_path / "sweep" / "sweep.yaml").write_text("x", encoding="utf-8")

    pack(tmp_path / "sweep", tmp_path / "a.tar.gz")
    _unpack(tmp_path / "a.tar.gz", tmp_path / "here")

    found = {str(file.relative_to(tmp_path / "here")) for file in (tmp_path / "here").rglob("*") if file.is_file()}
    assert found == {"adapters/trial-0001/a", "logs/one.log", "sweep.yaml"}


@pytest.mark.parametrize("name", ["../outside", "logs/../../outside"])
def test_an_archive_can_not_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    (tmp_path / "in").mkdir()

    with pytest.raises(ClusterError, match="can't be unpacked"):
        _unpack(tmp_path / "a.tar.gz", tmp_path / "in" / "here")

    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("address", ["localhost:8265", "ray://head:10001", "http://", "auto"])
def test_an_address_that_is_no_dashboards_is_told(address: str) -> None:
    with pytest.raises(ClusterError, match="must be that of a Ray dashboard"):
        Cluster(address)


def test_a_dashboard_that_does_not_answer_is_told() -> None:
    with pytest.raises(ClusterError, match=r"no Ray dashboard answers at .*ray dashboard"):
        Cluster(f"http://127.0.0.1:{free_ports(1)[0]}")
