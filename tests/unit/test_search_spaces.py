"""The sweep files that come with tuner: each is whole, and fits the model that it names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import transformers as hf
from transformers import PretrainedConfig

from tests.architectures import LLAMA_8B
from tests.builders import make_inspection, make_lora
from tests.commands import call
from tests.sweeps import ROOT
from tuner.layers import ModelFacts, count_trainable
from tuner.recommend import starting_points
from tuner.space import space_problems
from tuner.sweep_file import load_sweep_file
from tuner.worker.architecture import facts_of, skeleton

FILES = sorted((ROOT / "search_spaces").glob("*.yaml"))
GPU_FILES = [file for file in FILES if "7b" in file.name or "8b" in file.name]

SHAPES: dict[str, tuple[PretrainedConfig, int, int]] = {
    "llama-3.1-8b": (hf.LlamaConfig(**LLAMA_8B, vocab_size=128256), 8_030_261_248, 41_943_040),
    "mistral-7b": (hf.MistralConfig(**LLAMA_8B, vocab_size=32768), 7_248_023_552, 41_943_040),
    "qwen2.5-7b": (
        hf.Qwen2Config(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152064,
        ),
        7_615_616_512,
        40_370_176,
    ),
}
"""Start of the file's name -> (configuration, its parameters, trainable ones at rank 16 on all linear layers)."""


def model_of(file: Path) -> str:
    return next(name for name in SHAPES if file.name.startswith(name))


def facts(name: str) -> ModelFacts:
    return facts_of(skeleton(SHAPES[name][0], "causal-lm"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_first_line_is_the_command_that_runs_the_file(file: Path) -> None:
    assert file.read_text(encoding="utf-8").splitlines()[0] == f"# tuner run search_spaces/{file.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_validate_finds_nothing_wrong(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(capsys, monkeypatch, "validate", str(file))

    assert (code, err) == (0, "")
    assert "is a sweep of" in out


@pytest.mark.parametrize("name", SHAPES)
def test_the_models_have_their_published_sizes(name: str) -> None:
    _, num_params, num_trainable = SHAPES[name]
    found = facts(name)

    assert found.num_params == num_params
    assert count_trainable(found, make_lora(r=16, target_modules=("all-linear",))) == num_trainable


@pytest.mark.parametrize("file", GPU_FILES, ids=lambda file: file.stem)
def test_a_space_means_something_on_its_model_and_holds_a_recommended_point(file: Path) -> None:
    config, model = load_sweep_file(file), facts(model_of(file))

    assert list(space_problems(config.search.space, model)) == []
    assert starting_points(config, make_inspection(model=model, num_train=7000))


def test_there_is_a_uniform_and_a_per_module_space_for_each_large_model() -> None:
    expected = {f"{name}-{kind}" for name in SHAPES for kind in ("uniform", "per-module")}

    assert {file.stem for file in GPU_FILES} == expected


def test_the_tool_calls_are_what_their_columns_say() -> None:
    with gzip.open(ROOT / "data" / "home_intents.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]

    assert len(rows) == 5551
    assert all(row["call"].startswith("Hass") and row["call"].endswith(")") and row["utterance"] for row in rows)
