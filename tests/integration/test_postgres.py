"""A study in a real PostgreSQL: the same results as with a journal, one driver, no sweep lost to a crash, no password told."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.commands import call
from tests.contracts import SYNTHETIC
from tests.drivers import results
from tests.meanwhile import Meanwhile
from tests.postgres import Server, postgres
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import FolderError, StorageError
from tuner.folder import SweepFolder
from tuner.postgres import Connector, open_storage
from tuner.trial import TrialRecord

__all__ = ["postgres"]

NAMES = itertools.count()


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of a synthetic sweep's time is its report, which stands in other tests."""
    monkeypatch.setattr("tuner.sweep.write_report", lambda *args: None)


def changes(server: Server, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A sweep of a name of its own in the database."""
    name = {"name": f"small-{next(NAMES)}", "study.storage": server.address}
    return {"search.num_trials": 12, "pruning.audit": 2, **name, **(more or {})}


def swept(folder: Path, asked: dict[str, Any], out: str = "out", **more: Any) -> sweep.Sweep:
    return sweep.run(write_sweep(folder, asked), out=folder / out, worker=SYNTHETIC, **more)


def with_journal(folder: Path, asked: dict[str, Any]) -> tuple[TrialRecord, ...]:
    return swept(folder, {**asked, "study.storage": "journal"}, "with-journal").records


def test_a_sweep_has_the_same_records_as_with_a_journal(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres)

    found = swept(tmp_path, asked)

    assert found.records == with_journal(tmp_path, asked)
    assert sweep.load(tmp_path / "out") == found
    assert not (tmp_path / "out" / "study.journal").exists()


@pytest.mark.ray
def test_a_sweep_on_ray_has_them_too(postgres: Server, ray_cluster: None, tmp_path: Path) -> None:
    asked = changes(postgres, {"pruning.method": "none", "pruning.audit": 0})

    found = swept(tmp_path, asked, backend="ray")

    assert results(found.records) == results(with_journal(tmp_path, asked))


def test_a_killed_driver_lets_go_of_the_sweep_and_loses_nothing(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres, {"pruning.method": "none", "pruning.audit": 0})
    code = f"""
import os, signal
from tests.meanwhile import Meanwhile
from tuner import sweep
view = Meanwhile(7, lambda: os.kill(os.getpid(), signal.SIGKILL))
sweep.run({str(write_sweep(tmp_path, asked))!r}, out={str(tmp_path / "out")!r}, worker={SYNTHETIC!r}, view=view)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(sweep.load(tmp_path / "out").records) == 7

    resumed = sweep.resume(tmp_path / "out", worker=SYNTHETIC)

    assert resumed.records == with_journal(tmp_path, asked)


def test_a_second_driver_with_another_folder_is_refused_while_the_first_works(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres)
    refused: list[FolderError] = []

    def interfere() -> None:
        shutil.copytree(tmp_path / "out", tmp_path / "copy")
        with pytest.raises(FolderError) as caught:
            sweep.resume(tmp_path / "copy", worker=SYNTHETIC)
        refused.append(caught.value)

    found = swept(tmp_path, asked, view=Meanwhile(4, interfere))

    assert f"study {asked['name']!r} in {postgres.address} is in use by another tuner process" in str(refused[0])
    assert found.records == with_journal(tmp_path, asked)
    assert sweep.resume(tmp_path / "copy", worker=SYNTHETIC).records == found.records


def test_a_name_that_the_database_has_is_refused_before_anything_is_written(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres)
    swept(tmp_path, asked)

    with pytest.raises(FolderError, match=f"holds a study named '{asked['name']}' already; go on with `tuner resume`"):
        swept(tmp_path, asked, "other")

    assert not (tmp_path / "other").exists()


def test_what_a_driver_left_that_died_before_its_sweep_began_is_no_study(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres)
    storage = open_storage(postgres.address, asked["name"])
    storage.create_new_study([], asked["name"])
    storage.close()

    assert len(swept(tmp_path, asked).trials) == 12


def test_a_server_that_crashes_and_comes_back_does_not_end_a_sweep(
    postgres: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = changes(postgres)
    starting = threading.Timer(1.0, postgres.start)

    def crash() -> None:
        postgres.stop()
        starting.start()

    found = swept(tmp_path, asked, view=Meanwhile(5, crash))
    starting.join()

    assert found.records == with_journal(tmp_path, asked)
    assert "trying again for 300 s" in caplog.text


@pytest.mark.parametrize("is_committed", [False, True])
def test_connections_that_drop_within_a_commit_lose_and_double_nothing(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    asked = changes(postgres)
    expected = with_journal(tmp_path, asked)
    commit, commits, drops = psycopg.Connection.commit, itertools.count(1), []

    def dropping(connection: psycopg.Connection) -> None:
        if next(commits) % 9:
            return commit(connection)
        if is_committed:
            commit(connection)
        connection.close()
        drops.append(1)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna waits up to two seconds
    monkeypatch.setattr(Connector, "connect", _undisturbed(monkeypatch, dropping))
    found = swept(tmp_path, asked)

    assert len(drops) > 10
    assert found.records == expected


def _undisturbed(monkeypatch: pytest.MonkeyPatch, dropping: Any) -> Any:
    """Opening a connection, whose own commits are not disturbed."""
    commit, connect = psycopg.Connection.commit, Connector.connect

    def connected(connector: Connector) -> psycopg.Connection:
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        connection = connect(connector)
        if connector._name is not None:
            monkeypatch.setattr(psycopg.Connection, "commit", dropping)
        return connection

    return connected


def test_a_server_that_stays_away_ends_the_sweep_which_can_be_resumed(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = changes(postgres)
    monkeypatch.setattr("tuner.postgres.Connector.__init__.__defaults__", (None, 0.0))

    with pytest.raises(StorageError, match=r"127.0.0.1.*refused"):
        swept(tmp_path, asked, view=Meanwhile(5, postgres.stop))
    postgres.start()

    assert sweep.resume(tmp_path / "out", worker=SYNTHETIC).records == with_journal(tmp_path, asked)


def test_a_connection_that_the_server_takes_for_alive_is_ended_by_its_own_driver(postgres: Server) -> None:
    connector = Connector(postgres.address, "cut-off")
    former = connector.connect()

    later = connector.connect()

    with pytest.raises(psycopg.OperationalError):
        former.execute("SELECT 1")
    assert later.execute("SELECT 1").fetchone() == (1,)
    former.close()
    later.close()


def test_two_drivers_may_begin_at_once_in_an_empty_database(postgres: Server, tmp_path: Path) -> None:
    with psycopg.connect(postgres.address, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    address = postgres.address.replace("/postgres", "/fresh").replace("//fresh", "//postgres")
    opened: list[object] = []

    def begin(name: str) -> None:
        opened.append(open_storage(address, name))

    drivers = [threading.Thread(target=begin, args=(f"driver-{number}",)) for number in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()

    assert len(opened) == 4
    for storage in opened:
        storage.close()  # type: ignore[attr-defined]


def test_the_password_is_told_nowhere(postgres: Server, tmp_path: Path) -> None:
    failing = {"search.space.learning_rate": 0.5, "resources.max_failures_in_a_row": 3}
    file = write_sweep(tmp_path, changes(postgres, failing))
    code = f"from tuner import sweep; sweep.run({str(file)!r}, out={str(tmp_path / 'out')!r}, worker={SYNTHETIC!r})"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    reported = subprocess.run(
        [sys.executable, "-m", "tuner", "report", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )

    assert "3 trials failed one after another" in told.stderr
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(texts) > 5
    assert not any(postgres.password.encode() in text for text in texts)
    assert postgres.password not in told.stderr + told.stdout + reported.stderr + reported.stdout


def test_a_wrong_password_is_told_with_where_to_put_the_right_one(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGPASSWORD", "not-it")
    file = write_sweep(tmp_path, changes(postgres))

    code, _, err = call(capsys, monkeypatch, "run", str(file), "--out", str(tmp_path / "out"))

    assert code == 2
    assert "password authentication failed" in err
    assert err.endswith("taken from PGPASSWORD or ~/.pgpass\n")
    assert "not-it" not in err
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_away_at_the_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path, {"study.storage": "postgresql://me@127.0.0.1:1/db"})

    code, _, err = call(capsys, monkeypatch, "run", str(file), "--out", str(tmp_path / "out"))

    assert code == 2
    assert err.startswith("error: postgresql://***@127.0.0.1:1/db: connection failed")
    assert len(err.splitlines()) == 1


def test_a_sweep_whose_study_is_not_in_the_database_is_told(postgres: Server, tmp_path: Path) -> None:
    asked = changes(postgres)
    swept(tmp_path, asked)
    file = SweepFolder(tmp_path / "out").sweep_file
    file.write_text(file.read_text().replace(f"name: {asked['name']}", "name: another"))

    with pytest.raises(FolderError, match="holds no study named 'another'"):
        sweep.load(tmp_path / "out")
    with pytest.raises(FolderError, match="holds no study named 'another'"):
        sweep.resume(tmp_path / "out", worker=SYNTHETIC)
