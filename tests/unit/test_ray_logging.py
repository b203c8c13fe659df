"""What loggers get of a trial, and which of them are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.builders import make_config, make_lora, make_metrics, make_spec
from tuner.backends import ray_logging
from tuner.trial import Baseline, Metric

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_parameters_are_those_searched_and_the_four_that_each_trial_has() -> None:
    spec = make_spec(lora=make_lora(r=4, lora_alpha=8.0), params=(("use_dora", True),), learning_rate=0.01, seed=3)

    assert ray_logging.logged_params(spec) == {
        "use_dora": True,
        "learning_rate": 0.01,
        "seed": 3,
        "r": 4,
        "lora_alpha": 8.0,
    }


def test_a_baseline_without_an_adapter_has_no_rank() -> None:
    spec = make_spec(-1, lora=None, params=(), baseline=Baseline.FULL)

    assert set(ray_logging.logged_params(spec)) == {"learning_rate", "seed"}


def test_names_hold_only_what_mlflow_takes() -> None:
    spec = make_spec(params=(("rank_pattern.query@last", 2), ("rank_pattern.a/../b c*", 4)))

    assert {"rank_pattern.query:last", "rank_pattern.a_.._b_c_"} <= set(ray_logging.logged_params(spec))


def test_the_sweep_s_metric_goes_by_its_own_name_beside_the_others() -> None:
    metrics = make_metrics(steps=30, accuracy=0.5, peak_memory_bytes=2**29, others=(("token_accuracy", 0.7),))

    logged = ray_logging.logged_metrics(metrics, Metric.EXACT_MATCH)

    assert logged["exact_match"] == 0.5
    assert logged["token_accuracy"] == 0.7
    assert logged["peak_memory_gib"] == 0.5
    assert logged["steps"] == logged["training_iteration"] == 30


def test_each_logger_that_is_missing_is_told_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name != "wandb" else object())

    assert ray_logging.logging_problems(make_config(logging=["mlflow", "wandb", "tensorboard"])) == (
        ("logging", "mlflow is not installed; `pip install 'tuner[mlflow]'`"),
        ("logging", "tensorboard is not installed; `pip install 'tuner[tensorboard]'`"),
    )


def test_a_sweep_keeps_its_id_and_shares_it_with_no_other(tmp_path: Path) -> None:
    for name, text in (("one", "a\n"), ("grown", "a\nb\n"), ("other", "c\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.journal").write_text(text)

    one, grown, other = (ray_logging.sweep_id(tmp_path / name) for name in ("one", "grown", "other"))

    assert one == grown != other
