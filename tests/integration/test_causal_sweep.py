"""A sweep of a chat model from its file to an exported adapter: locally, through Ray, with baselines and starting points."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from ruamel.yaml import YAML
from transformers import AutoTokenizer

from tests.commands import call
from tests.models import causal_document
from tuner import sweep
from tuner.exporting import export
from tuner.trial import Baseline, TrialRecord, TrialState

CHANGES: dict[str, Any] = {
    "search.start": "recommended",
    "search.space": {
        "r": {"choices": [1, 4, 16]},
        "learning_rate": {"low": 0.001, "high": 0.02, "log": True},
        "use_rslora": {"choices": [False, True]},
        "target_modules": {"choices": ["attention", "all-linear"]},
        "rank_pattern": {"mlp": {"choices": [0, 2]}, "q_proj@last": {"choices": [1, 8]}},
    },
    "baselines": {"zero_shot": True, "full": [0.001], "unquantized_lora": True},
    "pruning.method": "none",
    "objectives.accuracy": "perplexity",
}


def run(folder: Path, backend: str) -> sweep.Sweep:
    folder.mkdir(exist_ok=True)
    file = folder / "causal.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(causal_document(folder, CHANGES), stream)
    return sweep.run(file, out=folder / "out", backend=backend)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> sweep.Sweep:
    """Four trials and three baselines, one after another."""
    return run(tmp_path_factory.mktemp("causal"), "local")


def test_baselines_are_measured_beside_the_trials_and_stand_on_no_front(swept: sweep.Sweep) -> None:
    beside = {record.spec.baseline: record for record in swept.records if record.spec.baseline}

    assert set(beside) == {Baseline.ZERO_SHOT, Baseline.FULL, Baseline.UNQUANTIZED_LORA}
    assert {record.state for record in swept.records} == {TrialState.COMPLETE}
    assert len(swept.trials) == 4
    assert all(record.spec.baseline is None for record in swept.front)


def test_the_first_trial_is_the_recommended_point(swept: sweep.Sweep) -> None:
    params = dict(swept.records[0].spec.params)

    assert (params["target_modules"], params["r"], params["use_rslora"]) == ("all-linear", 16, False)
    unquantized = next(record for record in swept.records if record.spec.baseline is Baseline.UNQUANTIZED_LORA)
    assert unquantized.spec.lora == swept.records[0].spec.lora


def test_the_tables_name_the_metric_and_mark_the_baselines(swept: sweep.Sweep) -> None:
    with (swept.folder / "trials.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))

    assert all(float(row["perplexity"]) >= 1 for row in rows)
    assert {row["baseline"] for row in rows} == {"", *Baseline} - {Baseline.HEAD_ONLY}
    assert {"exact_match", "token_accuracy"} <= rows[0].keys()


def test_an_exported_adapter_loads_on_its_base_and_writes(swept: sweep.Sweep, tmp_path: Path) -> None:
    exported = export(swept.folder, to=tmp_path / "adapter", pick="most-accurate")

    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    prompt: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "h 7"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        written = model.generate(**prompt, max_new_tokens=2, do_sample=False)

    assert written.shape[1] > prompt["input_ids"].shape[1]
    assert json.loads((tmp_path / "adapter" / "provenance.json").read_text())["trial"]["number"] == exported.number
    assert "perplexity" in (tmp_path / "adapter" / "README.md").read_text()


def without_clock(records: tuple[TrialRecord, ...]) -> list[TrialRecord]:
    return [
        dataclasses.replace(record, curve=tuple(dataclasses.replace(m, train_s=0.0, span=None) for m in record.curve))
        for record in records
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_what_the_local_backend_gives(swept: sweep.Sweep, tmp_path: Path) -> None:
    # by seed and number alone: the sampler of the last two trials has seen others' results in another order
    placed = run(tmp_path / "ray", "ray")

    assert without_clock(placed.records) == without_clock(swept.records)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "poetry", "--examples", "9"), "--task must be one of classification, summarization"),
        (("--task", "generation", "--examples", "0"), "--examples must be at least 1, got 0"),
        (("--task", "generation", "--examples", "9"), "no such model folder"),
    ],
)
def test_recommend_refuses_what_it_cannot_answer(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(capsys, monkeypatch, "recommend", "--model", "./nowhere", *words)

    assert (code, out) == (2, "")
    assert message in err
