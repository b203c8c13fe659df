"""A GGUF file becomes a folder that transformers loads, quantizes and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.commands import call
from tests.gguf_bases import WORDS, write_gguf
from tests.models import causal_changes, tiny_llama_config
from tests.sweeps import small_config
from tuner.config import ModelConfig
from tuner.worker.gguf import converted
from tuner.worker.inspection import inspect_model
from tuner.worker.merging import merge
from tuner.worker.model import load_base, load_tokenizer


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file of a random Llama, with a cache of its own."""
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(vocab_size=len(WORDS)))
    write_gguf(model, tmp_path / "tiny.gguf")
    model.save_pretrained(tmp_path / "original")
    return tmp_path / "tiny.gguf"


def test_the_converted_model_gives_the_original_logits(file: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(file.parent / "original", dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(converted(file), dtype=torch.float32)
    ids_BT = torch.arange(3, 20)[None]

    with torch.no_grad():
        logits, expected = found(ids_BT).logits, original(ids_BT).logits

    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)  # it is kept in bfloat16


def test_a_file_is_converted_once(file: Path) -> None:
    first = converted(file)
    written_ns = (first / "config.json").stat().st_mtime_ns

    assert converted(file) == first
    assert (first / "config.json").stat().st_mtime_ns == written_ns


def test_a_gguf_base_is_quantized_like_any_other(file: Path) -> None:
    base = load_base(ModelConfig(name=str(file)), "causal-lm", (), torch.device("cpu"))

    layers = [module for name, module in base.model.named_modules() if name.endswith("_proj")]
    assert layers
    assert all(isinstance(layer, Linear4bit) for layer in layers)
    assert load_tokenizer(ModelConfig(name=str(file))).eos_token_id == 2


def test_an_adapter_is_merged_into_a_gguf_base(file: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path, {**causal_changes(tmp_path), "model.name": str(file)})
    base = AutoModelForCausalLM.from_pretrained(converted(file), dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    ids_BT = torch.arange(3, 20)[None]

    merge(config, tmp_path / "adapter", tmp_path / "merged", torch.float32)

    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids_BT).logits, wrapped(ids_BT).logits, rtol=1e-5, atol=1e-5)
    assert (merged.dtype, merged.config.vocab_size) == (torch.float32, len(WORDS))


def test_recommend_takes_a_gguf_file(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = call(
        capsys, monkeypatch, "recommend", "--model", str(file), "--task", "generation", "--examples", "5000"
    )

    facts = inspect_model(ModelConfig(name=str(file)), "causal-lm")
    assert (code, err.count("error")) == (0, 0)
    assert f"llama, {facts.num_params:,} parameters, 21 linear layers" in out


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [("none.gguf", "causal-lm", "no such GGUF file"), ("tiny.gguf", "classification", "is taken for causal-lm only")],
)
def test_a_gguf_file_that_cannot_be_used_is_refused(file: Path, name: str, task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect_model(ModelConfig(name=str(file.with_name(name))), task)
