"""The numbers behind a trial, each against a reference written by hand."""

from __future__ import annotations

import math
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from tests.architectures import FAMILIES, build_base
from tests.bases import CPU, tiny_base, tokens_of
from tests.builders import make_config, make_lora, make_spec
from tuner.lora import LoraSpec
from tuner.trial import Metric, Metrics
from tuner.worker import evaluation
from tuner.worker.adapters import Adapted, attach
from tuner.worker.batches import Batch, collate, collate_packed, evaluation_batches
from tuner.worker.beginning import FAMILIES as SHARING
from tuner.worker.beginning import is_shared
from tuner.worker.dense import without_copies
from tuner.worker.evaluation import (
    Choices,
    Evaluation,
    Examined,
    chosen_right,
    class_scores,
    completed,
    completion_scores,
    evaluate,
    forward,
    macro_f1,
    num_learned,
    summed_loss,
)
from tuner.worker.inspection import packing_problem
from tuner.worker.optimizer import parameter_groups
from tuner.worker.prepared import ScoringData, TrainingData
from tuner.worker.token_files import Ragged, Tokenized
from tuner.worker.training import TrialRun

Q_PROJ = "model.layers.0.self_attn.q_proj"


def with_random_b(adapted: Adapted) -> Adapted:
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.trainable().items():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return adapted


@pytest.mark.parametrize(
    ("lora", "factor"),
    [
        (make_lora(r=4, lora_alpha=8.0, target_modules=("q_proj",)), 8 / 4),
        (make_lora(r=4, lora_alpha=8.0, target_modules=("q_proj",), use_rslora=True), 8 / math.sqrt(4)),
        (make_lora(r=4, lora_alpha=8.0, target_modules=("q_proj",), rank_pattern=(("q_proj", 2),)), 8 / 4),
        (
            make_lora(r=4, lora_alpha=8.0, target_modules=("q_proj",), rank_pattern=(("q_proj", 2),), use_rslora=True),
            8 / math.sqrt(2),
        ),
    ],
    ids=["lora", "rslora", "lora with a rank of its own", "rslora with a rank of its own"],
)
def test_a_layer_gives_w_x_plus_the_scaled_b_a_x(lora: LoraSpec, factor: float) -> None:
    base = tiny_base()
    weight = base.model.get_parameter(f"{Q_PROJ}.weight").detach().clone()
    adapted = with_random_b(attach(base, lora, seed=0))
    layer: Any = adapted.model.get_submodule(f"base_model.model.{Q_PROJ}")
    x_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))

    got = layer(x_TD)

    a_RD, b_OR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(got, x_TD @ weight.T + factor * (x_TD @ a_RD.T) @ b_OR.T)


def test_dora_gives_the_direction_of_w_plus_b_a_at_the_learned_magnitude() -> None:
    base = tiny_base()
    weight = base.model.get_parameter(f"{Q_PROJ}.weight").detach().clone()
    adapted = with_random_b(attach(base, make_lora(r=4, lora_alpha=8.0, target_modules=("q_proj",), use_dora=True), 0))
    layer: Any = adapted.model.get_submodule(f"base_model.model.{Q_PROJ}")
    x_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))

    got = layer(x_TD)

    direction = weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = weight.norm(dim=1, keepdim=True)  # the base's own, before any training
    torch.testing.assert_close(got, x_TD @ (magnitude * direction / direction.norm(dim=1, keepdim=True)).T)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_causal])
def test_a_fresh_adapter_gives_the_base_output(name: str) -> None:
    base = build_base(FAMILIES[name], "causal-lm")
    ids_BT = torch.arange(3, 15)[None]
    base.model.eval()  # type: ignore[no-untyped-call]
    expected = base.model(input_ids=ids_BT).logits

    adapted = attach(base, make_lora(target_modules=("all-linear",)), seed=0)
    adapted.model.eval()

    torch.testing.assert_close(adapted.model(input_ids=ids_BT).logits, expected)


@pytest.mark.parametrize("is_double", [False, True])
def test_an_nf4_round_trip_stays_within_half_the_widest_gap_of_its_levels(is_double: bool) -> None:
    # The levels of QLoRA (arXiv 2305.14314, appendix E): the widest gap is from -1 to -0.6962.
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=is_double)
    back = bnb.dequantize_4bit(packed, state)

    error = (back - weight).abs().view(-1, 64).amax(1) / weight.abs().view(-1, 64).amax(1)

    # double quantization rounds the blocks' scales to 8 bits
    assert error.max() <= (1 - 0.6961928) / 2 + (0.02 if is_double else 1e-6)
    assert error.max() > 0.1


