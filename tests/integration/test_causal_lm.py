"""Causal language models through a real worker: quantization, starts, metrics, restarts, baselines, exports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.builders import make_lora, make_spec
from tests.models import causal_document
from tuner.config import ModelConfig, SweepConfig
from tuner.layers import count_trainable
from tuner.lora import Bias, Init, LoraSpec
from tuner.trial import Baseline, Interruption, Metrics, Outcome, TrialSpec
from tuner.worker.adapters import attach
from tuner.worker.evaluation import evaluate
from tuner.worker.host import BaseSpec, Loaded, Worker, load
from tuner.worker.inspection import inspect_sweep
from tuner.worker.model import load_base, load_weights
from tuner.worker.starts import lora_layers
from tuner.worker.training import TrialRun

CPU = torch.device("cpu")
ALL = ("all-linear",)
PLAIN = make_lora(r=4, lora_alpha=8.0, target_modules=ALL, lora_dropout=0.1)


def causal_config(folder: Path, changes: dict[str, Any] | None = None) -> SweepConfig:
    return SweepConfig.model_validate(causal_document(folder, changes))


def run_trial(worker: Worker, spec: TrialSpec) -> list[Metrics | Outcome]:
    worker.start(spec)
    results: list[Metrics | Outcome] = []
    while not results or (isinstance(results[-1], Metrics) and results[-1].steps not in {0, 8}):
        result = worker.advance()
        assert not isinstance(result, Interruption)
        results.append(dataclasses.replace(result, train_s=0.0, span=None) if isinstance(result, Metrics) else result)
    return results


def last_of(worker: Worker, spec: TrialSpec) -> Metrics:
    result = run_trial(worker, spec)[-1]
    assert isinstance(result, Metrics), result
    return result


def bytes_of(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("quantization", ["none", "nf4", "fp4", "int8"])
def test_frozen_weights_get_no_gradient_and_are_bit_identical_after_training(tmp_path: Path, quantization: str) -> None:
    config = causal_config(tmp_path, {"model.quantization": quantization})
    loaded = load(config, BaseSpec(config=config.model))
    before = bytes_of(loaded.base.model)

    run = TrialRun(loaded.base, loaded.data, make_spec(0, lora=PLAIN), config)
    first, last = run.step().loss, [run.step().loss for _ in range(7)][-1]
    frozen = [parameter for parameter in run.adapted.model.parameters() if not parameter.requires_grad]
    run.close()

    assert last < first
    assert frozen
    assert all(parameter.grad is None for parameter in frozen)
    assert bytes_of(loaded.base.model) == before


KINDS = {
    "dora": ("nf4", make_lora(target_modules=ALL, use_dora=True)),
    "lora on int8": ("int8", make_lora(target_modules=ALL)),
    "rslora": ("nf4", make_lora(target_modules=ALL, use_rslora=True, rank_pattern=(("mlp", 2),))),
    "gaussian": ("nf4", make_lora(target_modules=ALL, init_lora_weights=Init.GAUSSIAN)),
    "eva": ("nf4", make_lora(r=4, target_modules=ALL, init_lora_weights=Init.EVA, rank_pattern=(("mlp@last", 2),))),
    "loftq": ("nf4", make_lora(target_modules=ALL, init_lora_weights=Init.LOFTQ)),
    "loftq on fp4": ("fp4", make_lora(target_modules=ALL, init_lora_weights=Init.LOFTQ)),
    "pissa": ("none", make_lora(target_modules=ALL, init_lora_weights=Init.PISSA, rank_pattern=(("mlp", 2),))),
    "olora": ("none", make_lora(target_modules=ALL, init_lora_weights=Init.OLORA)),
    "every bias": ("nf4", make_lora(target_modules=ALL, bias=Bias.ALL)),
    "ranks by depth": ("nf4", make_lora(target_modules=ALL, rank_pattern=(("first", 0), ("q_proj@last", 3)))),
}


@pytest.mark.parametrize(("quantization", "lora"), KINDS.values(), ids=KINDS)
def test_every_kind_of_adapter_trains_as_counted_and_leaves_the_base_as_it_was(
    tmp_path: Path, quantization: str, lora: LoraSpec
) -> None:
    config = causal_config(tmp_path, {"model.quantization": quantization})
    worker = Worker(config, tmp_path)
    plain = last_of(worker, make_spec(0, lora=PLAIN))
    facts = inspect_sweep(config).model

    metrics = last_of(worker, make_spec(1, lora=lora))

    assert metrics.trainable_params == count_trainable(facts, lora)
    assert last_of(worker, make_spec(2, lora=PLAIN)) == plain


@pytest.mark.parametrize(("quantization", "lora"), KINDS.values(), ids=KINDS)
def test_every_kind_of_adapter_scores_the_same_when_it_is_loaded_on_the_untouched_base(
    tmp_path: Path, quantization: str, lora: LoraSpec
) -> None:
    if lora.bias is not Bias.NONE:
        pytest.skip("the tiny Llama has no biases")
    exact = {"model.compute_dtype": "float32", "objectives.accuracy": "perplexity"}
    config = causal_config(tmp_path, {"model.quantization": quantization, **exact})
    metrics = last_of(Worker(config, tmp_path), make_spec(0, lora=lora, learning_rate=1e-2))

    loaded = load(config, BaseSpec(config=config.model))
    saved = tmp_path / "checkpoints" / "trial-0000" / "step-000008" / "adapter"
    again = evaluate(
        loaded.base, PeftModel.from_pretrained(loaded.base.model, str(saved)), loaded.data.validation.batches
    )

    assert again.scores[config.metric].value == pytest.approx(metrics.accuracy, rel=1e-4)


def loaded_with(folder: Path, changes: dict[str, Any]) -> tuple[SweepConfig, Loaded]:
    config = causal_config(folder, changes)
    return config, load(config, BaseSpec(config=config.model))


def test_loftq_starts_nearer_to_the_unquantized_weights(tmp_path: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    _, loaded = loaded_with(tmp_path, {})
    weights = load_weights(loaded.base)
    adapted = attach(loaded.base, make_lora(r=8, target_modules=ALL, init_lora_weights=Init.LOFTQ), seed=0)

    for name, layer in lora_layers(adapted.model).items():
        stored = layer.get_base_layer().weight
        lost = weights[name.removeprefix("base_model.model.")] - dequantize_4bit(stored.data, stored.quant_state)
        assert (lost - layer.get_delta_weight("default")).norm() < 0.9 * lost.norm()
    adapted.detach()


def test_eva_starts_from_directions_in_which_the_inputs_vary(tmp_path: Path) -> None:
    config, loaded = loaded_with(tmp_path, {"model.compute_dtype": "float32"})
    lora = make_lora(r=4, target_modules=("q_proj",), init_lora_weights=Init.EVA)
    run = TrialRun(loaded.base, loaded.data, make_spec(0, lora=lora), config)
    layer: Any = run.adapted.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, -2)))
    run.step()

    inputs_ND = torch.cat(seen)
    a_RD = layer.lora_A["default"].weight.detach()
    fresh = torch.nn.functional.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    explained = (inputs_ND @ torch.nn.functional.normalize(a_RD, dim=1).T).square().sum()
    assert explained > 2 * (inputs_ND @ fresh.T).square().sum()
    run.close()


def test_a_trial_goes_on_from_its_last_rung_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = causal_config(tmp_path)
    spec = make_spec(0, lora=PLAIN)
    alone = run_trial(Worker(config, None), spec)
    first = Worker(config, tmp_path)
    first.start(spec)
    first.advance()

    assert run_trial(Worker(config, tmp_path), spec) == alone


def test_packing_changes_no_result(tmp_path: Path) -> None:
    # without dropout, whose masks follow the layout
    spec = make_spec(0, lora=make_lora(r=4, target_modules=ALL), learning_rate=1e-2)
    plain = last_of(Worker(causal_config(tmp_path), None), spec)

    packed = last_of(Worker(causal_config(tmp_path, {"training.packing": True}), None), spec)

    assert packed.tokens == plain.tokens
    assert packed.loss == pytest.approx(plain.loss, rel=1e-3)


def test_choice_accuracy_picks_the_likeliest_of_all_completions(tmp_path: Path) -> None:
    config = causal_config(tmp_path, {"objectives.accuracy": "choice_accuracy", "training.max_steps": 8})
    spec = make_spec(0, lora=make_lora(r=8, target_modules=ALL), learning_rate=2e-2)

    metrics = last_of(Worker(config, None), spec)

    exact = dict(metrics.others)["exact_match"]
    assert metrics.accuracy >= exact  # what greedy decoding writes is the likeliest of these one-letter completions
    assert 0 <= metrics.standard_error < 0.13


def test_baselines_measure_what_they_are_named_for(tmp_path: Path) -> None:
    config = causal_config(tmp_path, {"objectives.accuracy": "perplexity"})
    worker, facts = Worker(config, None), inspect_sweep(config).model
    plain = last_of(worker, make_spec(0, lora=PLAIN))

    zero = last_of(worker, make_spec(-1, lora=None, baseline=Baseline.ZERO_SHOT, learning_rate=0.0))
    full = last_of(worker, make_spec(-2, lora=None, baseline=Baseline.FULL, learning_rate=3e-3))
    unquantized = last_of(worker, make_spec(-3, lora=PLAIN, baseline=Baseline.UNQUANTIZED_LORA))

    assert (zero.steps, zero.trainable_params) == (0, 0)
    assert full.trainable_params == facts.num_params
    assert full.accuracy < zero.accuracy
    assert full.peak_memory_bytes > unquantized.peak_memory_bytes > plain.peak_memory_bytes > zero.peak_memory_bytes
    assert last_of(worker, make_spec(1, lora=PLAIN)) == plain


def test_a_pissa_adapter_is_saved_as_plain_lora_of_twice_the_rank(tmp_path: Path) -> None:
    config = causal_config(tmp_path, {"model.quantization": "none"})
    lora = make_lora(r=4, lora_alpha=8.0, target_modules=ALL, init_lora_weights=Init.PISSA, rank_pattern=(("mlp", 2),))
    run_trial(Worker(config, tmp_path), make_spec(0, lora=lora))

    saved = json.loads((tmp_path / "checkpoints/trial-0000/step-000008/adapter/adapter_config.json").read_text())

    assert (saved["r"], saved["lora_alpha"], saved["init_lora_weights"]) == (8, 16, True)
    assert set(saved["rank_pattern"].values()) == {4}


def test_a_loaded_pissa_adapter_gives_the_output_that_was_trained(tmp_path: Path) -> None:
    config, loaded = loaded_with(tmp_path, {"model.quantization": "none"})
    lora = make_lora(r=4, target_modules=ALL, init_lora_weights=Init.PISSA, use_rslora=True)
    run = TrialRun(loaded.base, loaded.data, make_spec(0, lora=lora, learning_rate=1e-2), config)
    run.advance(8)
    trained = evaluate(loaded.base, run.adapted.model, loaded.data.validation.batches).loss
    run.adapted.save(tmp_path / "adapter")
    run.close()

    model = PeftModel.from_pretrained(loaded.base.model, str(tmp_path / "adapter"))

    assert evaluate(loaded.base, model, loaded.data.validation.batches).loss == pytest.approx(trained, rel=1e-4)


def test_a_base_without_safetensors_is_refused_unless_pickles_are_allowed(tmp_path: Path) -> None:
    config = causal_config(tmp_path)
    folder = Path(config.model.name)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    allowed = ModelConfig(name=str(folder), allow_pickle=True, quantization="none")

    problems = dict(inspect_sweep(config).problems)

    assert "model.allow_pickle" in problems["model.name"]
    assert load_base(allowed, "causal-lm", (), CPU).model.num_parameters() > 0


def test_a_decoder_classifies_by_its_last_real_token(tmp_path: Path) -> None:
    rows = "".join(
        json.dumps({"text": "ab"[at % 2] * (1 + at % 7) + f" {at}", "label": "ab"[at % 2]}) + "\n" for at in range(60)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    changes = {
        "data": {"path": str(tmp_path / "rows.jsonl"), "max_length": 16, "validation": 20},
        "training": {"max_steps": 8, "batch_size": 8},
        "objectives.accuracy": "macro_f1",
    }
    config = causal_config(tmp_path, changes)
    spec = make_spec(0, lora=make_lora(r=8, target_modules=ALL), learning_rate=2e-2)

    metrics = last_of(Worker(config, None), spec)

    assert metrics.accuracy > 0.9
    assert dict(metrics.others).keys() == {"accuracy"}


def test_a_rank_that_a_decomposition_cannot_give_fails_and_is_refused_beforehand(tmp_path: Path) -> None:
    from tuner.space import space_problems

    config = causal_config(tmp_path, {"model.quantization": "none"})
    lora = make_lora(r=512, target_modules=ALL, init_lora_weights=Init.PISSA)
    space = config.search.space.model_copy(update={"r": 512, "init_lora_weights": "pissa"})

    failed = run_trial(Worker(config, None), make_spec(0, lora=lora))[-1]

    assert isinstance(failed, Outcome)
    assert "PEFT built ranks" in failed.detail
    problems = dict(space_problems(space, inspect_sweep(config).model))
    assert "pissa start from at most 64 directions" in problems["search.space.init_lora_weights"]


def test_eva_refuses_a_rank_above_the_tokens_of_every_batch(tmp_path: Path) -> None:
    config = causal_config(tmp_path, {"training.batch_size": 1, "training.max_steps": 8})
    lora = make_lora(r=48, target_modules=ALL, init_lora_weights=Init.EVA)

    failed = run_trial(Worker(config, None), make_spec(0, lora=lora))[-1]

    assert isinstance(failed, Outcome)
    assert "no batch has as many tokens as the largest rank (48)" in failed.detail


def test_nothing_of_checkpointing_stays_on_the_base(tmp_path: Path) -> None:
    config, loaded = loaded_with(tmp_path, {"training.gradient_checkpointing": True})
    embedding = loaded.base.model.get_input_embeddings()

    for number in range(3):
        run = TrialRun(loaded.base, loaded.data, make_spec(number, lora=PLAIN), config)
        run.advance(2)
        run.close()

    assert not embedding._forward_hooks
    assert not loaded.base.model.is_gradient_checkpointing


def test_packing_is_refused_before_anything_is_trained_where_borders_are_not_kept(tmp_path: Path) -> None:
    import transformers as hf

    config = causal_config(tmp_path, {"training.packing": True})
    folder = Path(config.model.name)
    sizes: dict[str, Any] = {
        "vocab_size": 53,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
    }
    hf.OPTForCausalLM(hf.OPTConfig(**sizes, word_embed_proj_dim=64)).save_pretrained(folder)

    problems = dict(inspect_sweep(config).problems)

    assert "packed examples of a opt see each other" in problems["training.packing"]


def test_full_fine_tuning_starts_from_the_same_fresh_head_as_the_trials(tmp_path: Path) -> None:
    from tests.architectures import FAMILIES, build_base
    from tuner.worker.adapters import attach_nothing

    heads = [
        adapted.base.model.get_parameter("score.weight").detach().clone()
        for adapted in (
            attach_nothing(build_base(FAMILIES["llama"], "classification"), seed=5),
            attach(build_base(FAMILIES["llama"], "classification"), None, seed=5),
        )
    ]

    assert torch.equal(*heads)
