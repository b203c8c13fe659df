"""Trials that are scored on some of the validation data before their last rung, and on all of it there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_lora, make_spec
from tests.models import causal_document
from tests.sweeps import small_config
from tuner.config import SweepConfig
from tuner.trial import Metrics
from tuner.worker.evaluation import evaluate
from tuner.worker.host import BaseSpec, Worker, load
from tuner.worker.training import TrialRun

SOME = 8
METRICS = ("accuracy", "macro_f1", "exact_match", "choice_accuracy", "token_accuracy", "perplexity")


def config_for(folder: Path, metric: str, eval_examples: object) -> SweepConfig:
    changes: dict[str, Any] = {"objectives.accuracy": metric, "pruning.eval_examples": eval_examples}
    if metric in {"accuracy", "macro_f1"}:
        return small_config(folder, changes)
    return SweepConfig.model_validate(causal_document(folder, changes))


def reports(config: SweepConfig) -> list[Metrics]:
    """All three of a trial, without what a clock measured."""
    worker = Worker(config, None)
    worker.start(make_spec(0, lora=make_lora(r=4, target_modules=("all-linear",)), learning_rate=3e-3))
    found = [worker.advance() for _ in config.rungs]
    assert all(isinstance(one, Metrics) for one in found), found
    return [dataclasses.replace(one, train_s=0.0, span=None) for one in found if isinstance(one, Metrics)]


@pytest.mark.parametrize("metric", ["accuracy", "choice_accuracy"])
def test_the_last_rung_is_scored_on_all_as_if_the_others_had_been_too(tmp_path: Path, metric: str) -> None:
    whole, some = (reports(config_for(tmp_path, metric, number)) for number in ("all", SOME))
    num = whole[0].num_validation

    assert [one.num_validation for one in some] == [SOME, SOME, num]
    assert [one.sampled for one in some[:-1]] == [None, None]
    assert dataclasses.replace(some[-1], sampled=None) == whole[-1]
    assert some[0].loss != whole[0].loss


@pytest.mark.parametrize("metric", ["accuracy", "choice_accuracy"])
def test_what_a_trial_needs_is_known_at_its_first_rung_all_the_same(tmp_path: Path, metric: str) -> None:
    peaks = []
    for number in ("all", 2):
        config = config_for(tmp_path, metric, number)
        in_one_batch = config.training.model_copy(update={"eval_batch_size": 40})
        peaks.append(reports(config.model_copy(update={"training": in_one_batch}))[0].peak_memory_bytes)

    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("metric", METRICS)
def test_the_last_report_says_what_it_would_be_on_the_examples_of_the_ones_before(tmp_path: Path, metric: str) -> None:
    config = config_for(tmp_path, metric, SOME)
    loaded = load(config, BaseSpec(config=config.model))
    run = TrialRun(loaded.base, loaded.data, make_spec(0, lora=make_lora(target_modules=("all-linear",))), config)
    last = run.advance(config.training.max_steps)
    sample = loaded.data.sample
    assert isinstance(last, Metrics)
    assert last.sampled is not None
    assert sample is not None

    expected = evaluate(loaded.base, run.adapted.model, sample.data.batches, sample.data.choices)

    assert last.sampled.num == SOME == len(set(sample.examples.tolist()))
    assert last.sampled.accuracy == pytest.approx(expected.scores[config.metric].value, rel=0.01)
    assert last.sampled.loss == pytest.approx(expected.loss, rel=0.01)


def test_all_workers_take_the_same_examples(tmp_path: Path) -> None:
    config = config_for(tmp_path, "accuracy", SOME)
    first, second = (load(config, BaseSpec(config=config.model)).data.sample for _ in range(2))

    assert first is not None
    assert second is not None
    assert first.examples.tolist() == second.examples.tolist()
