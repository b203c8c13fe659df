"""How targets find their layers, and what stands on the base while a trial runs."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer
from transformers import BertConfig

from tests.builders import make_lora
from tuner.config import ModelConfig
from tuner.worker.adapters import attach
from tuner.worker.architecture import layers_of, outer_linears, skeleton
from tuner.worker.model import BaseModel

TINY = BertConfig(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_labels=3,  # type: ignore[call-arg]
    max_position_embeddings=16,
)


def tiny_base() -> BaseModel:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(TINY)  # type: ignore[no-untyped-call]
    model.requires_grad_(requires_grad=False)
    return BaseModel(
        model=model,
        tokenizer=None,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
        config=ModelConfig(name="tiny", quantization="none"),
    )


def test_pooler_and_head_are_no_layers_of_the_blocks() -> None:
    model = skeleton(TINY, "classification")

    assert outer_linears(model) == ("bert.pooler.dense", "classifier")
    assert len(layers_of(model)) == 12


def test_trainable_parameters_are_the_sum_over_shapes_plus_the_head() -> None:
    lora = make_lora(r=4, target_modules=("query", "intermediate.dense"), rank_pattern=(("intermediate.dense", 2),))

    adapted = attach(tiny_base(), lora, seed=0)

    per_layer = 4 * (16 + 16) + 2 * (16 + 32)
    assert adapted.num_trainable() == 2 * per_layer + 16 * 3 + 3


def test_every_layer_gets_its_own_rank_at_the_same_scale() -> None:
    lora = make_lora(r=4, lora_alpha=8.0, target_modules=("query", "output.dense"), rank_pattern=(("output.dense", 1),))

    adapted = attach(tiny_base(), lora, seed=0)

    layers = [layer for layer in adapted.model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.r["default"] for layer in layers} == {1, 4}
    assert {layer.scaling["default"] for layer in layers} == {2.0}


def test_a_module_of_rank_zero_is_not_adapted() -> None:
    lora = make_lora(r=4, target_modules=("query", "value"), rank_pattern=(("value", 0),))

    adapted = attach(tiny_base(), lora, seed=0)

    assert not any("value.lora_A" in name for name in adapted.trainable())


def test_a_target_that_names_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer is named q_proj"):
        attach(tiny_base(), make_lora(target_modules=("q_proj",)), seed=0)


def test_the_start_of_a_trial_depends_on_its_seed_alone() -> None:
    base = tiny_base()
    first = {name: value.detach().clone() for name, value in attach_and_detach(base, seed=1).items()}
    attach_and_detach(base, seed=2)

    again = attach_and_detach(base, seed=1)

    assert all(torch.equal(first[name], again[name]) for name in first)


def attach_and_detach(base: BaseModel, seed: int) -> dict[str, torch.nn.Parameter]:
    adapted = attach(base, make_lora(), seed)
    trainable = adapted.trainable()
    adapted.detach()
    return trainable


def test_without_an_adapter_the_head_alone_is_trained() -> None:
    base = tiny_base()

    adapted = attach(base, None, seed=0)

    assert set(adapted.trainable()) == {"classifier.weight", "classifier.bias"}
    adapted.detach()
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
