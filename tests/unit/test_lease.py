"""One driver of a sweep in a storage: the second is refused while the first beats, and takes over once it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuner.errors import FolderError
from tuner.lease import BEAT_S, FILE, MISSED_BEATS, Lease, held
from tuner.storage import ObjectFiles


@pytest.fixture
def files(tmp_path: Path) -> ObjectFiles:
    return ObjectFiles(tmp_path.as_uri())


def driver_of(files: ObjectFiles) -> str:
    return str(json.loads(files.read(FILE) or b"{}")["driver"])


def test_a_second_driver_is_refused_while_the_first_beats(files: ObjectFiles) -> None:
    first = Lease(files)
    first.take()
    waits: list[float] = []

    def while_first_beats(seconds: float) -> None:
        waits.append(seconds)
        first._beat()

    with pytest.raises(FolderError, match=f"in use by another tuner process \\({first._driver}\\)"):
        Lease(files, while_first_beats).take()

    assert waits == [MISSED_BEATS * BEAT_S]
    assert driver_of(files) == first._driver


def test_a_driver_that_died_leaves_nothing_that_must_be_removed(files: ObjectFiles) -> None:
    Lease(files).take()
    waits: list[float] = []
    second = Lease(files, waits.append)

    second.take()

    assert driver_of(files) == second._driver
    assert waits[0] == MISSED_BEATS * BEAT_S


def test_of_two_that_find_a_dead_driver_at_once_one_goes_on(files: ObjectFiles) -> None:
    Lease(files).take()
    other = Lease(files, lambda seconds: None)
    calls: list[float] = []

    def meanwhile(seconds: float) -> None:
        calls.append(seconds)
        if len(calls) == 2:  # it has written its name, and another who waited too now does
            other._beat()

    with pytest.raises(FolderError):
        Lease(files, meanwhile).take()

    assert driver_of(files) == other._driver


def test_a_driver_that_slept_while_another_took_over_stops_and_leaves_the_other_alone(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lease(files), Lease(files, lambda seconds: None)
    first.take()
    second.take()
    monkeypatch.setattr("tuner.lease.BEAT_S", 0.0)

    first.require_held()
    first.keep()
    first.give_back()

    with pytest.raises(FolderError, match="in use by another"):
        first.require_held()
    assert driver_of(files) == second._driver


def test_a_sweep_that_ends_is_given_back_and_the_next_driver_waits_for_nothing(files: ObjectFiles) -> None:
    with held(files) as require_held:
        require_held()
        assert files.read(FILE)

    assert files.read(FILE) is None
    Lease(files, sleep=_never).take()


def _never(seconds: float) -> None:
    assert seconds == 0