def test_the_loss_is_the_mean_over_completion_tokens_masked_by_hand() -> None:
    base, data = tiny_base(), tokens_of([(5, 3), (2, 6), (9, 1)])
    batch = collate(data, [0, 1, 2], pad_id=0, device=CPU)

    loss = summed_loss(forward(base, base.model, batch), batch.labels) / num_learned(batch)

    by_hand = []
    for index, (prompt, completion) in enumerate([(5, 3), (2, 6), (9, 1)]):
        ids_T = torch.tensor(data.input_ids[index].astype("int64"))
        log_TV = log_softmax(base.model(input_ids=ids_T[None]).logits[0].double(), -1)
        by_hand += [-log_TV[at - 1, ids_T[at]] for at in range(prompt, prompt + completion)]
    torch.testing.assert_close(loss.double(), torch.stack(by_hand).mean(), rtol=1e-5, atol=1e-6)
    assert num_learned(batch) == 10


def losses_and_gradients(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    base = tiny_base()
    adapted = with_random_b(attach(base, make_lora(target_modules=("all-linear",)), seed=0))
    adapted.model.eval()
    loss = summed_loss(forward(base, adapted.model, batch), batch.labels) / num_learned(batch)
    grads = torch.autograd.grad(loss, list(adapted.trainable().values()))
    return loss.detach(), torch.cat([grad.flatten() for grad in grads])


def test_packing_gives_the_same_loss_and_gradient_as_not_packing() -> None:
    data = tokens_of([(5, 3), (2, 6), (9, 1), (4, 4), (1, 2)])
    padded = collate(data, range(5), pad_id=0, device=CPU)
    packed = collate_packed(data, range(5), capacity=16, pad_id=0, device=CPU)

    assert packed.input_ids_BT.numel() < padded.input_ids_BT.numel()
    assert packed.num_tokens == padded.num_tokens == 37
    for got, expected in zip(losses_and_gradients(packed), losses_and_gradients(padded), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_causal])
def test_logits_of_what_is_learned_are_those_of_a_whole_pass(name: str) -> None:
    base = build_base(FAMILIES[name], "causal-lm")
    batch = collate(tokens_of([(5, 3), (2, 6), (4, 4)]), range(3), pad_id=0, device=CPU)
    base.model.eval()  # type: ignore[no-untyped-call]

    logits_NV = forward(base, base.model, batch)

    whole_BTV = base.model(**batch.inputs()).logits
    assert logits_NV.shape == (13, whole_BTV.shape[-1])
    torch.testing.assert_close(logits_NV, whole_BTV.flatten(0, 1)[batch.places_N], rtol=1e-5, atol=1e-6)


