"""The predictor against peaks that others measured on a Tesla T4 (fitcheck-llm 0.3.1, MIT; tests/data/t4.json)."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from tests.builders import make_lora, make_workload
from tuner.gpus import GPUS
from tuner.prediction import Prediction, Verdict
from tuner.vram.predict import Case, predict
from tuner.workload import Logits, Workload

MIB = 2**20
T4 = GPUS["T4-16GB"]
ARCHIVE = json.loads((Path(__file__).parents[1] / "data" / "t4.json").read_text(encoding="utf-8"))
KINDS = {"Qwen": Qwen2Config, "Mistral": functools.partial(MistralConfig, sliding_window=None)}

Run = dict[str, Any]


def config_of(model: dict[str, Any]) -> PretrainedConfig:
    build = next((kind for name, kind in KINDS.items() if name in model["name"]), LlamaConfig)
    keys = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "head_dim", "tie_word_embeddings")
    return build(  # type: ignore[operator, no-any-return]
        **{key: model[key] for key in keys},
        num_hidden_layers=model["num_layers"],
        num_key_value_heads=model["num_kv_heads"],
        max_position_embeddings=8192,
    )


def workload_of(run: Run) -> Workload:
    """A plain loop: PEFT's preparation, the model's own loss, its output kept, nothing given back after loading."""
    return make_workload(
        batch_size=run["batch_size"],
        tokens=run["seq_len"],
        dtype="float16",
        quantization=run["quantization"],
        upcast=run["quantization"] == "nf4",
        gradient_checkpointing=True,
        attention="eager" if run["kernel"] == "eager" else "sdpa",
        logits=Logits.KEPT,
        is_cache_emptied=False,
    )


@functools.cache
def predicted(model: str, run: str) -> Prediction:
    asked = json.loads(run)
    lora = make_lora(r=asked["lora_rank"], target_modules=tuple(asked["lora_targets"]))
    config = config_of(json.loads(model))
    return predict(Case(config=config, task="causal-lm", lora=lora, baseline=None, workload=workload_of(asked), gpu=T4))


def answer(model: dict[str, Any], run: Run) -> Prediction:
    return predicted(json.dumps(model), json.dumps(run))


@functools.cache
def errors() -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Relative errors of all rows: peak allocated and peak reserved."""
    found: dict[str, list[float]] = {"allocated": [], "reserved": []}
    for row in ARCHIVE["rows"]:
        prediction = answer(row["model"], row["run"])
        for name, values in found.items():
            measured = row["measured"][f"peak_{name}_mib"] * MIB
            values.append(getattr(prediction, f"{name}_bytes") / measured - 1)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.slow
def test_peak_allocated_is_within_three_percent_on_every_row_and_one_on_average() -> None:
    off = np.abs(errors()["allocated"])

    assert len(off) == 33
    assert off.max() < 0.03
    assert off.mean() < 0.01


@pytest.mark.slow
def test_peak_reserved_is_within_five_percent_on_average_and_twenty_at_worst() -> None:
    off = np.abs(errors()["reserved"])

    assert off.mean() < 0.05
    assert np.mean(off < 0.12) >= 0.95
    assert off.max() < 0.20


@pytest.mark.slow
def test_what_is_trained_is_exact_on_every_row() -> None:
    counted = [answer(row["model"], row["run"]).trainable_params for row in ARCHIVE["rows"]]

    assert counted == [row["measured"]["trainable_params"] for row in ARCHIVE["rows"]]


@pytest.mark.slow
def test_what_ran_out_of_memory_is_never_said_to_fit_and_what_ran_is_never_ruled_out() -> None:
    """The archive's models at their largest batches, at the edge of what the card has."""
    models = {row["model"]["name"]: row["model"] for row in ARCHIVE["rows"]} | {
        entry["model"]["name"]: entry["model"] for entry in ARCHIVE["capacity_verdicts"] if "model" in entry
    }
    verdicts = []
    for entry in ARCHIVE["capacity_verdicts"]:
        asked = entry["identity"]
        name = asked["model_id"].partition("/")[2]
        verdicts.append((entry["outcome"], answer(models.get(name) or UNLISTED[name], asked).verdict))

    assert {outcome for outcome, _ in verdicts} == {"completed", "oom"}
    assert (("oom", Verdict.FITS)) not in verdicts
    assert ("completed", Verdict.DOES_NOT_FIT) not in verdicts


UNLISTED: dict[str, dict[str, Any]] = {
    "Llama-3.2-3B-Instruct": {
        "name": "Llama-3.2-3B-Instruct",
        "hidden_size": 3072,
        "num_layers": 28,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-Coder-1.5B-Instruct": {
        "name": "Qwen2.5-Coder-1.5B-Instruct",
        "hidden_size": 1536,
        "num_layers": 28,
        "num_attention_heads": 12,
        "num_kv_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
"""Models of the edge cases that have no row of their own, from their published configurations."""
