"""Mistakes that only a look at model, data and machine can find: one message, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import call
from tests.sweeps import MODEL, write_sweep
from tuner import sweep
from tuner.folder import SweepFolder

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
LINEARS = "attention.self.query, attention.self.key, attention.self.value, attention.output.dense, intermediate.dense"


def rows(folder: Path, *labels: str, text: str = "a text") -> str:
    file = folder / "rows.jsonl"
    lines = (json.dumps({"text": f"{text} {index}", "label": label}) for index, label in enumerate(labels))
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def part_of_model(folder: Path, *names: str) -> str:
    part = folder / "model"
    part.mkdir()
    for name in names:
        shutil.copy(MODEL / name, part)
    return str(part)


def broken_config(folder: Path) -> str:
    part = Path(part_of_model(folder, "model.safetensors"))
    (part / "config.json").write_text('{"model_type": "nonesuch"}')
    return str(part)


Changes = Callable[[Path], dict[str, Any]]

CASES: dict[str, tuple[Changes, str]] = {
    "no model folder": (lambda _: {"model.name": "./nowhere"}, "model.name: no such model folder"),
    "model without config": (lambda tmp: {"model.name": part_of_model(tmp)}, "model.name: no config.json in"),
    "model without weights": (
        lambda tmp: {"model.name": part_of_model(tmp, "config.json")},
        "model.name: no weights as safetensors in",
    ),
    "model of unknown type": (lambda tmp: {"model.name": broken_config(tmp)}, "model.name: can't be loaded"),
    "model without tokenizer": (
        lambda tmp: {"model.name": part_of_model(tmp, "config.json", "model.safetensors")},
        "model.name: no tokenizer in",
    ),
    "longer than the model's positions": (
        lambda _: {"data.max_length": 600},
        "data.max_length: must be at most 512, the positions that the model has, got 600",
    ),
    "hub that can't be reached": (lambda _: {"model.name": "org/nowhere"}, "model.name: can't be loaded"),
    "unknown module": (
        lambda _: {"search.space.target_modules": ["q_proj"], "search.space.rank_pattern": None},
        f"search.space.target_modules: no linear layer is named q_proj; the model has: {LINEARS}, output.dense",
    ),
    "module outside of the blocks": (
        lambda _: {"search.space.target_modules": ["pooler.dense"], "search.space.rank_pattern": None},
        "no linear layer is named pooler.dense",
    ),
    "no data file": (lambda _: {"data.path": "/nowhere.jsonl"}, "data.path: no such file: /nowhere.jsonl"),
    "empty data": (lambda tmp: {"data.path": rows(tmp)}, "data.path: holds no examples"),
    "data of another kind": (lambda _: {"data.path": __file__}, "data.path: must end in .jsonl, .json, .csv"),
    "no such label column": (lambda _: {"data.label": "topic"}, "no column 'topic'"),
    "no such text column": (lambda _: {"data.text": "gloss"}, "it has: text, label"),
    "one class only": (
        lambda tmp: {"data.path": rows(tmp, *["a"] * 80)},
        "data.label: column 'label' holds one class only, 'a'",
    ),
    "too few examples": (
        lambda tmp: {"data.path": rows(tmp, "a", "b")},
        "data.validation: leaves nothing to train on: 40 for validation and 10 for test of 2 different texts",
    ),
    "empty cells": (lambda tmp: {"data.path": rows(tmp, "a", " ", "b")}, "'label' is empty in 1 rows, first in row 2"),
    "a GPU where there is none": (lambda _: {"resources.gpus_per_trial": 1}, "sees no CUDA device"),
}


@pytest.mark.parametrize(("changes", "message"), CASES.values(), ids=CASES)
def test_what_no_trial_could_work_with_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: Changes, message: str
) -> None:
    file, out = write_sweep(tmp_path, changes(tmp_path)), tmp_path / "reports" / "out"

    code, _, err = call(capsys, monkeypatch, "run", str(file), "--out", str(out))

    assert (code, "Traceback" in err) == (2, False)
    assert re.match(rf"error: {re.escape(str(file))}:\d+: [\w.]+: ", err)
    assert message in err
    assert not out.parent.exists()


def test_several_mistakes_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path, {"model.name": "./nowhere", "data.label": "topic", "resources.gpus_per_trial": 1})

    _, _, err = call(capsys, monkeypatch, "run", str(file), "--out", str(tmp_path / "out"))

    keys = [line.removeprefix("error: ").split(": ")[1] for line in err.splitlines()]
    assert keys == ["resources.gpus_per_trial", "model.name", "data.label"]


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """The folder of a finished sweep."""
    return sweep.run(write_sweep(tmp_path), out=tmp_path / "swept", backend="local", worker=SYNTHETIC).folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resume", "{tmp}"), "holds no sweep: no sweep.yaml and no study.journal in it"),
        (("resume", "{tmp}/nowhere"), "holds no sweep"),
        (("report", "{tmp}"), "holds no sweep"),
        (("export", "{tmp}", "--to", "{tmp}/x"), "holds no sweep"),
        (("export", "{swept}", "--to", "{tmp}/x", "--pick", "best"), "pick must be knee, most-accurate, trial:N, "),
        (("export", "{swept}", "--to", "{tmp}/x", "--pick", "trial:99"), "trial 99 is not on the front"),
        (("export", "{swept}", "--to", "{swept}"), "is not in"),
        (("run", "{tmp}/sweep-under-test.yaml", "--out", "{swept}"), "tuner resume"),
        (("run", "{tmp}/sweep-under-test.yaml", "--out", "/proc/sweep"), "/proc/sweep can't be written"),
        (("run", "{tmp}/sweep-under-test.yaml", "--out", "{tmp}"), "no empty folder"),
        (("run", "{tmp}/nowhere.yaml"), "nowhere.yaml: can't be read: No such file or directory"),
        (("run", "{tmp}/sweep-under-test.yaml", "--backend", "slurm"), "resources.backend: must be 'ray' or 'local'"),
    ],
)
def test_a_wrong_folder_or_choice_is_one_message(
    swept: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    before = sorted(tmp_path.rglob("*"))

    code, _, err = call(capsys, monkeypatch, *(word.format(tmp=tmp_path, swept=swept) for word in words))

    assert (code, "Traceback" in err) == (2, False)
    assert message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_that_another_process_works_on_is_left_alone(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SweepFolder(swept).locked():
        code, _, err = call(capsys, monkeypatch, "resume", str(swept))

    assert (code, "in use by another tuner process" in err) == (2, True)


def test_data_that_changed_since_the_sweep_began_is_refused_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rows(tmp_path, *"ab" * 40)
    file = write_sweep(tmp_path, {"data.path": data})
    out = sweep.run(file, out=tmp_path / "out", backend="local", worker=SYNTHETIC).folder

    code, _, err = call(capsys, monkeypatch, "resume", str(out))

    assert (code, "is not what this sweep began with" in err) == (2, True)
