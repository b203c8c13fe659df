"""A tiny chat model with random weights, on disk as a user's would be: what causal-lm tests train in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.sweeps import DOCUMENT, document

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Appends only; writes a line break after each message's end, as ChatML does."""
SPECIAL = ("<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>", "<unk>")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,:=()\n?!"
ALL_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a letter."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *LETTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[3:6]),
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama_config(**changes: object) -> LlamaConfig:
    """Three blocks, one for each third of the depth, wide enough for blocks of 64 quantized weights."""
    values: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(LETTERS),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**values | changes)


def write_tiny_llama(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Model and tokenizer in `folder/tiny-llama`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config())
    model.save_pretrained(folder / "tiny-llama")
    tiny_tokenizer(template).save_pretrained(folder / "tiny-llama")
    return folder / "tiny-llama"


def write_pairs(folder: Path, num: int = 60) -> Path:
    """Prompts with completions that a tiny model can learn: the letter after the one given."""
    letters = LETTERS[:26]
    rows = [
        {"prompt": f"{letters[index % 26]} {index}", "completion": letters[(index + 1) % 26]} for index in range(num)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def causal_changes(folder: Path) -> dict[str, Any]:
    """What makes a small sweep one of a causal language model, by dotted key."""
    return {
        "data": {"path": str(write_pairs(folder)), "max_length": 32, "validation": 16, "test": 4},
        "training": {**DOCUMENT["training"], "task": "causal-lm", "eval_batch_size": 8},
    }


def causal_document(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A small causal-lm sweep on the tiny model, changed by dotted key."""
    space = {
        "r": {"choices": [1, 4]},
        "learning_rate": {"low": 0.001, "high": 0.02, "log": True},
        "target_modules": {"choices": ["attention", "all-linear"]},
    }
    own = {
        "model.name": str(write_tiny_llama(folder)),
        "search.space": space,
    }
    return document(causal_changes(folder) | own | (changes or {}))
