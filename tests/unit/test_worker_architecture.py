"""What is found by looking at a model: attention, MLP, heads, and the parameters that a trial will train."""

from __future__ import annotations

import time

import pytest
import torch
import transformers as hf

from tests.architectures import FAMILIES, LLAMA_8B, Family, build, build_base, task_of
from tests.builders import make_lora
from tuner.layers import Group, count_trainable
from tuner.lora import Bias, Init, LoraSpec
from tuner.worker.adapters import attach
from tuner.worker.architecture import facts_of, head_names, layers_of, skeleton

LORAS = {
    "plain": make_lora(target_modules=("all-linear",)),
    "rslora": make_lora(target_modules=("all-linear",), use_rslora=True),
    "dora": make_lora(target_modules=("all-linear",), use_dora=True),
    "every bias": make_lora(target_modules=("attention",), bias=Bias.ALL),
    "adapted biases": make_lora(target_modules=("mlp",), bias=Bias.LORA_ONLY),
    "ranks by group and depth": make_lora(
        target_modules=("all-linear",), rank_pattern=(("mlp", 2), ("attention@first", 0), ("last", 3))
    ),
    "gaussian": make_lora(target_modules=("all-linear",), init_lora_weights=Init.GAUSSIAN),
    "pissa": make_lora(target_modules=("mlp",), init_lora_weights=Init.PISSA),
}


def names(family: Family, group: Group) -> set[str]:
    layers = layers_of(skeleton(family.config, task_of(family)))
    # T5 has two stacks; elsewhere blocks are alike
    return {layer.short_name for layer in layers if layer.group is group}


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_and_mlp_are_what_the_family_calls_them(name: str) -> None:
    family = FAMILIES[name]

    assert names(family, Group.ATTENTION) == set(family.attention)
    assert names(family, Group.MLP) == set(family.mlp)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_are_what_classification_adds(name: str) -> None:
    assert head_names(skeleton(FAMILIES[name].config, "classification")) == FAMILIES[name].heads


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_causal])
def test_a_causal_language_model_has_no_head_of_its_own(name: str) -> None:
    facts = facts_of(skeleton(FAMILIES[name].config, "causal-lm"))

    assert facts.head_params == 0
    assert not any("lm_head" in layer.name for layer in facts.layers)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_will_be_trained_is_known_before_anything_is_built(name: str, lora: LoraSpec) -> None:
    base = build_base(FAMILIES[name], "classification")
    facts = facts_of(skeleton(base.model.config, "classification"))

    adapted = attach(base, lora, seed=0)

    assert adapted.num_trainable() == count_trainable(facts, lora)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_alone_is_known_in_advance_too(name: str) -> None:
    base = build_base(FAMILIES[name], "classification")

    assert attach(base, None, seed=0).num_trainable() == count_trainable(facts_of(base.model), None)


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "distilbert"])
def test_the_base_is_bit_identical_after_an_adapter_is_gone(name: str, lora: LoraSpec) -> None:
    base = build_base(FAMILIES[name], "classification")
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    modules = [type(module) for module in base.model.modules()]

    adapted = attach(base, lora, seed=3)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(1.0)
    adapted.detach()

    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [type(module) for module in base.model.modules()] == modules
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_blocks_that_cannot_be_told_apart_have_no_groups_and_show_their_tree() -> None:
    config = hf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)

    facts = facts_of(skeleton(config, "causal-lm"))

    assert {layer.group for layer in facts.layers} == {None}
    assert "mixer: MambaMixer" in facts.tree
    assert "in_proj: Linear" in facts.tree


def test_depth_bands_count_each_stack_by_itself() -> None:
    layers = layers_of(skeleton(FAMILIES["t5"].config, "classification"))

    bands = [(layer.name.split(".")[1], layer.band) for layer in layers if layer.name.endswith("DenseReluDense.wi")]
    assert bands == [(stack, band) for stack in ("encoder", "decoder") for band in ("first", "middle", "last")]


def test_a_7b_model_is_looked_at_and_counted_in_under_a_second() -> None:
    config = hf.LlamaConfig(**LLAMA_8B, vocab_size=128256)
    lora = make_lora(r=16, target_modules=("all-linear",))
    skeleton(FAMILIES["llama"].config, "causal-lm")  # what transformers imports at the first use

    start_s = time.perf_counter()
    facts = facts_of(skeleton(config, "causal-lm"))
    count = count_trainable(facts, lora)

    assert time.perf_counter() - start_s < 1
    assert facts.num_params == 8_030_261_248
    assert count == 41_943_040  # as published for r 16 on all linear layers


def test_building_twice_gives_the_same_model() -> None:
    one, other = (build(FAMILIES["llama"], "causal-lm").state_dict() for _ in range(2))

    assert all(torch.equal(one[name], other[name]) for name in one)
