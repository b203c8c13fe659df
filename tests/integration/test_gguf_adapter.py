"""llama.cpp with a written adapter computes what PEFT computes with the folder that it was written from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.gguf_bases import WORDS, adapt, build_base, linears_of, write_gguf
from tests.llama_cpp import Answer, ask
from tuner.worker import gguf_adapter
from tuner.worker.gguf_adapter import write_gguf_adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""On log probabilities; between PEFT and llama.cpp in float32 lies 3e-4 in a model of 30 blocks (docs/serving.md)."""
ON, OFF, WRONG = 1.0, 0.0, 0.99
PROMPTS = [[5, 9, 33], [1, 11, 40, 17, 20, 44, 5], [61]]
SMOLLM2 = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def ranks_by_layer(model: PreTrainedModel) -> dict[str, int]:
    """1 to 16, by anchored name."""
    return {f"^{name}": 1 + (5 * index) % 16 for index, name in enumerate(linears_of(model))}


def uniform(model: PreTrainedModel) -> dict[str, Any]:
    return {}


def with_patterns(model: PreTrainedModel) -> dict[str, Any]:
    """Neither one alpha nor one scale for all."""
    ranks = ranks_by_layer(model)
    return {"rank_pattern": ranks, "alpha_pattern": {name: 2 * r + r % 3 for name, r in ranks.items()}}


def rank_stabilized(model: PreTrainedModel) -> dict[str, Any]:
    return {"rank_pattern": ranks_by_layer(model), "lora_alpha": 4, "use_rslora": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One base with one adapter, in both."""

    tuned: PeftModel
    answers: dict[float, list[Answer]]
    """llama.cpp's, by scale of the adapter."""

    def gap(self, scale: float) -> float:
        """Largest difference in log probability from PEFT, over prompts, steps and words."""
        pairs = zip(PROMPTS, self.answers[scale], strict=True)
        return max(largest_gap(self.tuned, prompt, answer) for prompt, answer in pairs)


@torch.no_grad()
def largest_gap(tuned: PeftModel, prompt: list[int], answer: Answer) -> float:
    logits_BTV = tuned(torch.tensor([prompt + answer.ids[:-1]])).logits
    expected_TV = torch.log_softmax(logits_BTV[0, len(prompt) - 1 :], dim=-1)
    assert all(len(table) == len(WORDS) for table in answer.log_probs)
    found_TV = torch.tensor([[table[word] for word in range(len(WORDS))] for table in answer.log_probs])
    return float((found_TV - expected_TV).abs().max())


def compare(folder: Path, architecture: str, lora: Any) -> Compared:
    model = build_base(architecture)
    base = write_gguf(model, folder / "base.gguf")
    tuned = adapt(model, folder / "adapter", **lora(model))
    write_gguf_adapter(folder / "adapter", base, folder / "adapter.gguf")
    answers = ask(base, folder / "adapter.gguf", PROMPTS, (ON, OFF, WRONG), num_seen=len(WORDS))
    return Compared(tuned=tuned, answers=answers)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((architecture, lora), id=f"{architecture}-{lora.__name__}")
        for architecture in gguf_adapter.ARCHITECTURES
        for lora in (uniform, with_patterns, rank_stabilized)
    ],
)
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    architecture, lora = request.param
    return compare(tmp_path_factory.mktemp("gguf"), architecture, lora)


def test_llama_cpp_computes_what_peft_computes(compared: Compared) -> None:
    assert compared.gap(ON) < TOLERANCE


def test_llama_cpp_without_the_adapter_computes_what_the_base_does(compared: Compared) -> None:
    with compared.tuned.disable_adapter():
        assert compared.gap(OFF) < TOLERANCE

    assert compared.gap(OFF) > 100 * TOLERANCE


def test_a_scale_that_is_one_per_cent_wrong_would_be_found(compared: Compared) -> None:
    assert compared.gap(WRONG) > 5 * TOLERANCE


def test_rows_in_the_order_of_transformers_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_adapter, "PERMUTED", frozenset())

    assert compare(tmp_path, "llama", uniform).gap(ON) > 100 * TOLERANCE


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="no models/SmolLM2-135M-Instruct.Q4_1.gguf; `make smollm2` brings it")
def test_an_adapter_of_a_real_quantized_base_loads_and_says_something_else(tmp_path: Path) -> None:
    # an adapter of two blocks needs no more of the base than its sizes
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = build_base("llama", **sizes, head_dim=64)
    adapt(model, tmp_path / "adapter", target_modules=["q_proj", "k_proj", "v_proj", "down_proj"])

    write_gguf_adapter(tmp_path / "adapter", SMOLLM2, tmp_path / "adapter.gguf")
    answers = ask(SMOLLM2, tmp_path / "adapter.gguf", [[504, 3575, 282, 4649, 314]], (ON, OFF), num_seen=5)

    assert len(answers[OFF][0].ids) > 0
    assert answers[ON] != answers[OFF]
