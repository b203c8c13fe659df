"""An adapter in another form gives the same outputs, and the uniform form obeys the rules of docs/serving.md."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
)

from tests.architectures import FAMILIES, build, task_of
from tests.models import causal_document, tiny_tokenizer
from tests.sweeps import small_config
from tuner.config import SweepConfig
from tuner.layers import Layer
from tuner.worker.architecture import head_names, layers_of
from tuner.worker.forms import AdapterWeights, FormError, as_rank, as_serving, lost_share, read_adapter, write_adapter
from tuner.worker.merging import merge

RANKS = (1, 64, 2, 3, 5, 8, 13, 21, 34)
BASE = "base_model.model."
IDS_BT = torch.tensor([[1, 5, 9, 13, 17, 21, 25, 29], [1, 40, 33, 26, 19, 12, 5, 7]])


def tiny(name: str, task: str) -> PreTrainedModel:
    """Random weights, ten times as large as transformers draws them, so that logits are about 1."""
    model = build(FAMILIES[name], task)
    model.eval()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(10)
    return model


def adapter(folder: Path, model: PreTrainedModel, names: list[str], **fields: Any) -> AdapterWeights:
    """A random adapter on these layers, saved by PEFT and read back."""
    torch.manual_seed(1)
    heads = head_names(model)
    values = {"r": 4, "lora_alpha": 8, "task_type": "SEQ_CLS" if heads else "CAUSAL_LM"} | fields
    wrapped = get_peft_model(
        model,
        LoraConfig(
            target_modules=names,
            modules_to_save=list(heads) or None,
            fan_in_fan_out=model.config.model_type == "gpt2",
            **values,
        ),
    )
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    wrapped.save_pretrained(str(folder))
    return read_adapter(folder)


def uneven(names: list[str]) -> dict[str, Any]:
    """Ranks from 1 to 64 by layer, and alphas of their own for every other one."""
    ranks = dict(zip((f"^{name}".replace(".", r"\.") for name in names), itertools.cycle(RANKS), strict=False))
    return {"rank_pattern": ranks, "alpha_pattern": {key: 1.7 + r for key, r in list(ranks.items())[::2]}}


def loaded(weights: AdapterWeights, folder: Path, model: PreTrainedModel) -> Any:
    write_adapter(weights, folder)
    return PeftModel.from_pretrained(model, str(folder)).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS_BT, attention_mask=torch.ones_like(IDS_BT)).logits
    return result


def generated(model: Any) -> list[list[int]]:
    model.generation_config.eos_token_id = None
    written: torch.Tensor = model.generate(
        input_ids=IDS_BT, attention_mask=torch.ones_like(IDS_BT), max_new_tokens=8, do_sample=False
    )
    return written.tolist()


def in_dtype(weights: AdapterWeights, dtype: torch.dtype) -> AdapterWeights:
    tensors = {name: value.to(dtype) if ".lora_" in name else value for name, value in weights.tensors.items()}
    return dataclasses.replace(weights, tensors=tensors)


def adapted_names(weights: AdapterWeights) -> set[str]:
    return {key.removeprefix(BASE).partition(".lora_A")[0] for key in weights.tensors if ".lora_A" in key}


def realised(model: Any) -> dict[str, float]:
    """Layer -> factor on B A x, in PEFT's own books."""
    layers: Iterator[tuple[str, Any]] = (
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    )
    return {name.removeprefix(BASE): layer.scaling["default"] for name, layer in layers}


