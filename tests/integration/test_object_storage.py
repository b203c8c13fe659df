"""Sweeps whose nodes share no file system: moto's S3 server, real worker processes, scratch folders of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import call
from tests.drivers import driving, results
from tests.meanwhile import Meanwhile
from tests.object_storage import SECRET, Bucket, bucket
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import FolderError, PausedError, StorageError
from tuner.exporting import export
from tuner.folder import SweepFolder
from tuner.storage import ObjectFiles
from tuner.trial import folder_name

__all__ = ["bucket"]

KEEPING = "tests.keeping_worker:KeepingWorker"


@pytest.fixture(autouse=True)
def _on_this_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("TUNER_TEST_WORKED", str(tmp_path / "worked"))
    monkeypatch.setattr("tuner.storage.ObjectFiles.PAUSES_S", (0.0,))
    monkeypatch.setattr("tuner.lease.BEAT_S", 0.2)


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of a synthetic sweep's time is its report."""
    monkeypatch.setattr("tuner.sweep.write_report", lambda *args: None)


def changes(storage: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"search.num_trials": 12, "pruning.audit": 2, "resources.storage": storage, **(more or {})}


def worked(tmp_path: Path) -> Counter[str]:
    """How often each rung of each trial was worked on."""
    return Counter((tmp_path / "worked").read_text().splitlines())


def with_folder(tmp_path: Path, asked: dict[str, Any], worker: str) -> sweep.Sweep:
    file = write_sweep(tmp_path, {**asked, "resources.storage": None})
    return sweep.run(file, out=tmp_path / "with-folder", worker=worker)


@pytest.mark.usefixtures("no_report")
def test_a_sweep_has_the_same_records_as_with_a_folder_and_leaves_the_same_adapters(
    bucket: Bucket, tmp_path: Path
) -> None:
    asked = changes(bucket.folder())

    found = sweep.run(write_sweep(tmp_path, asked), out=tmp_path / "out", worker=KEEPING)

    expected = with_folder(tmp_path, asked, KEEPING)
    assert found.records == expected.records
    files = ObjectFiles(asked["resources.storage"])
    assert files.names("adapters") == sorted(path.name for path in (tmp_path / "with-folder" / "adapters").iterdir())
    assert files.names("adapters") == sorted(folder_name(record.number) for record in found.front)
    assert files.names("checkpoints") == []
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_a_sweep_of_a_real_model_trains_scores_and_exports_through_the_storage(bucket: Bucket, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"resources.storage": bucket.folder(), "search.num_trials": 2, "pruning.method": "none"}
    found = sweep.run(write_sweep(tmp_path, asked), out=tmp_path / "out")

    exported = export(tmp_path / "out", to=tmp_path / "adapter")

    objects = bucket.objects(asked["resources.storage"])
    assert results(found.records) == results(with_folder(tmp_path, asked, "tuner.worker.host:Worker").records)
    assert any(record.last and record.last.held_out for record in found.records)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == objects[
        f"adapters/{folder_name(exported.number)}/adapter_model.safetensors"
    ]
    for file in ("study.journal", "report.html", "summary.json"):
        assert objects[file] == (tmp_path / "out" / file).read_bytes()
    assert any(name.startswith("logs/worker-") and content for name, content in objects.items())


