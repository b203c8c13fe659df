"""What serving engines make of an adapter: the rules of docs/serving.md, re-stated as claims."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tuner.exporting.engines import VLLM_RANKS, Adapter, Answer, Verdict, peft_scale, smallest_vllm_rank, verdicts

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
YES, NO, WRONG = Answer.YES, Answer.NO, Answer.WRONG


def adapter(ranks: dict[str, int] | int, modules: tuple[str, ...] = QKV, num_blocks: int = 2, **config: Any) -> Adapter:
    """Ranks by module, or one for all; in every block."""
    by_module = ranks if isinstance(ranks, dict) else dict.fromkeys(modules, ranks)
    r = max(by_module.values())
    values: dict[str, Any] = {"r": r, "lora_alpha": r, "bias": "none", "init_lora_weights": True}
    names = {f"model.layers.{block}.{name}": rank for block in range(num_blocks) for name, rank in by_module.items()}
    return Adapter(config=values | config, ranks=names)


def told(found: Adapter) -> dict[str, Verdict]:
    return {
        verdict.engine.split()[0] + ("-old" if "0.26" in verdict.engine else ""): verdict for verdict in verdicts(found)
    }


def answers(found: Adapter) -> dict[str, Answer]:
    return {engine: verdict.answer for engine, verdict in told(found).items()}


ALL_BUT_LLAMA_CPP = ("PEFT", "vLLM", "vLLM-old", "SGLang", "LoRAX", "TGI", "TensorRT-LLM")


@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_one_rank_and_alpha_equal_to_it_is_served_by_all(rank: int) -> None:
    found = answers(adapter(rank))

    assert {engine: found[engine] for engine in ALL_BUT_LLAMA_CPP} == dict.fromkeys(ALL_BUT_LLAMA_CPP, YES)
    assert found["llama.cpp"] is NO


@pytest.mark.parametrize("rank", [1, 4, 12, 24])
def test_a_rank_that_is_padded_is_scaled_wrongly_where_the_padded_one_counts(rank: int) -> None:
    found = answers(adapter(rank))

    assert (found["LoRAX"], found["TGI"], found["vLLM"], found["SGLang"]) == (WRONG, WRONG, YES, YES)


def test_ranks_of_their_own_at_one_scale_are_right_by_the_config_and_wrong_by_the_tensor() -> None:
    ranks = dict(zip(QKV, (4, 8, 16), strict=True))
    alphas = {f".*{name}": 2 * rank for name, rank in ranks.items()}

    found = told(adapter(ranks, r=16, lora_alpha=32, rank_pattern=ranks, alpha_pattern=alphas))

    assert (found["vLLM"].answer, found["vLLM-old"].answer) == (YES, YES)
    assert found["TensorRT-LLM"].answer is WRONG
    assert "by 8 instead of 2" in found["TensorRT-LLM"].note
    assert (found["SGLang"].answer, found["LoRAX"].answer, found["TGI"].answer) == (NO, NO, NO)


def test_scales_of_their_own_are_dropped_in_silence_by_older_vllm() -> None:
    found = answers(adapter(8, alpha_pattern={"q_proj": 32}))

    assert (found["vLLM"], found["vLLM-old"], found["SGLang"], found["TensorRT-LLM"]) == (YES, WRONG, WRONG, WRONG)


def test_rslora_is_ignored_by_sglang() -> None:
    found = told(adapter(16, use_rslora=True))

    assert (found["vLLM"].answer, found["TensorRT-LLM"].answer, found["LoRAX"].answer) == (YES, YES, YES)
    assert found["SGLang"].answer is WRONG
    assert "by 1 instead of 4" in found["SGLang"].note


def test_dora_is_served_by_peft_alone() -> None:
    found = answers(adapter(8, use_dora=True))

    assert [engine for engine, answer in found.items() if answer is YES] == ["PEFT"]


def test_classification_heads_are_served_by_peft_and_newer_vllm() -> None:
    found = answers(adapter(8, modules_to_save=["classifier", "score"]))

    assert [engine for engine, answer in found.items() if answer is YES] == ["PEFT", "vLLM"]
    assert answers(adapter(8, modules_to_save=["lm_head"]))["vLLM"] is NO


def test_biases_are_refused_or_not_read() -> None:
    found = answers(adapter(8, bias="all"))

    assert [engine for engine, answer in found.items() if answer is YES] == ["PEFT"]


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq"])
def test_starts_that_changed_the_base_are_refused_by_vllm(start: str) -> None:
    assert answers(adapter(8, init_lora_weights=start))["vLLM"] is NO


@pytest.mark.parametrize(("rank", "note"), [(16, ""), (17, "--max-lora-rank 32"), (64, "--max-lora-rank 64")])
def test_vllm_needs_a_flag_above_its_default(rank: int, note: str) -> None:
    assert told(adapter(rank))["vLLM"].note == note


def test_ranks_above_all_that_vllm_takes_are_told() -> None:
    assert answers(adapter(1024))["vLLM"] is NO
    assert [smallest_vllm_rank(rank) for rank in (1, 2, 9, 512, 513)] == [1, 8, 16, 512, None]
    assert smallest_vllm_rank(VLLM_RANKS[-1]) == 512


def test_older_vllm_checks_the_adapters_rank_alone() -> None:
    ranks = dict(zip(QKV, (4, 8, 16), strict=True))

    assert answers(adapter(ranks, r=4, lora_alpha=4))["vLLM-old"] is NO


def test_sglang_wants_the_projections_that_it_merges_together() -> None:
    found = told(adapter(8, modules=("self_attn.q_proj", "mlp.gate_proj")))

    assert found["SGLang"].answer is NO
    assert "k_proj, v_proj, up_proj must be adapted too" in found["SGLang"].note
    assert found["vLLM"].answer is YES


def test_a_projection_that_a_block_lacks_is_dropped_by_lorax() -> None:
    whole = adapter(8, modules=(*QKV, "mlp.down_proj"))
    ranks = {name: rank for name, rank in whole.ranks.items() if name != "model.layers.1.mlp.down_proj"}

    assert answers(Adapter(config=whole.config, ranks=ranks))["LoRAX"] is NO


def test_tensorrt_needs_to_be_told_of_large_ranks() -> None:
    assert told(adapter(64))["TensorRT-LLM"].note == ""
    assert told(adapter(128))["TensorRT-LLM"].note == "max_lora_rank=128"


def test_patterns_are_read_as_peft_reads_them() -> None:
    config = {"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 4, "^model\\.layers\\.0\\.k_proj": 2}}

    assert peft_scale(config, "model.layers.0.q_proj", 8) == 0.5
    assert peft_scale(config, "model.layers.0.k_proj", 8) == 0.25
    assert peft_scale(config, "model.layers.1.k_proj", 8) == 2.0
    assert peft_scale(config | {"use_rslora": True}, "x", 4) == 16 / math.sqrt(4)
