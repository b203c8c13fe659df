"""Folders in a storage: whole or not there, whatever breaks off; the same on a disk as in the two kinds of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweeps import small_config
from tuner.errors import StorageError
from tuner.storage import WHOLE, Files, LocalFiles, ObjectFiles
from tuner.worker.keeping import Keeper, scratch_folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def files(there: Path) -> ObjectFiles:
    return ObjectFiles(there.as_uri(), sleep=lambda seconds: None)


def folder_with(path: Path, **content: str) -> Path:
    for name, text in content.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def content_of(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def breaking(call: Callable[..., None], at: int) -> Callable[..., None]:
    """Fails from the call of that number on."""
    calls = iter(range(1000))

    def broken(*values: object) -> None:
        if next(calls) >= at:
            raise OSError("the network is gone")
        call(*values)

    return broken


def test_a_folder_comes_back_as_it_was(files: ObjectFiles, tmp_path: Path) -> None:
    here = folder_with(tmp_path / "here", state="1", adapter__weights="2")

    files.upload(here, "checkpoints/trial-0001/step-000002")

    assert files.download("checkpoints/trial-0001/step-000002", tmp_path / "back")
    assert content_of(tmp_path / "back") == {"state": "1", "adapter/weights": "2"}


@pytest.mark.parametrize("num_sent", [0, 1, 2])
@pytest.mark.parametrize("is_there_before", [False, True])
def test_an_upload_that_breaks_off_leaves_no_folder(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_sent: int, is_there_before: bool
) -> None:
    here = folder_with(tmp_path / "here", a="1", b="2", c="3")
    if is_there_before:
        files.upload(here, "x")
        folder_with(here, a="other")
    monkeypatch.setattr(files, "_send", breaking(files._send, num_sent))

    with pytest.raises(StorageError, match="the network is gone"):
        files.upload(here, "x")

    assert not files.download("x", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_half_a_list_of_files_is_no_folder(files: ObjectFiles, there: Path, tmp_path: Path) -> None:
    files.upload(folder_with(tmp_path / "here", a="1"), "x")
    (there / "x" / WHOLE).write_text('{"a": "6b8')

    assert not files.download("x", tmp_path / "back")


def test_a_folder_that_is_there_already_is_not_sent_again_and_a_changed_one_is(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder_with(tmp_path / "here", a="1")
    files.upload(here, "x")
    monkeypatch.setattr(files, "_send", breaking(files._send, 0))

    files.upload(here, "x")

    folder_with(here, a="2")
    with pytest.raises(StorageError):
        files.upload(here, "x")


def test_a_removal_that_breaks_off_leaves_no_folder(
    files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.upload(folder_with(tmp_path / "here", a="1"), "trial/step")
    monkeypatch.setattr(files, "_delete", breaking(files._delete, 0))

    with pytest.raises(StorageError):
        files.remove("trial")

    assert not files.download("trial/step", tmp_path / "back")


@pytest.mark.parametrize("kind", ["local", "object"])
def test_both_kinds_of_files_list_move_and_remove_alike(
    kind: str, files: ObjectFiles, there: Path, tmp_path: Path
) -> None:
    tried: Files = files if kind == "object" else LocalFiles(there)
    files.upload(folder_with(tmp_path / "here", state="1", adapter__weights="2"), "checkpoints/trial-0001/step-000008")
    if kind == "local":
        (there / "checkpoints" / "trial-0001" / "step-000008" / WHOLE).unlink()

    tried.move("checkpoints/trial-0001", "checkpoints/beside-0001")
    tried.move("checkpoints/beside-0001/step-000008/adapter", "adapters/beside-0001")
    tried.remove("checkpoints/beside-0001")
    tried.remove("checkpoints/never-there")

    assert tried.names("checkpoints") == []
    assert tried.names("never-there") == []
    assert tried.names("adapters") == ["beside-0001"]
    assert (there / "adapters" / "beside-0001" / "weights").read_text() == "2"


def test_a_part_that_was_moved_is_whole_and_a_folder_within_a_moved_one_too(files: ObjectFiles, tmp_path: Path) -> None:
    files.upload(folder_with(tmp_path / "here", state="1", adapter__weights="2"), "trial/step")

    files.move("trial", "other")
    assert files.download("other/step", tmp_path / "step")
    files.move("other/step/adapter", "adapters/trial")

    assert files.download("adapters/trial", tmp_path / "adapter")
    assert content_of(tmp_path / "adapter") == {"weights": "2"}
    assert content_of(tmp_path / "step") == {"state": "1", "adapter/weights": "2"}


def test_a_call_is_repeated_with_pauses_and_after_it_failed_for_good_the_next_is_not(there: Path) -> None:
    pauses: list[float] = []
    files = ObjectFiles(there.as_uri(), sleep=pauses.append)
    files._write = breaking(files._write, 0)  # type: ignore[method-assign]

    for _ in range(2):
        with pytest.raises(StorageError, match=f"resources.storage: {there.as_uri()}: the network is gone"):
            files.write("x", b"")

    assert tuple(pauses) == ObjectFiles.PAUSES_S


def test_a_blip_is_not_noticed(files: ObjectFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, answers = files._send, iter([False, False, True])

    def answering(file: Path, key: str) -> None:
        if not next(answers):
            raise OSError("blip")
        send(file, key)

    monkeypatch.setattr(files, "_send", answering)

    files.upload(folder_with(tmp_path / "here", a="1"), "x")

    assert files.download("x", tmp_path / "back")


def keeper(tmp_path: Path, there: Path, node: str, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setenv("TUNER_SCRATCH", str(tmp_path / node))
    return Keeper(small_config(tmp_path, {"resources.storage": there.as_uri()}), tmp_path / "driver")


def test_a_node_that_a_trial_comes_back_to_takes_what_other_nodes_did(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (keeper(tmp_path, there, node, monkeypatch) for node in ("one", "two"))
    on_one, on_two = one.checkpoints(7), two.checkpoints(7)
    assert on_one
    assert on_two
    folder_with(on_one, **{"step-000002__state": "2", "step-000004.partial__state": "half"})
    one.keep(7)

    two.bring(7)
    folder_with(on_two, **{"step-000008__state": "8"})
    (on_two / "step-000002" / "state").unlink()
    (on_two / "step-000002").rmdir()
    two.keep(7)
    one.bring(7)

    assert content_of(on_one) == {"step-000004.partial/state": "half", "step-000008/state": "8"}


def test_an_adapter_that_was_not_kept_is_told(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="has no adapters/trial-0003"):
        keeper(tmp_path, there, "one", monkeypatch).adapter(3)


def test_sweeps_of_one_name_in_two_storages_share_no_folder_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNER_SCRATCH", raising=False)

    assert scratch_folder("small", "s3://a/x") != scratch_folder("small", "s3://b/x")
