"""Random bases as GGUF files in float32, written apart from what the package writes: its answers are held against these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""transformers' names in a block -> GGUF's."""
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
"""The same outside the blocks."""
WORDS = ["<pad>", "<s>", "</s>", *(chr(code) for code in range(33, 94)), "AB"]


def build_base(architecture: str, **changes: Any) -> PreTrainedModel:
    """Always the same weights, large enough for a wrong row to show."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    config = AutoConfig.for_model(architecture, **sizes | changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def linears_of(model: PreTrainedModel) -> list[str]:
    """Every layer that can be adapted, the output too."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def adapt(model: PreTrainedModel, folder: Path, **lora: Any) -> PeftModel:
    """Put an adapter that does something on a model, and save it as PEFT does."""
    torch.manual_seed(1)
    own: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": linears_of(model)}
    config = LoraConfig(**own | lora)
    tuned: PeftModel = get_peft_model(model, config).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    # what PEFT does by itself for such targets, with a warning
    is_outer = bool({"lm_head", "embed_tokens"} & set(config.target_modules or ()))
    tuned.save_pretrained(str(folder), save_embedding_layers=is_outer)
    return tuned


def write_gguf(model: PreTrainedModel, file: Path) -> Path:
    """A Llama, Qwen2 or Qwen3 with a vocabulary of `WORDS`."""
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_words(writer)
    for name, tensor in _tensors_of(model):
        writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_words(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(WORDS) - 3))
    writer.add_token_merges(["A B"])
    for add, index in ((writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)):
        add(index)


def _tensors_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    config: Any = model.config
    num_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = []
    for full, tensor in model.state_dict().items():
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer, _, kind = full.rpartition(".")
        name = OUTER.get(layer) or _in_block(layer)
        heads = num_heads.get(name.rpartition(".")[2]) if config.model_type == "llama" else None
        found.append((f"{name}.{kind}", _interleaved(tensor, heads) if heads else tensor))
    return found


def _in_block(layer: str) -> str:
    _, _, block, inner = layer.split(".", 3)
    return f"blk.{block}.{NAMES[inner]}"


def _interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a query or key as llama.cpp orders them for its rotary embedding."""
    rows, columns = weight.shape
    return weight.view(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
