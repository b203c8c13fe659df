"""A folder is there whole or not at all, whoever else is filling it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.whole import remove_partial, whole


def test_a_folder_takes_the_place_of_the_one_before_only_when_it_is_filled(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "step-000060"
    for content in ("old", "new"):
        with whole(folder) as partial:
            (partial / "state").write_text(content)
            assert not folder.exists() or (folder / "state").read_text() == "old"

    assert [path.name for path in folder.parent.iterdir()] == ["step-000060"]
    assert (folder / "state").read_text() == "new"


def test_what_fails_in_the_midst_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "step-000060"
    folder.mkdir()
    (folder / "state").write_text("old")

    def fail() -> None:
        with whole(folder) as partial:
            (partial / "state").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()

    assert [path.name for path in tmp_path.iterdir()] == ["step-000060"]
    assert (folder / "state").read_text() == "old"


def test_two_that_fill_the_same_folder_do_not_meet(tmp_path: Path) -> None:
    folder = tmp_path / "step-000060"

    with whole(folder) as slow:
        (slow / "state").write_text("same")
        with whole(folder) as quick:
            (quick / "state").write_text("same")
        assert (folder / "state").read_text() == "same"
        assert (slow / "state").exists()

    assert [path.name for path in tmp_path.iterdir()] == ["step-000060"]
    assert [path.name for path in folder.iterdir()] == ["state"]


def test_one_that_is_overtaken_at_the_last_moment_leaves_the_others_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-000060"
    rename = Path.rename

    def overtaken(partial: Path, to: Path) -> Path:
        to.mkdir()
        (to / "state").write_text("the other's")
        return rename(partial, to)

    monkeypatch.setattr(Path, "rename", overtaken)
    with whole(folder) as partial:
        (partial / "state").write_text("mine")

    assert [path.name for path in tmp_path.iterdir()] == ["step-000060"]
    assert (folder / "state").read_text() == "the other's"


def test_what_a_kill_has_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "step-000060"
    filling = whole(folder)
    filling.__enter__()
    (tmp_path / "step-000030").mkdir()

    remove_partial(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["step-000030"]