def beginning_alike(num_common: int) -> Batch:
    """Three texts that begin with the same tokens."""
    data = tokens_of([(9, 1), (10, 2), (9, 3)])
    for index in range(1, 3):
        data.input_ids[index][:num_common] = data.input_ids[0][:num_common]
    batch = collate(data, range(3), pad_id=0, device=CPU)
    assert batch.num_common == num_common
    return batch


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_causal])
def test_a_common_beginning_that_is_computed_once_changes_neither_loss_nor_gradient(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, found = build_base(FAMILIES[name], "causal-lm"), []
    batch = beginning_alike(8)
    adapted = with_random_b(attach(base, make_lora(target_modules=("all-linear",)), seed=0))
    adapted.model.eval()
    is_tried = is_shared(base, adapted.model, batch)

    for is_asked in (False, True):
        monkeypatch.setattr(evaluation, "is_shared", lambda *_, shares=is_asked: shares)
        if is_asked and not is_tried:
            continue
        loss = summed_loss(forward(base, adapted.model, batch), batch.labels)
        grads = torch.autograd.grad(loss, list(adapted.trainable().values()))
        found.append((loss.detach(), torch.cat([grad.flatten() for grad in grads])))

    assert is_tried is (base.model.config.model_type in SHARING)
    assert is_tried is (name not in {"opt", "falcon", "bloom"})
    for one, other in zip(found[0], found[-1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_beginning_is_not_shared_where_it_would_not_pay_or_not_be_the_same() -> None:
    batch = beginning_alike(8)
    plain, dropping = (
        attach(tiny_base(), make_lora(target_modules=("q_proj",), lora_dropout=p), seed=0).model for p in (0.0, 0.1)
    )
    base = tiny_base()

    assert is_shared(base, plain.train(), batch)
    assert is_shared(base, dropping.eval(), batch)
    assert not is_shared(base, dropping.train(), batch)
    assert not is_shared(base, plain, beginning_alike(1))
    with without_copies():
        assert not is_shared(base, plain, batch)


def test_what_is_learned_is_never_in_the_common_beginning() -> None:
    alike = tokens_of([(4, 3), (4, 3)])
    alike.input_ids[1][:] = alike.input_ids[0][:]

    assert (
        collate(alike, range(2), pad_id=0, device=CPU).num_common == 3
    )  # the fourth predicts the first that is learned


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.is_causal])
def test_packing_is_right_or_refused_on_every_architecture(name: str) -> None:
    base = build_base(FAMILIES[name], "causal-lm")
    data = tokens_of([(5, 3), (2, 6), (4, 4)])
    batches = (
        collate_packed(data, range(3), capacity=24, pad_id=0, device=CPU),
        collate(data, range(3), pad_id=0, device=CPU),
    )
    base.model.eval()  # type: ignore[no-untyped-call]
    packed, padded = (float(summed_loss(forward(base, base.model, batch), batch.labels)) for batch in batches)

    is_right = packed == pytest.approx(padded, rel=1e-5)
    assert (packing_problem(base.model.config) is None) is is_right
    assert is_right is (name not in {"opt", "falcon", "bloom"})


def tiny_run(num_accumulated: int = 1, batch_size: int = 4, **training: object) -> TrialRun:
    config = make_config(
        training={
            "task": "causal-lm",
            "max_steps": 20,
            "batch_size": batch_size,
            "gradient_accumulation_steps": num_accumulated,
            **training,
        },
        pruning={"method": "none"},
    )
    base, train = tiny_base(), tokens_of([(3 + index % 5, 1 + index % 3) for index in range(24)])
    validation = evaluation_batches(tokens_of([(4, 2)] * 4, seed=1), batch_size=4, pad_id=0, device=CPU)
    scoring = ScoringData(batches=validation, order=np.arange(4))
    data = TrainingData(train=train, validation=scoring, sample=None, build_test=lambda: scoring, capacity=None)
    lora = make_lora(r=4, lora_alpha=8.0, target_modules=("all-linear",), lora_dropout=0.1)
    return TrialRun(base, data, make_spec(0, lora=lora, learning_rate=5e-3), config)


PINNED = (3.9702444, 3.5209086)
"""Loss before step 1 and before step 20 of the run below (torch 2.13, CPU)."""


def test_twenty_steps_on_a_tiny_llama_give_the_losses_that_they_always_gave() -> None:
    run = tiny_run()

    losses = [run.step().loss for _ in range(20)]

    assert (losses[0], losses[-1]) == pytest.approx(PINNED, rel=1e-4)


def test_accumulated_batches_give_the_step_of_one_large_batch() -> None:
    large, small = tiny_run(batch_size=8), tiny_run(num_accumulated=2, batch_size=4)
    for run in (large, small):
        run.adapted.model.eval()  # dropout is drawn by batch
    small._order.at = lambda index: large._order.at(index // 2)[index % 2 * 4 :][:4]  # type: ignore[method-assign]

    losses = [(large.step().loss, small.step().loss) for _ in range(3)]

    assert all(one == pytest.approx(other, rel=1e-5) for one, other in losses)


def test_checkpointing_changes_no_loss() -> None:
    plain, saving = tiny_run(), tiny_run(gradient_checkpointing=True)

    assert [saving.step().loss for _ in range(3)] == pytest.approx([plain.step().loss for _ in range(3)], rel=1e-6)


def test_b_learns_at_its_own_rate_and_biases_do_not_decay() -> None:
    adapted = attach(tiny_base(), make_lora(r=2, target_modules=("q_proj",), use_dora=True), seed=0)
    spec = make_spec(0, learning_rate=1e-3, lora_plus_ratio=16.0, weight_decay=0.1)

    groups = parameter_groups(adapted.model, spec)

    found = {(group["lr"], group["weight_decay"]): {p.shape for p in group["params"]} for group in groups}
    assert found == {
        (1e-3, 0.1): {torch.Size([2, 64])},
        (1.6e-2, 0.1): {torch.Size([64, 2])},
        (1e-3, 0.0): {torch.Size([64])},  # DoRA's magnitudes
    }


def test_exact_match_is_what_greedy_generation_gives() -> None:
    run = tiny_run()
    for _ in range(20):  # random weights never repeat a completion
        run.step()
    base, model = run._base, run.adapted.model
    model.eval()
    generate: Any = model.generate
    base.model.generation_config.eos_token_id = None  # it shall write two tokens, whatever they are
    prompts = [(6, 2)] * 40
    data = tokens_of(prompts, seed=5)
    rows, half = [], len(data) // 2
    with torch.no_grad():
        for index in range(len(data)):
            prompt = torch.tensor(data.input_ids[index][:6].astype("int64"))[None]
            written = generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2, do_sample=False
            )[0].tolist()
            rows.append(written if index < half else [*written[:7], (written[7] + 1) % 50])
    masks = [[False] * 6 + [True] * 2] * len(rows)
    tokenized = Tokenized(input_ids=Ragged.of(rows, np.int32), is_target=Ragged.of(masks, np.bool_))

    scored = evaluate(base, model, evaluation_batches(tokenized, batch_size=7, pad_id=0, device=CPU))

    assert scored.scores[Metric.EXACT_MATCH].value == 0.5
    assert scored.scores[Metric.TOKEN_ACCURACY].value == 0.75


def test_completion_metrics_are_ratios_over_tokens_with_errors_over_examples() -> None:
    examined = Examined(nll=np.array([1.0, 4.0]), num_tokens=np.array([1.0, 3.0]), num_right=np.array([1.0, 1.0]))

    scores = completion_scores(examined)

    assert scores[Metric.EXACT_MATCH].value == 0.5
    assert scores[Metric.TOKEN_ACCURACY].value == 0.5
    assert scores[Metric.PERPLEXITY].value == pytest.approx(math.exp(5 / 4))
    # residuals of the token accuracy: 1 - 0.5 and 1 - 1.5
    assert scores[Metric.TOKEN_ACCURACY].standard_error == pytest.approx(math.sqrt(0.25 + 0.25) / 4)


def test_resamples_are_the_same_draws_for_every_trial_so_that_differences_are_paired() -> None:
    draw = np.random.default_rng(1)
    right = draw.integers(2, size=400).astype(np.float64)
    better = right.copy()
    better[np.flatnonzero(right == 0)[:20]] = 1.0  # right wherever the other is, and on twenty more
    one, other = (_of_hits(hits).resampled(Metric.EXACT_MATCH, np.arange(len(hits))) for hits in (right, better))

    assert len(one) == 1000
    assert all(b >= a for a, b in zip(one, other, strict=True))
    assert np.std(one) == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / 400), rel=0.1)