def assert_uniform(weights: AdapterWeights, layers: tuple[Layer, ...]) -> None:
    config, names = weights.config, adapted_names(weights)
    r = config["r"]
    assert r in {8, 16, 32, 64, 128, 256, 512}
    assert (config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (r, {}, {})
    assert (config["use_rslora"], config["bias"], config["init_lora_weights"]) == (False, "none", True)
    assert isinstance(config["target_modules"], list)
    assert "dense" not in config["target_modules"]
    by_place: dict[str, set[bool]] = {}
    for layer in layers:
        by_place.setdefault(layer.name.replace(f".{layer.block}.", ".*.", 1), set()).add(layer.name in names)
        if layer.name in names:
            assert weights.tensors[f"{BASE}{layer.name}.lora_A.weight"].shape == (r, layer.in_features)
            assert weights.tensors[f"{BASE}{layer.name}.lora_B.weight"].shape == (layer.out_features, r)
    assert all(len(found) == 1 for found in by_place.values())
    for row in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value")):
        blocks = [{name.rpartition(".")[0] for name in names if name.endswith(f".{last}")} for last in row]
        assert all(found == blocks[0] for found in blocks)


def first_third(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.name for layer in layers if layer.band == "first"]


def ending(*ends: str) -> Callable[[tuple[Layer, ...]], list[str]]:
    return lambda layers: [layer.name for layer in layers if layer.name.endswith(ends)]


SUBSETS: dict[str, Callable[[tuple[Layer, ...]], list[str]]] = {
    "all": ending(""),
    "q only": ending("q_proj", "query", "attn.c_proj"),  # GPT-2 has no q; its MLP has a c_proj too
    "gate only": ending("gate_proj", "intermediate.dense", "c_fc"),
    "first third": first_third,
}
MODELS = [
    ("llama", "causal-lm"),
    ("llama", "classification"),
    ("gpt2", "causal-lm"),
    ("gpt2", "classification"),
    ("bert", "classification"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("is_uneven", [False, True], ids=["one rank", "ranks 1 to 64"])
@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("model", MODELS, ids=" ".join)
def test_the_serving_form_gives_what_was_trained(
    model: tuple[str, str], subset: str, is_uneven: bool, use_rslora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    name, task = model
    layers = layers_of(tiny(name, task))
    names = SUBSETS[subset](layers)
    fields = uneven(names) if is_uneven else {}
    saved = adapter(tmp_path / "trained", tiny(name, task), names, use_rslora=use_rslora, **fields)
    saved = in_dtype(saved, dtype)

    serving = as_serving(saved, layers)

    was, now = loaded(saved, tmp_path / "a", tiny(name, task)), loaded(serving, tmp_path / "b", tiny(name, task))
    assert_uniform(serving, layers)
    assert realised(now) == dict.fromkeys(adapted_names(serving), 1.0)
    assert not torch.allclose(logits(was), logits(tiny(name, task)), atol=0.01)
    torch.testing.assert_close(logits(now), logits(was), rtol=1e-5, atol=1e-5)
    if task == "causal-lm":
        assert generated(now) == generated(was)


def test_layers_chosen_by_number_are_chosen_by_name(tmp_path: Path) -> None:
    layers = layers_of(tiny("llama", "causal-lm"))
    saved = adapter(
        tmp_path / "trained",
        tiny("llama", "causal-lm"),
        ["q_proj", "up_proj", "o_proj"],
        layers_to_transform=[1, 2],
        layers_pattern="layers",
        exclude_modules=["o_proj"],
    )

    serving = as_serving(saved, layers)

    was, now = (loaded(one, tmp_path / f"{id(one)}", tiny("llama", "causal-lm")) for one in (saved, serving))
    assert (len(realised(was)), len(realised(now))) == (4, 15)
    torch.testing.assert_close(logits(now), logits(was), rtol=1e-5, atol=1e-5)


def test_patterns_that_overlap_count_as_peft_counts_them(tmp_path: Path) -> None:
    layers = layers_of(tiny("llama", "causal-lm"))
    patterns = {
        "rank_pattern": {"1.self_attn.q_proj": 3, "layers.2.self_attn.q_proj": 7, "q_proj": 2},
        "alpha_pattern": {"layers.2.mlp.up_proj": 0.5, "q_proj": 90, "self_attn.[qk]_proj": 5},
    }
    names = ["q_proj", "k_proj", "up_proj"]
    saved = adapter(tmp_path / "trained", tiny("llama", "causal-lm"), names, **patterns)

    serving = as_serving(saved, layers)

    was, now = (loaded(one, tmp_path / f"{id(one)}", tiny("llama", "causal-lm")) for one in (saved, serving))
    assert set(realised(was).values()) == {90 / 3, 90 / 7, 90 / 2, 5 / 4, 8 / 4, 0.5 / 4}
    torch.testing.assert_close(logits(now), logits(was), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_finds_exactly_the_layers_of_the_serving_form_on_every_architecture(name: str, tmp_path: Path) -> None:
    task = task_of(FAMILIES[name])
    layers = layers_of(tiny(name, task))
    for index, short_name in enumerate(sorted({layer.short_name for layer in layers})):
        names = [layer.name for layer in layers if layer.short_name == short_name][:1]
        saved = adapter(tmp_path / f"{index}", tiny(name, task), names)

        serving = as_serving(saved, layers)

        assert_uniform(serving, layers)
        assert realised(loaded(serving, tmp_path / f"{index}-b", tiny(name, task))).keys() == adapted_names(serving)


@pytest.mark.parametrize(
    ("largest", "expected"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (33, 64), (300, 512), (512, 512)]
)
def test_the_serving_rank_is_the_smallest_allowed_that_holds_the_largest(
    largest: int, expected: int, tmp_path: Path
) -> None:
    model = tiny("llama", "causal-lm")
    layers = layers_of(model)

    saved = adapter(tmp_path, model, [layers[0].name], r=largest)

    assert as_serving(saved, layers).config["r"] == expected


def test_short_names_are_used_where_they_mean_these_layers_alone(tmp_path: Path) -> None:
    for name, task, expected in (
        ("llama", "causal-lm", ["k_proj", "q_proj", "v_proj"]),
        ("gpt2", "causal-lm", [f"transformer.h.{block}.attn.c_proj" for block in range(3)]),
        ("bert", "classification", ["key", "query", "value"]),
    ):
        model = tiny(name, task)
        layers = layers_of(model)
        saved = adapter(tmp_path / name, model, SUBSETS["q only"](layers))

        assert as_serving(saved, layers).config["target_modules"] == expected


def test_bf16_stays_where_the_scale_rounds_nothing(tmp_path: Path) -> None:
    model = tiny("llama", "causal-lm")
    layers = layers_of(model)
    saved = in_dtype(adapter(tmp_path, model, [layers[0].name], r=4, lora_alpha=8), torch.bfloat16)
    odd = dataclasses.replace(saved, config={**saved.config, "lora_alpha": 7})

    dtypes = [{value.dtype for value in as_serving(one, layers).tensors.values()} for one in (saved, odd)]

    assert dtypes == [{torch.bfloat16}, {torch.float32}]


@pytest.mark.filterwarnings("ignore:.*invalid shape:peft.utils.warning.PeftWarning")  # PEFT takes B's bias for a B
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize(
    ("targets", "fields", "reason"),
    [
        (["q_proj"], {"use_dora": True}, "DoRA trains each output's magnitude"),
        (["q_proj"], {"bias": "lora_only"}, "biases of the base were trained"),
        (["q_proj"], {"bias": "all"}, "biases of the base were trained"),
        (["q_proj"], {"lora_bias": True}, "lora_bias adds a bias"),
        (["q_proj"], {"init_lora_weights": "pissa"}, "'pissa' changes the base"),
        (["q_proj", "lm_head"], {}, "not lm_head"),
        (["q_proj"], {"r": 513}, "ranks up to 512, the largest here is 513; cut it"),
    ],
)
def test_what_has_no_serving_form_is_refused_with_the_reason(
    targets: list[str], fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = tiny("qwen2", "causal-lm")
    layers = layers_of(model)
    saved = adapter(tmp_path, model, targets, **fields)

    with pytest.raises(FormError, match=reason) as caught:
        as_serving(saved, layers)

    if "lm_head" not in targets:  # PEFT saves the embeddings with it
        assert len(str(caught.value).split("; ")) == len(reason.split("; "))


def test_lora_on_embeddings_is_refused(tmp_path: Path) -> None:
    model = tiny("llama", "causal-lm")
    layers = layers_of(model)
    saved = adapter(tmp_path, model, ["q_proj"])
    embedding = {f"{BASE}model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}
    both = dataclasses.replace(saved, tensors={**saved.tensors, **embedding})

    with pytest.raises(FormError, match="embeddings are adapted"):
        as_serving(both, layers)
    with pytest.raises(FormError, match="embeddings are adapted"):
        as_rank(both, 2)


def test_a_whole_module_of_a_causal_model_is_refused(tmp_path: Path) -> None:
    model = tiny("llama", "causal-lm")
    layers = layers_of(model)
    saved = adapter(tmp_path, model, ["q_proj"])
    head = {f"{BASE}lm_head.weight": torch.zeros(64, 16)}
    changed = AdapterWeights(config={**saved.config, "modules_to_save": ["lm_head"]}, tensors={**saved.tensors, **head})

    with pytest.raises(FormError, match=r"only a classification head may stand beside A and B, not lm_head\.weight"):
        as_serving(changed, layers)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = tiny("llama", "causal-lm")
    layers = layers_of(model)
    saved = adapter(tmp_path, model, ["q_proj"])
    half = {key: value for key, value in saved.tensors.items() if "layers.1.self_attn.q_proj.lora_B" not in key}
    wider = tuple(dataclasses.replace(layer, in_features=17) for layer in layers)

    with pytest.raises(ValueError, match=r"not whole: model.layers.1.self_attn.q_proj has A alone"):
        as_serving(dataclasses.replace(saved, tensors=half), layers)
    with pytest.raises(ValueError, match="17 to 16 wide"):
        as_serving(saved, wider)
    with pytest.raises(ValueError, match="the config says rank 5"):
        as_serving(dataclasses.replace(saved, config={**saved.config, "r": 5}), layers)


def deltas(weights: AdapterWeights, factors: dict[str, float]) -> dict[str, torch.Tensor]:
    """Layer -> s B A, multiplied out in float64."""
    tensors = {key.removeprefix(BASE): value.double() for key, value in weights.tensors.items()}
    return {
        name: factor * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        for name, factor in factors.items()
    }


@pytest.mark.parametrize("use_rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("rank", [1, 2, 4, 7, 15, 16, 64])
@pytest.mark.parametrize(("name", "task"), MODELS[1:4])
def test_an_adapter_cut_to_a_rank_is_the_svd_of_its_deltas(
    name: str, task: str, rank: int, use_rslora: bool, tmp_path: Path
) -> None:
    names = [layer.name for layer in layers_of(tiny(name, task))]
    saved = adapter(tmp_path / "trained", tiny(name, task), names, use_rslora=use_rslora, **uneven(names))
    before = deltas(saved, realised(loaded(saved, tmp_path / "a", tiny(name, task))))

    cut = as_rank(saved, rank)

    factors = realised(loaded(cut, tmp_path / "b", tiny(name, task)))
    assert set(factors.values()) == {1.0}
    assert cut.config["r"] <= rank
    shares, after = lost_share(saved, rank), deltas(cut, factors)
    for layer, delta in before.items():
        left, strength, right = torch.linalg.svd(delta, full_matrices=False)
        best = left[:, :rank] * strength[:rank] @ right[:rank]
        torch.testing.assert_close(after[layer], best, rtol=1e-5, atol=1e-6 * float(strength[0]))
        tail = float(strength[rank:].norm())
        assert float((after[layer] - delta).norm()) == pytest.approx(tail, rel=1e-5, abs=1e-6 * float(strength[0]))
        assert shares[layer] == pytest.approx(tail / float(strength.norm()), rel=1e-5, abs=1e-6)


def test_at_full_rank_nothing_is_cut(tmp_path: Path) -> None:
    names = [layer.name for layer in layers_of(tiny("llama", "causal-lm"))]
    saved = adapter(tmp_path / "trained", tiny("llama", "causal-lm"), names, use_rslora=True, **uneven(names))

    cut = as_rank(saved, 64)

    models = [loaded(one, tmp_path / f"{id(one)}", tiny("llama", "causal-lm")) for one in (saved, cut)]
    torch.testing.assert_close(logits(models[1]), logits(models[0]), rtol=1e-5, atol=1e-5)
    assert set(lost_share(saved, 64).values()) == {0.0}
    assert {key: value for key, value in saved.tensors.items() if "lora_A" in key}.keys() <= cut.tensors.keys()


def test_an_adapter_that_was_cut_has_a_serving_form(tmp_path: Path) -> None:
    layers = layers_of(tiny("bert", "classification"))
    names = [layer.name for layer in layers]
    saved = adapter(tmp_path / "trained", tiny("bert", "classification"), names, **uneven(names))
    cut = as_rank(saved, 5)

    serving = as_serving(cut, layers)

    models = [loaded(one, tmp_path / f"{id(one)}", tiny("bert", "classification")) for one in (cut, serving)]
    assert serving.config["r"] == 8
    torch.testing.assert_close(logits(models[1]), logits(models[0]), rtol=1e-5, atol=1e-5)


def test_an_untrained_adapter_loses_nothing(tmp_path: Path) -> None:
    saved = adapter(tmp_path, tiny("llama", "causal-lm"), ["q_proj"])
    zero = {key: value * 0 if "lora_B" in key else value for key, value in saved.tensors.items()}

    assert set(lost_share(dataclasses.replace(saved, tensors=zero), 1).values()) == {0.0}


def test_a_rank_below_one_and_dora_are_not_cut(tmp_path: Path) -> None:
    saved = adapter(tmp_path, tiny("llama", "causal-lm"), ["q_proj"], use_dora=True)

    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        as_rank(saved, 0)
    with pytest.raises(FormError, match="DoRA"):
        as_rank(saved, 2)


def test_an_adapter_is_read_as_it_was_written(tmp_path: Path) -> None:
    saved = adapter(tmp_path / "a", tiny("bert", "classification"), ["query"])

    write_adapter(saved, tmp_path / "b")

    again = read_adapter(tmp_path / "b")
    assert again.config == saved.config
    assert again.tensors.keys() == saved.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in saved.tensors.items())


def test_patterns_are_written_in_their_order_because_the_first_that_fits_counts(tmp_path: Path) -> None:
    saved = adapter(tmp_path / "a", tiny("llama", "causal-lm"), ["q_proj"])
    pattern = {"q_proj": 2, "1.self_attn.q_proj": 3}

    write_adapter(dataclasses.replace(saved, config={**saved.config, "rank_pattern": pattern}), tmp_path / "b")

    assert list(read_adapter(tmp_path / "b").config["rank_pattern"]) == list(pattern)


def test_pickles_and_broken_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({}))

    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors; .* from safetensors only"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ValueError, match="broken adapter"):
        read_adapter(tmp_path)


def test_what_is_no_lora_is_not_read(tmp_path: Path) -> None:
    adapter(tmp_path, tiny("llama", "causal-lm"), ["q_proj"])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))

    with pytest.raises(ValueError, match="peft_type must be LORA, got 'IA3'"):
        read_adapter(tmp_path)


def causal_case(folder: Path) -> tuple[SweepConfig, Any]:
    changes = causal_document(folder, {"model.quantization": "nf4", "model.compute_dtype": "bfloat16"})
    config = small_config(folder, {key: value for key, value in changes.items() if key != "name"})
    return config, AutoModelForCausalLM.from_pretrained


def classes_case(folder: Path) -> tuple[SweepConfig, Any]:
    config: Any = type(FAMILIES["bert"].config).from_dict({**FAMILIES["bert"].config.to_dict(), "num_labels": 10})
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder / "tiny-bert")
    tiny_tokenizer().save_pretrained(folder / "tiny-bert")
    changes = {"model.name": str(folder / "tiny-bert"), "model.quantization": "none"}
    return small_config(folder, changes), lambda path: AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=10
    )


@pytest.mark.parametrize("case", [causal_case, classes_case])
def test_a_merged_model_gives_what_base_and_adapter_give(case: Callable[..., Any], tmp_path: Path) -> None:
    config, load = case(tmp_path)
    names = [layer.name for layer in layers_of(load(config.model.name))]
    saved = adapter(tmp_path / "adapter", load(config.model.name), names, use_rslora=True, **uneven(names))

    merge(config, tmp_path / "adapter", tmp_path / "merged", torch.float32)

    was = loaded(saved, tmp_path / "again", load(config.model.name))
    now = load(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(now), logits(was), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(was), logits(load(config.model.name).eval()), atol=0.01)
    assert now.config.use_cache is load(config.model.name).config.use_cache is True
    assert sorted(path.suffix for path in (tmp_path / "merged").iterdir() if "model" in path.name) == [".safetensors"]
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_merged_model_is_written_in_the_dtype_asked_for(tmp_path: Path) -> None:
    config, load = causal_case(tmp_path)
    adapter(tmp_path / "adapter", load(config.model.name), ["q_proj"])

    merge(config, tmp_path / "adapter", tmp_path / "merged", torch.bfloat16)

    assert load(tmp_path / "merged").dtype is torch.bfloat16
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_weights_that_do_not_fit_the_dtype_are_refused(tmp_path: Path) -> None:
    config, load = causal_case(tmp_path)
    saved = adapter(tmp_path / "adapter", load(config.model.name), ["q_proj"])
    write_adapter(dataclasses.replace(saved, config={**saved.config, "lora_alpha": 1e8}), tmp_path / "adapter")

    with pytest.raises(ValueError, match=r"too large for torch.float16"):
        merge(config, tmp_path / "adapter", tmp_path / "merged", torch.float16)


def test_an_adapter_that_lacks_a_layer_is_not_merged(tmp_path: Path) -> None:
    config, load = causal_case(tmp_path)
    saved = adapter(tmp_path / "adapter", load(config.model.name), ["q_proj"])
    some = {key: value for key, value in saved.tensors.items() if "layers.1" not in key}
    write_adapter(dataclasses.replace(saved, tensors=some), tmp_path / "adapter")

    with pytest.raises(ValueError, match="does not fit the base"):
        merge(config, tmp_path / "adapter", tmp_path / "merged", torch.float32)
