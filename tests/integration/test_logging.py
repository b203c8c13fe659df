"""A sweep's trials in MLflow, Weights & Biases and TensorBoard, read back from each; the sweep depends on none of them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import ConfigError, LoggingError
from tuner.trial import TrialRecord, TrialState, folder_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow.entities import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
STEEP = {"search.space.learning_rate": {"choices": [0.003, 0.5]}, "resources.max_failures_in_a_row": 8}
"""Some trials diverge."""
BLOCK = 2**15
"""Bytes of a block in a LevelDB log."""


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def run(folder: Path, logging: list[str], changes: dict[str, Any] | None = None) -> sweep.Sweep:
    file = write_sweep(folder, {"search.num_trials": 8, "logging": logging, **(changes or {})})
    return sweep.run(file, out=folder / "out", backend="ray", worker=SYNTHETIC)


def mlflow_runs(out: Path) -> dict[str, Run]:
    """Runs of the sweep by name, each there once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs)
    return named


def mlflow_curve(out: Path, run: Run, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}").get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in history]


def curve(record: TrialRecord) -> list[tuple[int, float]]:
    return [(metrics.steps, metrics.accuracy) for metrics in record.curve]


@pytest.fixture(scope="module")
def swept(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> sweep.Sweep:
    """A sweep with trials that waited, trials that failed and a baseline, for tests that only look at it."""
    changes = STEEP | {
        "baselines.head_only": [0.001],
        "search.space.rank_pattern": {"query@last": {"choices": [1, 2]}},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return run(tmp_path_factory.mktemp("logged"), ["mlflow", "tensorboard"], changes)


def test_mlflow_has_one_run_for_each_trial_that_waited_or_not(swept: sweep.Sweep) -> None:
    runs = mlflow_runs(swept.folder)

    assert {record.spec.label for record in swept.records} == set(runs)
    assert "baseline 1 (head only)" in runs
    for record in swept.records:
        logged = runs[record.spec.label]
        assert mlflow_curve(swept.folder, logged, "accuracy") == curve(record)
        assert logged.data.tags["tuner.state"] == record.state
        assert logged.info.status == ("FAILED" if record.state is TrialState.FAIL else "FINISHED")


def test_mlflow_shows_parameters_metrics_and_reasons(swept: sweep.Sweep) -> None:
    runs = mlflow_runs(swept.folder)
    failed = next(record for record in swept.records if record.state is TrialState.FAIL)
    finished = next(record for record in swept.records if record.number >= 0 and record.state is TrialState.COMPLETE)

    assert runs[failed.spec.label].data.tags["tuner.reason"] == "loss not finite"
    data = runs[finished.spec.label].data
    assert finished.spec.lora
    assert finished.last
    assert data.params["r"] == str(finished.spec.lora.r)
    assert data.params["rank_pattern.query:last"] == str(dict(finished.spec.params)["rank_pattern.query@last"])
    assert {"learning_rate", "lora_alpha", "seed", "target_modules"} <= set(data.params)
    assert data.metrics["steps"] == 8
    assert data.metrics["peak_memory_gib"] == finished.last.peak_memory_bytes / 2**30
    assert {"loss", "trainable_params", "train_s"} <= set(data.metrics)


def test_tensorboard_reads_a_folder_for_each_trial_that_reached_a_rung(swept: sweep.Sweep) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for record in swept.records:
        folder = swept.folder / "tensorboard" / folder_name(record.number)
        events = EventAccumulator(str(folder)).Reload()
        steps = [event.step for event in events.Scalars("ray/tune/accuracy")] if record.curve else []
        assert steps == [metrics.steps for metrics in record.curve]
        assert len(list(folder.iterdir())) == 1


def wandb_records(file: Path) -> Iterator[Any]:
    """What stands in a run's file: records of a LevelDB log behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # the rest of a block that has no room for a header
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)  # type: ignore[attr-defined]  # made as it is imported
            parts = b""


def values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


def test_wandb_has_one_run_for_each_trial_that_waited_or_not(tmp_path: Path) -> None:
    swept = run(tmp_path, ["wandb"], {"search.num_trials": 3})

    config: dict[str, dict[str, Any]] = defaultdict(dict)
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for file in sorted((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")):
        written = list(wandb_records(file))
        (begun,) = (record.run for record in written if record.HasField("run"))
        assert begun.project == "small"
        config[begun.display_name] |= values(begun.config.update)
        for record in written:
            config[begun.display_name] |= values(record.config.update)
            point = values(record.history.item)
            if "accuracy" in point:
                curves[begun.display_name].append((point["steps"], point["accuracy"]))
    assert curves == {record.spec.label: curve(record) for record in swept.records}
    for record in swept.records:
        assert config[record.spec.label]["state"] == record.state
        assert config[record.spec.label]["learning_rate"] == record.spec.learning_rate


def test_a_resumed_sweep_goes_on_with_the_runs_that_it_had(tmp_path: Path) -> None:
    from tuner.errors import TooManyFailuresError

    with pytest.raises(TooManyFailuresError):
        run(tmp_path, ["mlflow", "tensorboard"], STEEP | {"resources.max_failures_in_a_row": 1})
    before = mlflow_runs(tmp_path / "out")
    file = tmp_path / "out" / "sweep.yaml"
    file.write_text(file.read_text().replace("max_failures_in_a_row: 1", "max_failures_in_a_row: 99"))

    resumed = sweep.resume(tmp_path / "out", worker=SYNTHETIC)

    runs = mlflow_runs(tmp_path / "out")
    assert {record.spec.label for record in resumed.records} == set(runs)
    assert {name: logged.info.run_id for name, logged in before.items()}.items() <= {
        name: logged.info.run_id for name, logged in runs.items()
    }.items()
    for record in resumed.records:
        logged = runs[record.spec.label]
        assert mlflow_curve(tmp_path / "out", logged, "accuracy") == curve(record)
        assert logged.data.tags["tuner.state"] == record.state


def test_a_logger_that_breaks_ends_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def fail(*args: object) -> None:
        message = "the server is gone"
        raise ConnectionError(message)

    monkeypatch.setattr(MLflowLoggerCallback, "log_trial_result", fail)

    with pytest.warns(UserWarning, match="mlflow misses a part of the sweep.*the server is gone"):
        swept = run(tmp_path, ["mlflow", "tensorboard"])

    assert len(swept.trials) == 8
    assert all(not record.state.is_open for record in swept.records)
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == len(swept.records)


def test_a_logger_that_can_not_be_set_up_is_told_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(LoggingError, match=r"(?s)mlflow can't be set up: .*go on with `tuner resume"):
        run(tmp_path, ["mlflow"])

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sweep.load(tmp_path / "out").records == ()
    assert len(sweep.resume(tmp_path / "out", worker=SYNTHETIC).trials) == 8


def test_a_logger_that_is_not_installed_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuner.backends import ray_logging

    monkeypatch.setitem(ray_logging.PACKAGES, "wandb", "a_package_that_is_not_there")

    with pytest.raises(ConfigError, match=r"logging: wandb is not installed; `pip install 'tuner\[wandb\]'`"):
        run(tmp_path, ["wandb", "tensorboard"])

    assert not (tmp_path / "out").exists()


def test_loggers_that_no_sweep_names_are_not_loaded() -> None:
    code = "import sys, tuner.backends.ray_tune; print({'mlflow', 'wandb'} & set(sys.modules))"

    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