def test_resamples_do_not_depend_on_the_order_in_which_examples_were_scored() -> None:
    hits = np.random.default_rng(2).integers(2, size=50).astype(np.float64)
    order = np.random.default_rng(3).permutation(50)

    shuffled = _of_hits(hits[order]).resampled(Metric.EXACT_MATCH, order)

    assert shuffled == _of_hits(hits).resampled(Metric.EXACT_MATCH, np.arange(50))


def test_a_single_example_can_be_resampled() -> None:
    assert set(_of_hits(np.ones(1)).resampled(Metric.EXACT_MATCH, np.arange(1))) == {1.0}


def _of_hits(hits: npt.NDArray[np.float64]) -> Evaluation:
    examined = Examined(nll=np.ones(len(hits)), num_tokens=np.ones(len(hits)), num_right=hits)
    return completed(examined, None)


def test_the_likeliest_choice_is_found_whatever_the_order_of_the_batches() -> None:
    choices = Choices(
        batches=(),
        order=np.array([2, 0, 3, 1]),
        example=np.array([0, 0, 1, 1]),
        is_right=np.array([True, False, False, True]),
    )
    nll = {0: 1.0, 1: 2.0, 2: 1.0, 3: 5.0}  # by alternative: right for example 0, wrong for example 1
    examined = Examined(nll=np.array([nll[at] for at in (2, 0, 3, 1)]), num_tokens=np.ones(4), num_right=np.ones(4))

    assert chosen_right(examined, choices).mean() == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_the_mean_of_the_classes_harmonic_means(seed: int) -> None:
    draw = np.random.default_rng(seed)
    right, predicted = draw.integers(4, size=60), draw.integers(5, size=60)

    by_class = []
    for label in set(right.tolist()):
        hits = ((predicted == label) & (right == label)).sum()
        precision = hits / max(1, (predicted == label).sum())
        recall = hits / (right == label).sum()
        by_class.append(2 * precision * recall / max(1e-12, precision + recall))

    assert macro_f1(predicted, right) == pytest.approx(np.mean(by_class))
    assert class_scores(predicted, right)[Metric.ACCURACY].value == np.mean(predicted == right)


def test_a_batch_of_classes_is_scored_by_its_likeliest_class() -> None:
    logits_BC, labels_B = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])

    assert float(summed_loss(logits_BC, labels_B)) == pytest.approx(float(cross_entropy(logits_BC, labels_B)) * 2)


def test_reported_metrics_hold_the_objective_and_the_others() -> None:
    run = tiny_run()

    metrics = run.advance(2)

    assert isinstance(metrics, Metrics)
    assert dict(metrics.others).keys() == {"token_accuracy", "perplexity"}
    assert dict(metrics.others)["perplexity"] == pytest.approx(math.exp(metrics.loss))
