"""Trials that make their steps together have the losses, gradients and weights that each has alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.architectures import FAMILIES, build_base, task_of
from tests.bases import CPU, tiny_base, tokens_of
from tests.builders import make_config, make_lora, make_spec
from tests.real_steps import Setup, base_of, llama, measured
from tuner.worker.architecture import layers_of
from tuner.worker.batches import evaluation_batches
from tuner.worker.calibration import best_size
from tuner.worker.lockstep import Lockstep
from tuner.worker.memory import StepPeak, resident_bytes
from tuner.worker.model import BaseModel
from tuner.worker.prepared import ScoringData, TrainingData
from tuner.worker.stepping import Stepped
from tuner.worker.streams import Streams
from tuner.worker.token_files import Tokenized
from tuner.worker.training import TrialRun
from tuner.worker.twin import twin_of

DRAWS_BESIDE_ITS_MODULES = {"opt", "falcon"}
"""Their dropout is a function call in a block, which no trial can have of its own."""
ROWS_ARE_NOT_EXAMPLES = {"deberta", "deberta-v2"}
"""Their layers also see what is no row of the batch: positions."""


def three_runs(
    base: BaseModel, task: str = "causal-lm", capacity: int | None = None, **training: Any
) -> list[TrialRun]:
    """Trials with other ranks, targets, dropouts and rates, at other steps."""
    config = make_config(
        training={"task": task, "max_steps": 20, "batch_size": 3, **training}, pruning={"method": "none"}
    )
    train = tokens_of([(3 + index % 5, 1 + index % 3) for index in range(24)])
    if task == "classification":
        train = Tokenized(input_ids=train.input_ids, class_ids=np.arange(24) % 3, is_target=None)
    scoring = ScoringData(batches=evaluation_batches(train, batch_size=8, pad_id=0, device=CPU), order=np.arange(24))
    data = TrainingData(train=train, validation=scoring, sample=None, build_test=lambda: scoring, capacity=capacity)
    names = [layer.name for layer in layers_of(base.model)]
    runs = [TrialRun(twin_of(base), data, _spec(number, names), config) for number in range(3)]
    for number, run in enumerate(runs):
        run.adapted.model.train()
        for _ in range(number):
            run.step()
    return runs


def _spec(number: int, names: list[str], rate: float = 5e-3) -> Any:
    lora = make_lora(
        r=number + 2, lora_alpha=7.0, lora_dropout=0.1 * number, target_modules=tuple(names[number :: number + 1])
    )
    return make_spec(number, lora=lora, learning_rate=rate)


def together(base: BaseModel, runs: list[TrialRun], num_steps: int = 4, **options: bool) -> list[list[Stepped]]:
    lockstep = Lockstep(
        base, is_checkpointed=options.get("is_checkpointed", False), is_stacked=options.get("is_stacked", False)
    )
    return [lockstep.step(runs) for _ in range(num_steps)]


def require_same(alone: list[TrialRun], steps: list[list[Stepped]], runs: list[TrialRun]) -> None:
    """Loss to 1e-5, weights to 1e-4 of their size."""
    for index, run in enumerate(alone):
        losses = [run.step().loss for _ in steps]
        assert [step[index].loss for step in steps] == pytest.approx(losses, abs=1e-5)
        for mine, other in zip(runs[index].trainable, run.trainable, strict=True):
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
@pytest.mark.parametrize("name", FAMILIES)
def test_architectures_compute_together_or_are_found_not_to(name: str, task: str) -> None:
    family = FAMILIES[name]
    if (
        not layers_of(build_base(family, task_of(family)).model)
        or name == "t5"
        or (task != task_of(family) and not family.is_causal)
    ):
        pytest.skip("trains no such trial")
    base = dataclasses.replace(build_base(family, task), tokenizer=type("Tokenizer", (), {"pad_token_id": 0})())
    base.model.config.pad_token_id = 0

    agrees = Lockstep(base, is_checkpointed=False).agrees(three_runs(base, task))

    assert agrees is (name not in DRAWS_BESIDE_ITS_MODULES | ROWS_ARE_NOT_EXAMPLES)


@pytest.mark.parametrize("is_stacked", [False, True])
@pytest.mark.parametrize(
    "training", [{}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True}, {"packing": True}]
)
def test_each_trial_trains_as_alone(training: dict[str, Any], is_stacked: bool) -> None:
    base, capacity = tiny_base(), 16 if training.get("packing") else None
    alone, runs = (three_runs(base, capacity=capacity, **training) for _ in range(2))

    steps = together(base, runs, is_checkpointed="gradient_checkpointing" in training, is_stacked=is_stacked)

    require_same(alone, steps, runs)


@pytest.mark.parametrize("is_stacked", [False, True])
def test_dropout_of_attention_and_blocks_is_drawn_as_alone(is_stacked: bool) -> None:
    base = dataclasses.replace(
        build_base(FAMILIES["bert"], "classification"), tokenizer=type("Tokenizer", (), {"pad_token_id": 0})()
    )
    assert base.model.config.attention_probs_dropout_prob > 0
    assert base.model.config.hidden_dropout_prob > 0
    alone, runs = (three_runs(base, "classification") for _ in range(2))

    require_same(alone, together(base, runs, is_stacked=is_stacked), runs)


def test_trials_join_and_leave_at_any_step() -> None:
    base = tiny_base()
    alone, runs = three_runs(base), three_runs(base)
    lockstep = Lockstep(base, is_checkpointed=False)

    for members in ([0, 1], [0, 1, 2], [2], [2, 0]):
        lockstep.step([runs[member] for member in members])

    for index, num_steps in enumerate((3, 2, 3)):
        for _ in range(num_steps):
            alone[index].step()
        for mine, other in zip(runs[index].trainable, alone[index].trainable, strict=True):
            assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_stacked", [False, True])
def test_a_trial_that_diverges_leaves_the_others_alone(is_stacked: bool) -> None:
    base = tiny_base()
    alone, runs = three_runs(base), three_runs(base)
    with torch.no_grad():
        runs[1].trainable[0].fill_(math.nan)

    steps = together(base, runs, is_stacked=is_stacked)

    assert all(math.isnan(step[1].loss) for step in steps)
    del alone[1], runs[1]
    require_same(alone, [[step[0], step[2]] for step in steps], runs)


def test_gradients_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    base, begin = tiny_base(), Streams.begin
    monkeypatch.setattr(Streams, "begin", lambda streams, seeds: begin(streams, [seed + 1 for seed in seeds]))

    assert not Lockstep(base, is_checkpointed=False).agrees(three_runs(base))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_peak_of_trials_together_is_one_base_and_a_share_for_each(is_quantized: bool) -> None:
    setup = Setup(lora=llama(16), rows=2, tokens=128, quantization="nf4" if is_quantized else "none")
    base, alone_bytes, num = base_of(setup), measured(setup), 3
    shared = resident_bytes(base.model, torch.optim.SGD([torch.zeros(1)]))
    rows = tokens_of([(setup.tokens - setup.learned, setup.learned)] * 24)
    scoring = ScoringData(batches=evaluation_batches(rows, batch_size=8, pad_id=0, device=CPU), order=np.arange(24))
    data = TrainingData(train=rows, validation=scoring, sample=None, build_test=lambda: scoring, capacity=None)
    config = make_config(training={"task": "causal-lm", "max_steps": 20, "batch_size": 2}, pruning={"method": "none"})
    runs = [TrialRun(twin_of(base), data, make_spec(number, lora=setup.lora), config) for number in range(num)]
    lockstep = Lockstep(base, is_checkpointed=False)
    lockstep.step(runs)
    own = sum(resident_bytes(run.adapted.model, run._optimizer) - shared for run in runs)

    meter = StepPeak(base.model, torch.optim.SGD([torch.zeros(1)]), CPU)
    with meter.watch():
        lockstep.step(runs)

    assert meter.peak_bytes() + own == pytest.approx(shared + num * (alone_bytes - shared), rel=0.1)


def test_a_measured_size_is_one_that_was_tried_and_the_trial_makes_no_step() -> None:
    base = tiny_base()
    run, *_ = three_runs(base)

    size = best_size(
        run, Lockstep(base, is_checkpointed=False), iter(copy for _ in range(3) for copy in three_runs(base))
    )

    assert size in {1, 2, 4, 8}
    assert run.steps == 0
