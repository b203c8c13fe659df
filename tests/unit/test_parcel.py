"""What travels to a cluster with a sweep: what it names, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import write_sweep
from tuner.cluster import parcel as parcels
from tuner.cluster.moved import rename_inputs
from tuner.cluster.parcel import plan_parcel, write_parcel
from tuner.errors import ClusterError, ConfigError
from tuner.sweep_file import load_sweep_file


def home(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A sweep file in a folder with a model, data, and things that are nobody's business."""
    (folder / "model" / "parts").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model" / "parts" / "weights").write_bytes(bytes(2000))
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    (folder / "secret.env").write_text("TOKEN=1", encoding="utf-8")
    return write_sweep(folder, {"model.name": "./model", "data.path": "./rows.jsonl"} | (changes or {}))


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_only_what_the_sweep_names_travels(tmp_path: Path) -> None:
    file, target = home(tmp_path / "home"), tmp_path / "parcel"
    target.mkdir()

    write_parcel(plan_parcel(file), target)

    assert files(target) == {
        "sweep.yaml",
        "inputs/0-model/config.json",
        "inputs/0-model/parts/weights",
        "inputs/1-rows.jsonl",
    }


def test_the_sweep_in_a_parcel_is_the_sweep_with_its_inputs_beside_it(tmp_path: Path) -> None:
    file, target = home(tmp_path / "home"), tmp_path / "parcel"
    target.mkdir()

    write_parcel(plan_parcel(file, ["search.num_trials=7"]), target)

    config = load_sweep_file(target / "sweep.yaml")
    assert config.search.num_trials == 7
    assert config.model.name == str(target / "inputs" / "0-model")
    assert config.data.path == str(target / "inputs" / "1-rows.jsonl")


def test_a_hub_id_does_not_travel(tmp_path: Path) -> None:
    file = home(tmp_path / "home", {"model.name": "org/model"})

    assert [piece.key for piece in plan_parcel(file).pieces] == ["data.path"]


def test_what_the_cluster_sees_under_the_same_path_stays_where_it_is(tmp_path: Path) -> None:
    file, target = home(tmp_path / "home", {"data.path": "/mnt/shared/rows.jsonl"}), tmp_path / "parcel"
    target.mkdir()

    parcel = plan_parcel(file, shared=[Path("/mnt/shared")])
    write_parcel(parcel, target)

    assert [piece.key for piece in parcel.pieces] == ["model.name"]
    assert load_sweep_file(target / "sweep.yaml").data.path == "/mnt/shared/rows.jsonl"


def test_what_is_not_here_is_told_with_its_key(tmp_path: Path) -> None:
    file = home(tmp_path / "home", {"data.path": "/mnt/shared/rows.jsonl"})

    with pytest.raises(ClusterError, match=r"data\.path: /mnt/shared/rows\.jsonl is not on this machine.*--shared"):
        plan_parcel(file)


def test_what_is_too_large_is_told_with_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "LIMIT_BYTES", 2001)
    file = home(tmp_path / "home")

    with pytest.raises(ClusterError, match=r"too large.*model\.name 0 MiB, data\.path 0 MiB"):
        plan_parcel(file)


def test_a_wrong_sweep_file_is_told_before_anything_travels(tmp_path: Path) -> None:
    file = home(tmp_path / "home", {"search.num_trials": 0})

    with pytest.raises(ConfigError, match=r"search\.num_trials"):
        plan_parcel(file)


def test_a_resumed_sweep_names_its_inputs_where_they_lie_now_and_is_else_as_it_was(tmp_path: Path) -> None:
    begun, now = home(tmp_path / "begun", {"search.seed": 5}), home(tmp_path / "now", {"search.seed": 6})
    folder = tmp_path / "out"
    folder.mkdir()
    begun.rename(folder / "sweep.yaml")
    (folder / "study.journal").touch()

    rename_inputs(now, folder)

    config = load_sweep_file(folder / "sweep.yaml")
    assert config.search.seed == 5
    assert (config.model.name, config.data.path) == (str(now.parent / "model"), str(now.parent / "rows.jsonl"))
