"""A model as its linear layers: what a selector means, which key sets a rank, and how many parameters that trains."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import LLAMA_SHAPES, make_layers, make_llama, make_lora, make_model
from tuner.layers import (
    BANDS,
    Layer,
    ModelFacts,
    Selector,
    count_trainable,
    deciding_key,
    parse_selector,
    ranks_of,
    targeted,
)
from tuner.lora import Bias

LLAMA = make_llama()
SMALL = make_layers(LLAMA_SHAPES, "model.layers", 6, has_bias=False)
ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def layer_at(block: int, num_blocks: int = 6, name: str = "self_attn.q_proj") -> Layer:
    return next(
        layer
        for layer in make_layers(LLAMA_SHAPES, "model.layers", num_blocks, has_bias=False)
        if layer.block == block and layer.short_name == name
    )


def meant_by(selector: str) -> tuple[set[str], set[int]]:
    """(short names, blocks) of the layers of a six-block model that a selector means."""
    meant = [layer for layer in SMALL if parse_selector(selector).fits(layer)]
    return {layer.short_name for layer in meant}, {layer.block for layer in meant}


@pytest.mark.parametrize(
    ("selector", "names", "blocks"),
    [
        ("q_proj", {"self_attn.q_proj"}, {0, 1, 2, 3, 4, 5}),
        ("self_attn.q_proj", {"self_attn.q_proj"}, {0, 1, 2, 3, 4, 5}),
        ("model.layers.3.self_attn.q_proj", {"self_attn.q_proj"}, {3}),
        ("3.self_attn.q_proj", {"self_attn.q_proj"}, {3}),
        ("attention", ATTENTION, {0, 1, 2, 3, 4, 5}),
        ("mlp", MLP, {0, 1, 2, 3, 4, 5}),
        ("all-linear", ATTENTION | MLP, {0, 1, 2, 3, 4, 5}),
        ("first", ATTENTION | MLP, {0, 1}),
        ("middle", ATTENTION | MLP, {2, 3}),
        ("last", ATTENTION | MLP, {4, 5}),
        ("q_proj@first", {"self_attn.q_proj"}, {0, 1}),
        ("mlp@last", MLP, {4, 5}),
        ("all-linear@middle", ATTENTION | MLP, {2, 3}),
    ],
)
def test_a_selector_means_its_modules_in_its_band(selector: str, names: set[str], blocks: set[int]) -> None:
    assert meant_by(selector) == (names, blocks)


@pytest.mark.parametrize("selector", ["proj", "attn.q_proj", "self_attn", "layers", "Q_PROJ", "q_proj.", "lm_head"])
def test_a_part_of_a_name_that_is_no_dotted_end_means_nothing(selector: str) -> None:
    assert meant_by(selector) == (set(), set())


@pytest.mark.parametrize("text", ["q_proj@top", "q_proj@", "@first", "@", "q_proj@first@last", "mlp@First"])
def test_a_selector_with_no_such_band_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"a band \(first, middle, last\) or module@band, got") as caught:
        parse_selector(text)

    assert str(caught.value).endswith(repr(text))


def test_a_band_alone_is_any_module_in_it() -> None:
    assert parse_selector("middle") == Selector(name="", band="middle")


def test_a_layer_of_no_group_is_meant_by_name_and_not_by_group() -> None:
    layer = dataclasses.replace(layer_at(0), group=None)

    assert parse_selector("q_proj").fits(layer)
    assert parse_selector("all-linear").fits(layer)
    assert not parse_selector("attention").fits(layer)
    assert not parse_selector("mlp").fits(layer)


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [(1, "f"), (2, "fm"), (3, "fml"), (6, "ffmmll"), (7, "fffmmll"), (32, "f" * 11 + "m" * 11 + "l" * 10)],
)
def test_bands_are_thirds_of_the_depth(num_blocks: int, expected: str) -> None:
    bands = [layer_at(block, num_blocks).band[0] for block in range(num_blocks)]

    assert "".join(bands) == expected


@given(st.integers(1, 200))
def test_bands_are_in_order_and_differ_by_a_block_at_most(num_blocks: int) -> None:
    bands = [dataclasses.replace(layer_at(0), block=block, num_blocks=num_blocks).band for block in range(num_blocks)]

    assert bands == sorted(bands, key=BANDS.index)
    sizes = [Counter(bands)[band] for band in BANDS]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("mlp", "attention"), "attention"),
        (("attention", "q_proj"), "q_proj"),
        (("q_proj", "attention@first"), "q_proj"),
        (("first", "attention"), "attention"),
        (("all-linear", "first"), "first"),
        (("q_proj", "self_attn.q_proj"), "self_attn.q_proj"),
        (("self_attn.q_proj", "q_proj@first"), "self_attn.q_proj"),
        (("q_proj", "q_proj@first"), "q_proj@first"),
        (("attention@first", "attention"), "attention@first"),
        (("q_proj@last", "attention", "first"), "attention"),
        (("model.layers.0.self_attn.q_proj", "self_attn.q_proj@first"), "model.layers.0.self_attn.q_proj"),
        (("mlp", "last"), None),
        ((), None),
    ],
)
def test_the_most_precise_key_decides_whatever_the_order(keys: tuple[str, ...], expected: str | None) -> None:
    assert deciding_key(layer_at(0), keys) == expected
    assert deciding_key(layer_at(0), tuple(reversed(keys))) == expected


def test_of_equally_precise_keys_the_first_decides() -> None:
    assert deciding_key(layer_at(0), ("first", "all-linear@first")) == "first"
    assert deciding_key(layer_at(0), ("all-linear@first", "first")) == "all-linear@first"


def test_targets_are_the_layers_that_one_of_them_means_in_the_models_order() -> None:
    layers = targeted(SMALL, ("down_proj@last", "q_proj@first", "q_proj"))

    assert [layer.name for layer in layers] == [
        layer.name for layer in SMALL if "q_proj" in layer.name or ("down" in layer.name and layer.block > 3)
    ]


def test_targets_that_mean_no_layer_are_all_told() -> None:
    with pytest.raises(ValueError, match=r"no linear layer is named c_attn, query$"):
        targeted(SMALL, ("query", "q_proj", "c_attn"))


def test_a_band_that_a_shallow_model_lacks_is_told() -> None:
    shallow = make_layers(LLAMA_SHAPES, "model.layers", 2, has_bias=False)

    with pytest.raises(ValueError, match="no linear layer is named last"):
        targeted(shallow, ("last",))


def test_layers_without_a_rank_of_their_own_have_r() -> None:
    ranks = ranks_of(SMALL, make_lora(r=4, target_modules=("mlp",), rank_pattern=(("up_proj", 2), ("last", 6))))

    assert ranks["model.layers.0.mlp.gate_proj"] == 4
    assert ranks["model.layers.0.mlp.up_proj"] == 2
    assert ranks["model.layers.5.mlp.up_proj"] == 2
    assert ranks["model.layers.5.mlp.gate_proj"] == 6


def test_layers_of_rank_0_are_not_adapted() -> None:
    ranks = ranks_of(SMALL, make_lora(target_modules=("q_proj", "v_proj"), rank_pattern=(("v_proj", 0), ("first", 0))))

    assert list(ranks) == [f"model.layers.{block}.self_attn.q_proj" for block in (2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("pattern", "idle"),
    [
        ((("query", 2),), "query"),
        ((("mlp", 2),), "mlp"),
        ((("mlp", 2), ("c_attn", 1)), "c_attn, mlp"),
        ((("attention", 2), ("q_proj", 4), ("v_proj", 4)), "attention"),
    ],
)
def test_keys_that_set_no_layers_rank_are_refused(pattern: tuple[tuple[str, int], ...], idle: str) -> None:
    with pytest.raises(ValueError, match=f"rank_pattern sets no layer's rank by {idle}$"):
        ranks_of(SMALL, make_lora(target_modules=("q_proj", "v_proj"), rank_pattern=pattern))


NAMES = ["", "all-linear", "attention", "mlp", *LLAMA_SHAPES, "q_proj", "up_proj", "model.layers.4.mlp.up_proj"]
SELECTORS = [f"{name}@{band}" if name and band else name or band for name in NAMES for band in ("", *BANDS)]
patterns = st.dictionaries(st.sampled_from(SELECTORS[1:]), st.integers(0, 8), max_size=6)


def naive_fits(selector: str, layer: Layer) -> bool:
    name, _, band = selector.partition("@")
    if name in BANDS:
        name, band = "all-linear", name
    thirds = {"first": range(11), "middle": range(11, 22), "last": range(22, 32), "": range(32)}
    is_named = name in {"all-linear", str(layer.group)} or f".{layer.name}".endswith(f".{name}")
    return layer.block in thirds[band] and is_named


TARGETS = [selector for selector in SELECTORS[1:] if any(naive_fits(selector, layer) for layer in LLAMA.layers)]
targets = st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3, unique=True)


def naive_score(selector: str) -> tuple[bool, int, bool]:
    """Modules first, the longest before the others; then groups; then what means any module; bands break ties."""
    name, _, band = selector.partition("@")
    if name in {*BANDS, "all-linear"}:
        return (False, -1, name != "all-linear" or bool(band))
    is_group = name in {"attention", "mlp"}
    return (not is_group, 0 if is_group else len(name), bool(band))


def naive_ranks(r: int, chosen: list[str], pattern: dict[str, int]) -> tuple[dict[str, int], set[str]]:
    """(name -> rank, keys used), by trying every key on every layer."""
    ranks, used = {}, set()
    for layer in LLAMA.layers:
        if any(naive_fits(target, layer) for target in chosen):
            ranked = sorted((key for key in pattern if naive_fits(key, layer)), key=naive_score, reverse=True)
            used |= set(ranked[:1])
            ranks[layer.name] = pattern[ranked[0]] if ranked else r
    return {name: rank for name, rank in ranks.items() if rank}, used


@settings(max_examples=150, derandomize=True, deadline=None)
@given(r=st.integers(1, 8), chosen=targets, pattern=patterns)
def test_ranks_are_those_of_trying_every_key_on_every_layer(r: int, chosen: list[str], pattern: dict[str, int]) -> None:
    expected, used = naive_ranks(r, chosen, pattern)
    lora = make_lora(r=r, target_modules=tuple(chosen), rank_pattern=tuple(pattern.items()))

    if used != set(pattern):
        with pytest.raises(ValueError, match=f"by {', '.join(sorted(set(pattern) - used))}$"):
            ranks_of(LLAMA.layers, lora)
    else:
        assert list(ranks_of(LLAMA.layers, lora).items()) == list(expected.items())


def counted(model: ModelFacts = LLAMA, **changes: Any) -> int:
    return count_trainable(model, make_lora(**{"target_modules": ("all-linear",), "r": 16, **changes}))


def test_counts_are_the_published_ones_of_llama_8b() -> None:
    assert counted() == 41_943_040
    assert counted(r=8, target_modules=("q_proj", "v_proj")) == 3_407_872


def test_dora_adds_a_magnitude_for_each_output() -> None:
    outputs = 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)

    assert counted(use_dora=True) - counted() == outputs


def test_a_layer_of_rank_0_adds_nothing_to_the_count() -> None:
    without = counted(rank_pattern=(("mlp", 0),), use_dora=True)

    assert without == counted(target_modules=("attention",), use_dora=True)


@pytest.mark.parametrize(("bias", "biases"), [(Bias.NONE, 0), (Bias.ALL, 40_000), (Bias.LORA_ONLY, 6 * (384 + 1536))])
def test_biases_count_as_they_are_trained(bias: Bias, biases: int) -> None:
    targets = ("query", "intermediate.dense")

    assert counted(make_model(), target_modules=targets, bias=bias) == (
        counted(make_model(), target_modules=targets) + biases
    )


def test_layers_without_a_bias_have_none_to_train() -> None:
    assert counted(bias=Bias.LORA_ONLY) == counted()


def test_the_head_is_trained_beside_the_adapter() -> None:
    assert counted(make_model(head_params=770)) == counted(make_model(head_params=0)) + 770


def test_without_an_adapter_the_head_alone_is_trained() -> None:
    assert count_trainable(make_model(head_params=770), None) == 770


def test_counting_a_large_model_takes_no_time() -> None:
    pattern = tuple((f"{name}@{band}", 4) for name in LLAMA_SHAPES for band in BANDS)
    begin = time.process_time()

    counted(rank_pattern=pattern)

    assert time.process_time() - begin < 0.5
