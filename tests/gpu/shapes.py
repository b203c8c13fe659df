"""Models that are built from a configuration on the spot: random weights are enough for memory and speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from tests.models import LETTERS, tiny_llama_config, tiny_tokenizer

WEIGHTS = "model.safetensors"
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "llama-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
"""Llama-shaped: as Llama-3.2-1B and as Mistral-7B-v0.3."""


def build(folder: Path, shape: str) -> Path:
    """A model of a shape, with a tokenizer of letters."""
    place = folder / shape
    if not place.exists():
        longest = {"max_position_embeddings": 4096}
        write(place, tiny_llama_config(**longest, **SHAPES[shape]))
        tiny_tokenizer().save_pretrained(place)
    return place


def fill(folder: Path) -> Path:
    """Random weights for a folder that has configuration and tokenizer alone."""
    if not (folder / WEIGHTS).exists():
        write(folder, AutoConfig.from_pretrained(folder))
    return folder


def write(folder: Path, config: PretrainedConfig | LlamaConfig) -> None:
    """Weights of the usual size, drawn where that is fast."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = AutoModelForCausalLM if "ForCausalLM" in str(config.architectures or "LlamaForCausalLM") else AutoModel
    with torch.device(device):
        model = kind.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()


def write_long_pairs(folder: Path, num: int, tokens: int, *, is_ragged: bool) -> Path:
    """Prompts of so many letters, some less where they are to differ, each with an answer of a third of that."""
    file = folder / f"pairs-{tokens}-{is_ragged}.jsonl"
    lengths = [tokens - (index * 7 % 23 if is_ragged else 0) for index in range(num)]
    rows = [
        {"prompt": _letters(index, length), "completion": _letters(index + 7, tokens // 3)}
        for index, length in enumerate(lengths)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def _letters(start: int, num: int) -> str:
    return "".join(LETTERS[(start * 31 + place * (start % 5 + 1)) % 26] for place in range(num))
