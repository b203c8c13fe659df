"""Shallow models tell about deep ones; what is predicted is what the trial really is."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.architectures import FAMILIES, task_of
from tests.builders import make_config, make_lora, make_spec, make_workload
from tuner.config import ModelConfig
from tuner.gpus import GPUS
from tuner.layers import count_trainable
from tuner.lora import LoraSpec
from tuner.prediction import Method, Part, Phase, Prediction
from tuner.trial import Baseline
from tuner.vram.answering import UNTRACEABLE, Answerer, load_config, shipped_configs
from tuner.vram.build import build
from tuner.vram.predict import Case, predict
from tuner.worker.architecture import facts_of, skeleton
from tuner.workload import Generation, Logits, Padding, Question, question_about, workload_of

L4 = GPUS["L4-24GB"]
ANSWERER = Answerer()
BANDS = (("mlp@first", 4), ("mlp@middle", 8), ("q_proj", 32))


def question(
    model: str = "Llama-3.1-8B", *, pattern: Any = (), baseline: Baseline | None = None, **workload: Any
) -> Question:
    config = make_config(
        model={"name": f"org/{model}", "quantization": "nf4"},
        training={
            "task": "causal-lm",
            "max_steps": 120,
            "batch_size": 2,
            "gradient_checkpointing": True,
            "eval_batch_size": 4,
        },
        data={"max_length": 256},
    )
    lora = LoraSpec(r=16, lora_alpha=32.0, lora_dropout=0.0, target_modules=("all-linear",), rank_pattern=pattern)
    spec = make_spec(0, lora=lora, baseline=baseline)
    return question_about(spec, config, L4, dataclasses.replace(workload_of(config, L4), **workload))


def answer(asked: Question) -> Prediction:
    found = ANSWERER.answer(asked).prediction
    assert found is not None
    return found


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-7b"])
@pytest.mark.parametrize("pattern", [(), BANDS])
def test_a_few_blocks_tell_about_all(model: str, pattern: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**shipped_configs()[model], "num_hidden_layers": 17}), encoding="utf-8")
    asked = question(pattern=pattern)
    asked = dataclasses.replace(asked, model=asked.model.model_copy(update={"config": str(file)}))
    quick, whole = answer(asked), answer(dataclasses.replace(asked, is_whole=True))

    assert (quick.method, whole.method) == (Method.EXTRAPOLATED, Method.TRACE)
    assert quick.trainable_params == whole.trainable_params
    assert quick.phase is whole.phase
    assert quick.allocated_bytes == pytest.approx(whole.allocated_bytes, rel=0.01)
    assert quick.reserved_bytes == pytest.approx(whole.reserved_bytes, rel=0.1)


def test_the_parts_add_up_to_what_the_card_shows() -> None:
    found = answer(question())

    assert sum(dict(found.parts).values()) == found.total_bytes
    assert dict(found.parts)[Part.ADAPTERS] == 4 * found.trainable_params
    assert found.allocated_bytes == pytest.approx(max(dict(found.phases).values()), rel=0.01)


def test_the_same_question_gives_the_same_answer() -> None:
    asked = question("Mistral-7B-v0.3")
    first, second = (Answerer().answer(asked).prediction for _ in range(2))

    assert first is not None
    assert first == second


def test_only_what_was_loaded_has_bytes_as_loaded() -> None:
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4, vocab_size=64
    )
    workload = make_workload(dtype="bfloat16", quantization="nf4", upcast=True)
    built = build(config, "causal-lm", workload, make_lora(r=4, target_modules=("all-linear",)))
    loaded = {
        name: built.loaded_bytes[one] for name, one in built.model.named_parameters() if one in built.loaded_bytes
    }

    # the memory of a layer that was quantized may serve an adapter, which must not be taken for it
    assert not any(".lora_" in name for name in loaded)
    assert len(loaded) == sum(".lora_" not in name for name, _ in built.model.named_parameters())
    assert {size for name, size in loaded.items() if name.endswith("q_proj.base_layer.weight")} == {32 * 32 * 2}


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"tokens": 512, "learned_tokens": 1022}, Phase.BACKWARD),
        ({"gradient_checkpointing": False}, Phase.BACKWARD),
        ({"double_quantization": False}, Phase.OPTIMIZER),
        ({"upcast": True}, Phase.OPTIMIZER),
        ({"logits": Logits.KEPT}, Phase.FORWARD),
        ({"kv_cache": True, "logits": Logits.KEPT}, Phase.FORWARD),
        ({"attention": "eager", "gradient_checkpointing": False}, Phase.BACKWARD),
        ({"quantization": "none"}, Phase.OPTIMIZER),
        ({"has_accumulation": True}, Phase.FORWARD),
        ({"eval_tokens": 512, "eval_learned_tokens": 2044}, Phase.EVALUATION),
    ],
)
def test_a_setting_that_costs_memory_shows_where_it_does(change: dict[str, Any], grows: Phase) -> None:
    before, after = answer(question()), answer(question(**change))

    assert dict(after.phases)[grows] > dict(before.phases)[grows]


def test_adapters_in_the_compute_type_take_half() -> None:
    half = dict(answer(question(adapter_dtype="bfloat16", optimizer="adamw")).parts)[Part.ADAPTERS]

    assert half * 2 == dict(answer(question(optimizer="adamw")).parts)[Part.ADAPTERS]


@pytest.mark.parametrize(
    ("optimizer", "least", "most"),
    [("adamw", 8, 8.1), ("adamw_fused", 8, 8.1), ("adamw_8bit", 2, 2.2), ("paged_adamw_8bit", 0, 1)],
)
def test_the_optimizer_keeps_its_state(optimizer: str, least: float, most: float) -> None:
    found = answer(question(optimizer=optimizer, eval_batch_size=0))

    assert least <= dict(found.parts).get(Part.OPTIMIZER, 0) / found.trainable_params <= most


def test_generation_is_a_phase_with_its_cache() -> None:
    short, long = (
        answer(question(generation=Generation(batch_size=8, prompt_tokens=64, new_tokens=new))) for new in (64, 1024)
    )
    cache = 32 * 2 * 8 * 8 * 128 * 960 * 2  # layers, keys and values, rows, heads, width, tokens more, bytes

    assert dict(long.phases)[Phase.GENERATION] - dict(short.phases)[Phase.GENERATION] == pytest.approx(cache, rel=0.1)


def test_packed_and_padded_batches_take_the_kernel_with_a_mask() -> None:
    plain, padded, packed = (dict(answer(question(padding=padding)).phases)[Phase.BACKWARD] for padding in Padding)

    assert plain < padded
    assert plain < packed


def test_full_fine_tuning_keeps_sixteen_bytes_for_each_weight() -> None:
    found = answer(question(baseline=Baseline.FULL))

    assert found.trainable_params == pytest.approx(8.03e9, rel=0.001)
    assert dict(found.phases)[Phase.OPTIMIZER] > 16 * found.trainable_params


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_what_people_train_is_predicted_with_the_parameters_that_are_trained(name: str, quantization: str) -> None:
    task = task_of(FAMILIES[name])
    model = skeleton(copy.deepcopy(FAMILIES[name].config), task)
    lora = make_lora(r=4, target_modules=("all-linear",))
    workload = make_workload(
        tokens=16,
        learned_tokens=20 if task == "causal-lm" else 2,
        padding=Padding.PADDED,
        dtype="bfloat16",
        autocast=True,
        quantization=quantization,
        attention="auto",
        gradient_checkpointing=True,
        eval_batch_size=2,
        eval_tokens=16,
        eval_learned_tokens=20,
    )
    case = Case(config=model.config, task=task, lora=lora, baseline=None, workload=workload, gpu=L4)
    if name == "t5":
        with pytest.raises(UNTRACEABLE):  # its classifier looks for the end of each text, which takes data
            predict(case)
        return

    found = predict(case)

    assert found.trainable_params == count_trainable(facts_of(model), lora)
    assert {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER, Phase.EVALUATION} == {phase for phase, _ in found.phases}


def test_int8_is_refused_with_the_reason() -> None:
    assert "int8 can't be predicted" in ANSWERER.answer(question(quantization="int8")).problem


def test_a_model_that_is_nowhere_is_a_problem_and_no_crash(tmp_path: Any) -> None:
    missing = dataclasses.replace(question(), model=ModelConfig(name=str(tmp_path / "gone")))

    assert ANSWERER.answer(missing).problem


def test_a_configuration_is_found_by_name_by_file_and_by_folder(tmp_path: Any) -> None:
    named = load_config(ModelConfig(name="org/Llama-2-7b-hf"))
    (tmp_path / "config.json").write_text(named.to_json_string(), encoding="utf-8")
    by_file = load_config(ModelConfig(name="org/other", config=str(tmp_path / "config.json")))
    by_folder = load_config(ModelConfig(name=str(tmp_path)))

    assert named.intermediate_size == by_file.intermediate_size == by_folder.intermediate_size == 11008


@pytest.mark.parametrize(
    ("name", "num_params"),
    [
        ("llama-2-7b-hf", 6_738_415_616),
        ("llama-2-70b-hf", 68_976_648_192),
        ("llama-3.1-8b", 8_030_261_248),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_the_configurations_that_come_along_have_the_published_numbers_of_parameters(
    name: str, num_params: int
) -> None:
    assert name in shipped_configs()
    assert ANSWERER.facts(ModelConfig(name=f"org/{name}"), "causal-lm", 0).num_params == num_params


@pytest.mark.slow
def test_seven_billion_parameters_take_under_ten_seconds_and_under_three_by_depth() -> None:
    """The limits doubled: what else runs on the machine is not this test's."""
    asked = question("Llama-2-7b-hf")
    taken_s = []
    for is_whole in (False, True):
        start_s = time.perf_counter()
        Answerer().answer(dataclasses.replace(asked, is_whole=is_whole))
        taken_s.append(time.perf_counter() - start_s)

    assert taken_s[0] < 6
    assert taken_s[1] < 20
