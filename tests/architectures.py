"""Tiny random models of the families that people use, with the names that their code gives to its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from transformers import PretrainedConfig, PreTrainedModel

from tuner.config import ModelConfig
from tuner.worker.architecture import AUTO_CLASSES
from tuner.worker.model import BaseModel

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""Of Llama-3.1-8B and Mistral-7B, as published; vocabularies aside."""
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 1}
QKVO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
BERT_MLP = ("intermediate.dense", "output.dense")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture."""

    config: PretrainedConfig
    attention: tuple[str, ...]
    """Linear layers of a block's attention, by their names after the block's number."""
    mlp: tuple[str, ...]
    heads: tuple[str, ...] = ("score",)
    """What classification adds."""
    is_causal: bool = True
    """Whether transformers has a causal language model of it that is used as one."""


def _dims(**own: Any) -> dict[str, Any]:
    """Sizes for families with names of their own."""
    return {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **own}


FAMILIES: dict[str, Family] = {
    "llama": Family(config=hf.LlamaConfig(**GROUPED), attention=QKVO, mlp=GATED),
    "mistral": Family(config=hf.MistralConfig(**GROUPED), attention=QKVO, mlp=GATED),
    "qwen2": Family(config=hf.Qwen2Config(**GROUPED), attention=QKVO, mlp=GATED),
    "qwen3": Family(config=hf.Qwen3Config(**GROUPED, head_dim=8), attention=QKVO, mlp=GATED),
    "gemma2": Family(config=hf.Gemma2Config(**GROUPED, head_dim=8), attention=QKVO, mlp=GATED),
    "gemma3": Family(config=hf.Gemma3TextConfig(**GROUPED, head_dim=8), attention=QKVO, mlp=GATED),
    "phi": Family(config=hf.PhiConfig(**SIZES), attention=(*QKVO[:3], "self_attn.dense"), mlp=("mlp.fc1", "mlp.fc2")),
    "phi3": Family(
        config=hf.Phi3Config(**SIZES),
        attention=("self_attn.qkv_proj", "self_attn.o_proj"),
        mlp=("mlp.gate_up_proj", "mlp.down_proj"),
    ),
    "gpt2": Family(
        config=hf.GPT2Config(**_dims(n_embd=16, n_layer=3, n_head=2, n_positions=64)),
        attention=("attn.c_attn", "attn.c_proj"),
        mlp=("mlp.c_fc", "mlp.c_proj"),
    ),
    "gpt_neox": Family(
        config=hf.GPTNeoXConfig(**SIZES),
        attention=("attention.query_key_value", "attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "opt": Family(
        config=hf.OPTConfig(
            **_dims(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16)
        ),
        attention=(*QKVO[:3], "self_attn.out_proj"),
        mlp=("fc1", "fc2"),
    ),
    "falcon": Family(
        config=hf.FalconConfig(**_dims(hidden_size=16, num_hidden_layers=3, num_attention_heads=2)),
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "bloom": Family(
        config=hf.BloomConfig(**_dims(hidden_size=16, n_layer=3, n_head=2)),
        attention=("self_attention.query_key_value", "self_attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "bert": Family(
        config=hf.BertConfig(**SIZES), attention=BERT_ATTENTION, mlp=BERT_MLP, heads=("classifier",), is_causal=False
    ),
    "roberta": Family(
        config=hf.RobertaConfig(**SIZES), attention=BERT_ATTENTION, mlp=BERT_MLP, heads=("classifier",), is_causal=False
    ),
    "electra": Family(
        config=hf.ElectraConfig(**SIZES, embedding_size=8),
        attention=BERT_ATTENTION,
        mlp=BERT_MLP,
        heads=("classifier",),
        is_causal=False,
    ),
    "distilbert": Family(
        config=hf.DistilBertConfig(**_dims(dim=16, n_layers=3, n_heads=2, hidden_dim=24)),
        attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        mlp=("ffn.lin1", "ffn.lin2"),
        heads=("pre_classifier", "classifier"),
        is_causal=False,
    ),
    "modernbert": Family(
        config=hf.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2),
        attention=("attn.Wqkv", "attn.Wo"),
        mlp=("mlp.Wi", "mlp.Wo"),
        heads=("head", "classifier"),
        is_causal=False,
    ),
    "deberta": Family(
        config=hf.DebertaConfig(**SIZES),
        attention=("attention.self.in_proj", "attention.output.dense"),
        mlp=BERT_MLP,
        heads=("pooler", "classifier"),
        is_causal=False,
    ),
    "deberta-v2": Family(
        config=hf.DebertaV2Config(**SIZES),
        attention=(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
        ),
        mlp=BERT_MLP,
        heads=("pooler", "classifier"),
        is_causal=False,
    ),
    "t5": Family(
        config=hf.T5Config(**_dims(d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, decoder_start_token_id=0)),
        attention=(
            *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
            *(f"layer.1.EncDecAttention.{name}" for name in "qkvo"),
        ),
        mlp=(*(f"layer.{place}.DenseReluDense.{name}" for place in (1, 2) for name in ("wi", "wo")),),
        heads=("classification_head",),
        is_causal=False,
    ),
}
"""model_type -> family. transformers' sizes are small and its weights random."""


def task_of(family: Family) -> str:
    """What the family is mostly used for."""
    return "causal-lm" if family.is_causal else "classification"


def build(family: Family, task: str) -> PreTrainedModel:
    """A model with random weights, always the same."""
    torch.manual_seed(0)
    config = type(family.config).from_dict({**family.config.to_dict(), "use_cache": False})
    if task == "classification":
        config.num_labels = 3
    model: PreTrainedModel = AUTO_CLASSES[task].from_config(config)  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False)
    return model


def build_base(family: Family, task: str) -> BaseModel:
    """A base on the CPU, without a tokenizer."""
    return BaseModel(
        model=build(family, task),
        tokenizer=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
        config=ModelConfig(name="tiny", quantization="none"),
    )