@pytest.fixture
def two_nodes(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of two Ray nodes of a core each, with a scratch folder each."""
    from ray._common.utils import reset_ray_address
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # for the nodes as for the driver
    cluster = Cluster()
    reset_ray_address()  # or else any ray.init() on this machine would join it (ray 2.60)
    for node in ("one", "two"):
        cluster.add_node(num_cpus=1, env_vars={"TUNER_SCRATCH": str(tmp_path / node)}, include_dashboard=False)
    yield str(cluster.address)
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_whose_node_is_lost_goes_on_from_its_last_rung_on_another(
    bucket: Bucket, two_nodes: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"resources.storage": bucket.folder(), "search.num_trials": 2, "pruning.method": "none"}
    (tmp_path / "deaths").write_text("1")

    file = write_sweep(tmp_path, {**asked, "resources.backend": "ray"})
    words = ("tests.losing_worker:LosingWorker", "run", str(file), "--out", f"{tmp_path}/out")
    with driving(*words, module="tests.with_worker", environment={"RAY_ADDRESS": two_nodes}) as driver:
        assert driver.ended() == 0, driver.text

    found = sweep.load(tmp_path / "out")
    expected = with_folder(tmp_path, asked, "tuner.worker.host:Worker").records
    assert results(found.records) == results(expected)
    assert (tmp_path / "deaths").read_text() == "0"
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    logs = [content.decode() for name, content in bucket.objects(asked["resources.storage"]).items() if "logs/" in name]
    assert len(logs) >= 2
    assert any("trial 1 goes on from step 2" in log for log in logs)


@pytest.mark.usefixtures("no_report")
def test_a_sweep_whose_driver_is_lost_with_its_machine_goes_on_elsewhere(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = changes(bucket.folder(), {"pruning.method": "none", "pruning.audit": 0})
    code = f"""
import os, signal
from tests.meanwhile import Meanwhile
from tuner import mirror, sweep
mirror.EVERY_S = 0.0
view = Meanwhile(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
sweep.run({str(write_sweep(tmp_path, asked))!r}, out={str(tmp_path / "out")!r}, worker={KEEPING!r}, view=view)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "scratch")
    monkeypatch.setenv("TUNER_SCRATCH", str(tmp_path / "elsewhere"))

    resumed = sweep.resume(asked["resources.storage"], out=tmp_path / "new", worker=KEEPING)

    assert set(worked(tmp_path).values()) == {1}  # nothing was trained twice
    assert resumed.records == with_folder(tmp_path, asked, KEEPING).records
    assert resumed.folder == tmp_path / "new"
    assert sweep.load(tmp_path / "new").records == resumed.records


@pytest.mark.usefixtures("no_report")
def test_a_folder_that_the_sweep_has_left_behind_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    asked = changes(bucket.folder())

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.run(write_sweep(tmp_path, asked), out=tmp_path / "out", worker=KEEPING, view=Meanwhile(5, stop))
    elsewhere = sweep.resume(asked["resources.storage"], out=tmp_path / "new", worker=KEEPING)

    with pytest.raises(FolderError, match=r"is older than s3://tuner-tests.*the sweep went on elsewhere"):
        sweep.resume(tmp_path / "out", worker=KEEPING)

    assert sweep.resume(tmp_path / "new", worker=KEEPING).records == elsewhere.records


@pytest.mark.usefixtures("no_report")
def test_a_storage_that_goes_away_in_the_midst_stops_the_sweep_which_can_be_resumed(
    bucket: Bucket, tmp_path: Path
) -> None:
    asked = changes(bucket.folder())
    file = write_sweep(tmp_path, asked)

    with pytest.raises((PausedError, StorageError), match=r"resources.storage: s3://tuner-tests.*onnect"):
        sweep.run(file, out=tmp_path / "out", worker=KEEPING, view=Meanwhile(5, bucket.go_away))
    bucket.come_back()

    resumed = sweep.resume(tmp_path / "out", worker=KEEPING)
    assert resumed.records == with_folder(tmp_path, asked, KEEPING).records


def test_a_storage_that_does_not_answer_is_told_before_anything_is_written(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for address in ("s3://no-such-bucket/x", "s3://tuner-tests/x?endpoint_override=127.0.0.1:1&scheme=http"):
        file = write_sweep(tmp_path, changes(address))

        code, _, err = call(capsys, monkeypatch, "run", str(file), "--out", str(tmp_path / "out"))

        assert code == 2
        assert err.startswith(f"error: resources.storage: {address}: ")
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_report")
def test_a_storage_that_holds_something_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    asked = changes(bucket.folder(), {"search.num_trials": 2})
    file = write_sweep(tmp_path, asked)
    sweep.run(file, out=tmp_path / "out", worker=KEEPING)

    with pytest.raises(FolderError, match=r"holds a sweep already; go on with `tuner resume s3://tuner-tests/"):
        sweep.run(file, out=tmp_path / "other", worker=KEEPING)

    other = bucket.folder()
    ObjectFiles(other).write("thesis.tex", b"x")
    with pytest.raises(FolderError, match=r"is no empty folder \(thesis.tex is in it\)"):
        sweep.run(write_sweep(tmp_path, changes(other)), out=tmp_path / "other", worker=KEEPING)


def test_only_a_sweep_can_be_resumed_and_only_into_an_empty_folder(bucket: Bucket, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"holds no sweep: no sweep.yaml in it"):
        sweep.resume(bucket.folder(), out=tmp_path / "out")
    with pytest.raises(FolderError, match=r"ftp://x/y: must be one of s3://"):
        sweep.resume("ftp://x/y", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_keys_are_told_nowhere(bucket: Bucket, tmp_path: Path) -> None:
    failing = {"search.space.learning_rate": 0.5, "resources.max_failures_in_a_row": 3}
    asked = changes(bucket.folder(), failing)
    file, out = str(write_sweep(tmp_path, asked)), str(tmp_path / "out")
    code = f"from tuner import sweep; sweep.run({file!r}, out={out!r}, worker={KEEPING!r})"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "3 trials failed one after another" in told.stderr
    texts = [*bucket.objects(asked["resources.storage"]).values()]
    texts += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 10
    assert not any(SECRET.encode() in text for text in texts)
    assert SECRET not in told.stderr + told.stdout
    assert SweepFolder(tmp_path / "out").journal.is_file()


@pytest.mark.usefixtures("no_report")
def test_a_driver_on_another_machine_is_refused_while_the_first_works(bucket: Bucket, tmp_path: Path) -> None:
    asked = changes(bucket.folder())

    def interfere() -> None:
        with pytest.raises(FolderError, match="is in use by another tuner process"):
            sweep.resume(asked["resources.storage"], out=tmp_path / "second", worker=KEEPING)

    found = sweep.run(write_sweep(tmp_path, asked), out=tmp_path / "out", worker=KEEPING, view=Meanwhile(4, interfere))

    assert found.records == with_folder(tmp_path, asked, KEEPING).records
    assert "driver.json" not in bucket.objects(asked["resources.storage"])
