"""Trials side by side in one worker end as they do one after another."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.clusters import wait_for
from tests.contracts import SYNTHETIC, BackendContract
from tests.drivers import driving
from tests.models import causal_changes, write_tiny_llama
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.trial import Metrics, TrialRecord, TrialState

TOGETHER = {"resources.trials_per_worker": 3}
ALL = {"pruning.method": "none", "search.num_trials": 5, "model.compute_dtype": "float32"}
"""In bfloat16 a product's last bits depend on how many rows it has."""


class TestSideBySideOnTheLocalBackend(BackendContract):
    backend: ClassVar[str] = "local"

    def run(self, folder: Path, changes: dict[str, Any] | None = None, worker: str = SYNTHETIC) -> sweep.Sweep:
        return super().run(folder, {**TOGETHER, **(changes or {})}, worker)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestSideBySideOnRay(TestSideBySideOnTheLocalBackend):
    backend: ClassVar[str] = "ray"


def run(folder: Path, changes: dict[str, Any], backend: str = "local") -> sweep.Sweep:
    folder.mkdir(exist_ok=True)
    return sweep.run(write_sweep(folder, changes), out=folder / "out", backend=backend)


def require_same(found: tuple[TrialRecord, ...], expected: tuple[TrialRecord, ...]) -> None:
    """Specs, states and memory as they are; what is computed to within 1e-4, an example of the validation data aside."""
    assert [record.spec for record in found] == [record.spec for record in expected]
    assert [record.state for record in found] == [record.state for record in expected]
    for one, other in zip(found, expected, strict=True):
        assert [mine.steps for mine in one.curve] == [its.steps for its in other.curve]
        for mine, its in zip(one.curve, other.curve, strict=True):
            assert mine.loss == pytest.approx(its.loss, rel=1e-4)
            assert (mine.train_loss or 0.0) == pytest.approx(its.train_loss or 0.0, rel=1e-4)
            assert abs(mine.accuracy - its.accuracy) <= 1 / its.num_validation + 1e-9
            assert _rest(mine) == _rest(its)


def _rest(metrics: Metrics) -> Metrics:
    """What must be equal: peak memory and trainable parameters among it."""
    computed: dict[str, Any] = {"accuracy": 0.0, "standard_error": 0.0, "loss": 0.0, "others": ()}
    measured: dict[str, Any] = {
        "train_s": 0.0,
        "span": None,
        "train_loss": None,
        "worst_train_loss": None,
        "held_out": None,
    }
    return dataclasses.replace(metrics, **computed, **measured)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"model.quantization": "nf4"}, {"model.quantization": "none", "training.gradient_accumulation_steps": 2}],
    ids=["nf4", "unquantized"],
)
def test_an_encoders_trials_end_as_one_after_another(tmp_path: Path, changes: dict[str, Any]) -> None:
    alone = run(tmp_path / "alone", {**ALL, **changes})
    beside = run(tmp_path / "beside", {**ALL, **changes, **TOGETHER})

    require_same(beside.records, alone.records)
    logs = "".join(file.read_text() for file in (tmp_path / "beside" / "out" / "logs").iterdir())
    assert "alone" not in logs  # nothing kept them from computing together
    assert {path.name for path in (tmp_path / "beside" / "out" / "adapters").iterdir()}


@pytest.mark.slow
def test_a_causal_models_trials_and_baselines_end_as_one_after_another(tmp_path: Path) -> None:
    changes = {
        **causal_changes(tmp_path),
        **ALL,
        "model.name": str(write_tiny_llama(tmp_path)),
        "search.space": {
            "r": {"choices": [1, 4]},
            "learning_rate": 0.005,
            "lora_dropout": 0.1,
            "target_modules": "all-linear",
        },
        "training.gradient_checkpointing": True,
        "baselines": {"zero_shot": True, "full": [0.001]},
    }
    alone = run(tmp_path / "alone", changes)
    beside = run(tmp_path / "beside", {**changes, **TOGETHER})

    require_same(beside.records, alone.records)


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [True, False])
def test_adapters_that_cannot_be_among_others_train_alone_beside_them(tmp_path: Path, use_dora: bool) -> None:
    change = {"search.space.use_dora": True} if use_dora else {"search.space.init_lora_weights": "pissa"}
    changes = {**ALL, "search.num_trials": 3, "model.quantization": "none", **change}

    require_same(run(tmp_path / "beside", {**changes, **TOGETHER}).records, run(tmp_path / "alone", changes).records)


@pytest.mark.slow
def test_a_measured_size_changes_no_result(tmp_path: Path) -> None:
    changes = {**ALL, "baselines": {"head_only": [0.01]}}  # the first trial, which can't be among others
    beside = run(tmp_path / "beside", {**changes, "resources.trials_per_worker": "auto"})

    require_same(beside.records, run(tmp_path / "alone", changes).records)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_they_end_as_one_after_another_too(tmp_path: Path) -> None:
    beside = run(tmp_path / "beside", {**ALL, **TOGETHER}, backend="ray")

    require_same(beside.records, run(tmp_path / "alone", ALL).records)


@pytest.mark.slow
def test_trials_that_were_interrupted_side_by_side_go_on_from_their_step(tmp_path: Path) -> None:
    changes = {**ALL, **TOGETHER, "search.num_trials": 3, "training.max_steps": 64, "pruning.min_steps": 32}
    file = write_sweep(tmp_path, changes)
    with driving("run", str(file), "--out", str(tmp_path / "out")) as driver:
        driver.wait_for("RUNNING")
        _wait_for_a_rung(tmp_path)
        driver.interrupt(signal.SIGINT)
        assert driver.ended() == 130, driver.text

    resumed = sweep.resume(tmp_path / "out")

    assert {record.state for record in resumed.records} == {TrialState.COMPLETE}
    alone = run(tmp_path / "alone", {**changes, "resources.trials_per_worker": 1})
    require_same(resumed.records, alone.records)


def _wait_for_a_rung(folder: Path) -> None:
    """Until a trial has reached its first."""
    logs = folder / "out" / "logs"
    wait_for(lambda: any("reached step 32" in file.read_text() for file in logs.glob("*.log")), 120)
