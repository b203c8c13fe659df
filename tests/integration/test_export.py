"""The exported adapter is the one that the report describes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import ExportError, FolderError, PickError
from tuner.exporting import export
from tuner.sweep import Sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A finished sweep of real trials."""
    folder = tmp_path_factory.mktemp("sweep")
    changes = {"search.num_trials": 3, "pruning.method": "none"}
    return sweep.run(write_sweep(folder, changes), out=folder / "out", backend="local")


def test_adapters_are_kept_for_the_front_alone(swept: Sweep) -> None:
    kept = sorted(path.name for path in (swept.folder / "adapters").iterdir())

    assert kept == sorted(f"trial-{record.number:04d}" for record in swept.front)
    assert not any((swept.folder / "checkpoints").iterdir())


def test_the_copy_scores_what_the_report_says(swept: Sweep, tmp_path: Path) -> None:
    exported = export(swept.folder, to=tmp_path / "adapter", pick="most-accurate")

    best = max(record.last.accuracy for record in swept.front if record.last)
    assert exported.accuracy == best


def test_the_copy_loads_as_its_model_card_says(swept: Sweep, tmp_path: Path) -> None:
    export(swept.folder, to=tmp_path / "adapter")

    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=10)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")

    with torch.no_grad():
        logits = model(**tokenizer("a large grey mammal with a trunk", return_tensors="pt")).logits
    assert logits.shape == (1, 10)


def test_card_and_provenance_say_where_the_adapter_comes_from(swept: Sweep, tmp_path: Path) -> None:
    exported = export(swept.folder, to=tmp_path / "adapter", pick="knee")

    card = (tmp_path / "adapter" / "README.md").read_text()
    provenance = json.loads((tmp_path / "adapter" / "provenance.json").read_text())
    assert f"trial {exported.number}" in card
    assert f"{100 * exported.accuracy:.1f}%" in card
    assert provenance["data"]["fingerprint_sha256"] == swept.inspection.data_fingerprint
    assert provenance["metrics"]["accuracy"] == exported.accuracy
    assert set(provenance["files_sha256"]) == {"adapter_model.safetensors"}


def test_the_same_export_twice_gives_the_same_weights(swept: Sweep, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(swept.folder, to=tmp_path / name)

    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def tampered(swept: Sweep, tmp_path: Path) -> Path:
    """A copy of the sweep whose adapters are not what was trained."""
    copy = tmp_path / "tampered"
    shutil.copytree(swept.folder, copy)
    for file in copy.glob("adapters/*/adapter_model.safetensors"):
        tensors = load_file(file)
        save_file({key: value.flip(0).contiguous() for key, value in tensors.items()}, file)
    return copy


def test_an_adapter_that_scores_otherwise_is_refused_and_nothing_is_left(tampered: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the report says"):
        export(tampered, to=tmp_path / "adapter", pick="most-accurate")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["tampered"]


def test_an_adapter_that_does_not_load_is_refused(tampered: Path, tmp_path: Path) -> None:
    for file in tampered.glob("adapters/*/adapter_model.safetensors"):
        file.write_bytes(b"none")

    with pytest.raises(ExportError, match="does not load"):
        export(tampered, to=tmp_path / "adapter")

    assert not (tmp_path / "adapter").exists()


def test_an_export_overwrites_nothing(swept: Sweep, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()

    with pytest.raises(FolderError, match="no empty folder"):
        export(swept.folder, to=tmp_path)


def test_a_trial_off_the_front_is_refused_with_those_that_are_on_it(swept: Sweep, tmp_path: Path) -> None:
    with pytest.raises(PickError, match="only the front's adapters are kept"):
        export(swept.folder, to=tmp_path / "adapter", pick="trial:77")
