"""A GGUF file becomes a folder that transformers loads, quantizes and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.commands import call
from tests.models import causal_changes, tiny_llama_config
from tests.sweeps import small_config
from tuner.config import ModelConfig
from tuner.worker.gguf import converted
from tuner.worker.inspection import inspect_model
from tuner.worker.merging import merge
from tuner.worker.model import load_base, load_tokenizer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""transformers' names in a block -> GGUF's."""
WORDS = ["<pad>", "<s>", "</s>", *(chr(code) for code in range(33, 94)), "AB"]


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key as llama.cpp orders them for its rotary embedding."""
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model: LlamaForCausalLM, file: Path) -> None:
    config: Any = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["A B"])
    for add, index in ((writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(index)
    for name, tensor in tensors_of(model):
        writer.add_tensor(name, tensor.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: LlamaForCausalLM) -> list[tuple[str, torch.Tensor]]:
    config: Any = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = [("token_embd.weight", model.model.embed_tokens.weight), ("output.weight", model.lm_head.weight)]
    found.append(("output_norm.weight", model.model.norm.weight))
    for block in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            weight = model.get_parameter(f"model.layers.{block}.{theirs}.weight")
            weight = interleaved(weight, heads[ours]) if ours in heads else weight  # type: ignore[assignment]
            found.append((f"blk.{block}.{ours}.weight", weight))
    return found


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

    kinds = {type(module).__name__ for name, module in base.model.named_modules() if name.endswith("_proj")}
    assert kinds == {"Linear4bit"}
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
