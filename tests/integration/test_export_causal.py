"""Exports of a causal language model on a base in GGUF: the forms, from a sweep to llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from transformers import LlamaForCausalLM

from tests.gguf_bases import WORDS, write_gguf
from tests.llama_cpp import ask
from tests.models import causal_document, tiny_llama_config
from tuner import sweep
from tuner.errors import ExportError, FolderError
from tuner.exporting import Exported, export
from tuner.exporting.bench import bench, bench_text
from tuner.forms import Form
from tuner.sweep import Sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of one trial with ranks of its own on a random Llama in GGUF."""
    folder = tmp_path_factory.mktemp("gguf")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(vocab_size=len(WORDS)))
    write_gguf(model, folder / "tiny.gguf")
    space = {"r": 4, "learning_rate": 0.02, "target_modules": "all-linear", "rank_pattern": {"mlp": 2}}
    changes = {
        "model.name": str(folder / "tiny.gguf"),
        "model.quantization": "none",
        "model.compute_dtype": "float32",  # merged or not, the same to float noise
        "search.space": space,
        "search.num_trials": 1,
        "data.test": 0,
    }
    with (folder / "sweep.yaml").open("w") as file:
        YAML(typ="safe").dump(causal_document(folder, changes), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_CACHE", str(folder / "cache"))
        return sweep.run(folder / "sweep.yaml", out=folder / "out", backend="local")


@pytest.fixture(autouse=True)
def _cache(swept: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(swept.folder.parent / "cache"))


def exported(swept: Sweep, folder: Path, form: Form) -> Exported:
    return export(swept.folder, to=folder / form, form=form)


def test_an_adapter_for_llama_cpp_is_read_by_it_and_does_something(swept: Sweep, tmp_path: Path) -> None:
    found = exported(swept, tmp_path, Form.GGUF)

    base, adapter = Path(swept.config.model.name), found.folder / "adapter.gguf"
    answers = ask(base, adapter, [[3, 4, 5, 6]], [0.0, 1.0], num_seen=len(WORDS))
    on, off = answers[1.0][0].log_probs[0], answers[0.0][0].log_probs[0]
    assert max(abs(on[token] - off[token]) for token in on) > 1e-3
    assert found.checked.score == found.checked.trained_score
    assert found.checked.largest_difference <= 1e-5
    card = (found.folder / "README.md").read_text()
    assert "library_name: llama.cpp" in card
    assert "llama.cpp itself was not run here" in card
    assert sorted(file.name for file in found.folder.iterdir() if file.name.startswith(".")) == []
    assert not (found.folder / "inference.py").exists()


def test_the_serving_form_of_a_causal_model_is_whole_and_exact(swept: Sweep, tmp_path: Path) -> None:
    found = exported(swept, tmp_path, Form.SERVING)

    config = json.loads((found.folder / "adapter_config.json").read_text())
    card = (found.folder / "README.md").read_text()
    assert found.checked.largest_difference <= 1e-5
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (8, 8, {})
    for engine in ("PEFT", "vLLM >= 0.32", "vLLM 0.26 to 0.31", "SGLang 0.5.23", "LoRAX", "TGI 3.3", "TensorRT-LLM"):
        assert f"| {engine} | yes |" in card


def test_as_trained_it_is_wrong_in_engines_that_read_one_scale(swept: Sweep, tmp_path: Path) -> None:
    card = (exported(swept, tmp_path, Form.PEFT).folder / "README.md").read_text()

    assert "| vLLM >= 0.32 | yes |" in card
    assert "| TensorRT-LLM | loads, and answers wrongly | scales " in card
    assert "| SGLang 0.5.23 | no | layers that it merges must have one rank |" in card


def test_a_merged_causal_model_writes_as_the_adapter_does(swept: Sweep, tmp_path: Path) -> None:
    found = exported(swept, tmp_path, Form.MERGED)
    done = subprocess.run(
        [sys.executable, str(found.folder / "inference.py"), "AB"], capture_output=True, text=True, check=True
    )

    assert found.checked.largest_difference <= 1e-4  # nothing was quantized
    assert done.stdout


def test_a_bench_times_base_adapter_and_merged_and_keeps_its_figures(swept: Sweep, tmp_path: Path) -> None:
    folder = exported(swept, tmp_path, Form.SERVING).folder

    speeds = bench(folder, num_new=8, num_repeats=3)

    assert [speed.variant for speed in speeds] == ["base", "base + adapter", "merged"]
    assert all(speed.least_tokens_per_s <= speed.tokens_per_s <= speed.most_tokens_per_s for speed in speeds)
    assert all(speed.latency_s > 0 and speed.num_repeats == 3 for speed in speeds)
    assert speeds[1].weights_bytes > speeds[0].weights_bytes == speeds[2].weights_bytes
    assert [one["variant"] for one in json.loads((folder / "bench.json").read_text())] == [
        one.variant for one in speeds
    ]
    assert "x 1.00" in bench_text(speeds).splitlines()[0]


def test_a_bench_of_a_merged_model_times_it_alone(swept: Sweep, tmp_path: Path) -> None:
    (speed,) = bench(exported(swept, tmp_path, Form.MERGED).folder, num_new=4, num_repeats=2)

    assert speed.variant == "merged"


def test_what_can_not_be_timed_says_why(swept: Sweep, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="llama-bench"):
        bench(exported(swept, tmp_path, Form.GGUF).folder)
    with pytest.raises(FolderError, match="holds no export"):
        bench(tmp_path)
