"""The exported adapter is the one that the report describes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import ExportError, FolderError, PickError
from tuner.exporting import Exported, export, export_all
from tuner.forms import Form
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


@pytest.fixture(scope="module")
def exported(swept: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The knee as it was trained."""
    return export(swept.folder, to=tmp_path_factory.mktemp("exports") / "adapter", pick="knee")


def reported(swept: Sweep, number: int) -> float:
    (last,) = (record.last for record in swept.front if record.number == number)
    assert last is not None
    return last.accuracy


def test_the_copy_scores_what_the_report_says_and_gives_the_trained_logits(swept: Sweep, exported: Exported) -> None:
    assert exported.accuracy == exported.checked.trained_score == reported(swept, exported.number)
    assert exported.checked.largest_difference == 0
    assert exported.words == f"it has {exported.score}, as the report says"


def test_the_copy_loads_as_its_model_card_says(exported: Exported) -> None:
    model = AutoPeftModelForSequenceClassification.from_pretrained(exported.folder, num_labels=10)
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)

    with torch.no_grad():
        logits = model(**tokenizer("a large grey mammal with a trunk", return_tensors="pt")).logits
    assert logits.shape == (1, 10)


def test_card_provenance_and_checksums_say_what_the_export_is(swept: Sweep, exported: Exported) -> None:
    card = (exported.folder / "README.md").read_text()
    provenance = json.loads((exported.folder / "provenance.json").read_text())
    front_matter = YAML(typ="safe").load(card.split("---")[1])

    assert f"trial {exported.number}" in card
    assert "95% interval" in card
    assert "| vLLM >= 0.32 | yes |" in card
    assert "| vLLM 0.26 to 0.31 | no | heads are refused up to 0.30 |" in card
    assert front_matter["library_name"] == "peft"
    assert front_matter["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(exported.accuracy)
    assert provenance["data"]["fingerprint_sha256"] == swept.inspection.data_fingerprint
    assert provenance["metrics"]["accuracy"] == exported.accuracy
    assert set(provenance["files_sha256"]) == {"adapter_model.safetensors"}
    for line in (exported.folder / "SHA256SUMS").read_text().splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((exported.folder / name).read_bytes()).hexdigest() == digest


def test_the_program_beside_it_works_as_it_is(swept: Sweep, exported: Exported) -> None:
    done = subprocess.run(
        [sys.executable, str(exported.folder / "inference.py"), "a large grey mammal with a trunk"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() in swept.inspection.labels


def test_the_serving_form_gives_the_same_logits_from_one_rank_and_no_patterns(swept: Sweep, tmp_path: Path) -> None:
    served = export(swept.folder, to=tmp_path / "served", pick="most-accurate", form="serving")

    config = json.loads((served.folder / "adapter_config.json").read_text())
    assert served.checked.largest_difference <= 1e-5
    assert served.accuracy == reported(swept, served.number)
    assert (config["rank_pattern"], config["alpha_pattern"], config["r"]) == ({}, {}, config["lora_alpha"])


def test_a_merged_model_says_by_how_much_it_differs_from_the_quantized_one(swept: Sweep, tmp_path: Path) -> None:
    merged = export(swept.folder, to=tmp_path / "merged", form=Form.MERGED, dtype="bfloat16")

    model = AutoModelForSequenceClassification.from_pretrained(merged.folder)
    assert model.dtype == torch.bfloat16
    assert merged.checked.tolerance is None
    assert 0 < merged.checked.largest_difference < 1
    assert "the trained adapter" in merged.words
    assert not [file for file in merged.folder.iterdir() if file.name.startswith(".")]


def test_a_smaller_rank_tells_what_it_costs(swept: Sweep, tmp_path: Path) -> None:
    cut = export(swept.folder, to=tmp_path / "cut", pick="most-accurate", rank=1)

    config = json.loads((cut.folder / "adapter_config.json").read_text())
    assert max(config["r"], *config["rank_pattern"].values(), 0) == 1
    assert cut.checked.trained_score == reported(swept, cut.number)
    assert (
        f"cut to 1 by SVD, which costs up to {100 * cut.checked.lost_share:.1f}%"
        in (cut.folder / "README.md").read_text()
    )


def test_a_form_that_an_adapter_has_not_is_refused_and_nothing_is_left(swept: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"can't be exported as gguf: needs a base in GGUF"):
        export(swept.folder, to=tmp_path / "gguf", form="gguf")

    assert list(tmp_path.iterdir()) == []


def test_the_whole_front_gets_folders_of_its_own_and_what_is_there_is_kept_unless_told(
    swept: Sweep, tmp_path: Path
) -> None:
    found = list(export_all(swept.folder, to=tmp_path / "front", picks=("front",)))

    assert [one.folder.name for one in found] == [f"trial-{record.number:04d}" for record in swept.front]
    with pytest.raises(FolderError, match="no empty folder"):
        export(swept.folder, to=found[0].folder, pick=f"trial:{found[0].number}")
    again = export(swept.folder, to=found[0].folder, pick=f"trial:{found[0].number}", overwrite=True)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (found[0].folder, again.folder))
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

    with pytest.raises(ExportError, match="broken adapter"):
        export(tampered, to=tmp_path / "adapter")

    assert not (tmp_path / "adapter").exists()


def test_a_disk_that_has_no_room_leaves_nothing_and_keeps_what_was_there(swept: Sweep, tmp_path: Path) -> None:
    to = tmp_path / "merged"
    to.mkdir()
    (to / "provenance.json").write_text("kept")
    command = f"ulimit -f 40; exec {sys.executable} -m tuner export {swept.folder} --to {to} --as merged --overwrite"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)  # no file above 40 KiB

    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert [(file.name, file.read_text()) for file in to.iterdir()] == [("provenance.json", "kept")]
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]


def test_an_export_overwrites_nothing(swept: Sweep, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()

    with pytest.raises(FolderError, match="no empty folder"):
        export(swept.folder, to=tmp_path)


def test_a_trial_off_the_front_is_refused_with_those_that_are_on_it(swept: Sweep, tmp_path: Path) -> None:
    with pytest.raises(PickError, match="only the front's adapters are kept"):
        export(swept.folder, to=tmp_path / "adapter", pick="trial:77")
