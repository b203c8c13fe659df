"""What a sweep will cost, said before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.builders import make_config, make_llama, make_metrics, make_record
from tests.models import causal_changes, tiny_llama_config
from tests.sweeps import write_sweep
from tuner.cli import app
from tuner.errors import ConfigError, PredictionError
from tuner.gpus import GPUS, gpu_named
from tuner.planning import make_plan, measured_step_s
from tuner.planning.corners import corners
from tuner.planning.text import bar, plan_text
from tuner.prediction import Part, Verdict
from tuner.sweep_file import load_sweep_file
from tuner.workload import workload_of

SPACE = {
    "r": {"choices": [4, 64]},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "target_modules": {"choices": ["attention", "all-linear"]},
    "use_dora": {"choices": [False, True]},
}


def sweep_file(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A sweep on a model of which there is only a config.json."""
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text(tiny_llama_config().to_json_string(), encoding="utf-8")
    own = {
        "search.space": {**SPACE, "use_dora": False},
        "objectives.memory": {"gpu": "T4-16GB"},
        "model.name": str(folder / "bare"),
    }
    return write_sweep(folder, causal_changes(folder) | own | (changes or {}))


def test_the_corners_are_the_smallest_and_the_largest_of_each_set() -> None:
    config = make_config(search={"num_trials": 4, "space": SPACE})
    found = corners(config.search.space, make_llama().layers)

    assert [label for label, _ in found] == [
        "attention, smallest",
        "attention, largest",
        "attention, DoRA, smallest",
        "attention, DoRA, largest",
        "all-linear, smallest",
        "all-linear, largest",
        "all-linear, DoRA, smallest",
        "all-linear, DoRA, largest",
    ]
    assert [point.lora.r for _, point in found] == [4, 64] * 4


def test_a_corner_that_is_the_same_at_both_ends_stands_once() -> None:
    config = make_config(search={"num_trials": 1, "space": {**SPACE, "r": 8, "use_dora": False}})

    assert len(corners(config.search.space, make_llama().layers)) == 2


def test_a_plan_needs_neither_weights_nor_data(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"data.path": str(tmp_path / "nowhere.jsonl"), "model.quantization": "none"})
    plan = make_plan(load_sweep_file(file), str(file), num_samples=2, step_s=3.6)

    assert plan.gpu == GPUS["T4-16GB"]
    assert len(plan.samples) == 2
    assert all(corner.prediction.verdict is Verdict.FITS for corner in plan.corners)
    assert all(corner.prediction.trainable_params == corner.trainable_params for corner in plan.corners)
    assert plan.hours == pytest.approx(plan.num_steps / 1000)


def test_the_text_has_every_corner_every_setting_and_what_was_not_checked(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    plan = make_plan(load_sweep_file(file), str(file), num_samples=1, step_s=1.0)
    text = plan_text(plan, is_explained=True, price=2.0)

    assert all(corner.label in text for corner in plan.corners)
    assert "padding padded" in text
    assert f"configuration of {tmp_path / 'bare'}" in text
    assert "were not run on a GPU" in text
    assert "where the memory goes" in text
    assert f"{plan.num_steps:,} optimizer steps" in text


def test_a_bar_is_as_long_as_the_memory_that_is_used(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"objectives.memory": {"gpu": {"memory_gib": 1}}})
    found = make_plan(load_sweep_file(file), str(file), num_samples=0).corners[0].prediction
    text = bar(found)

    assert text.endswith("|")
    assert len(text.rstrip("|").rstrip(".")) == pytest.approx(60 * found.total_bytes / found.capacity_bytes, abs=1)
    assert dict(found.parts)[Part.CONTEXT] == found.context_bytes


def test_the_command_writes_text_picture_and_numbers(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    ran = CliRunner().invoke(app, ["plan", str(file), "--trials", "1", "--explain", "--out", str(tmp_path / "plan")])
    document = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))

    assert ran.exit_code == 0, ran.output
    assert "attention, largest" in ran.output
    assert document["corners"][0]["verdict"] == "fits"
    assert (tmp_path / "plan" / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "where the memory goes" in (tmp_path / "plan" / "plan.txt").read_text(encoding="utf-8")


def test_without_a_card_the_key_is_named(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"objectives.memory": True})

    with pytest.raises(ConfigError, match=r"objectives\.memory\.gpu.*--gpu"):
        make_plan(load_sweep_file(file), str(file))


def test_a_card_that_nobody_knows_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    file = sweep_file(tmp_path)

    with pytest.raises(ConfigError, match=r"--gpu: must be one of T4-16GB.*got 'T5'"):
        make_plan(load_sweep_file(file), str(file), gpu="T5")


def test_a_model_that_is_nowhere_is_named(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"model.config": "./gone"})

    with pytest.raises(PredictionError, match="gone"):
        make_plan(load_sweep_file(file), str(file))


def test_a_target_that_the_model_has_not_is_a_problem_of_the_file(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, {"search.space": {**SPACE, "target_modules": ["query"]}})

    with pytest.raises(ConfigError, match="no linear layer is named query"):
        make_plan(load_sweep_file(file), str(file))


def test_the_step_time_is_the_median_of_what_was_trained() -> None:
    records = [make_record(number, steps=10, train_s=seconds) for number, seconds in enumerate((10.0, 20.0, 90.0))]

    assert measured_step_s(records) == 2.0
    assert measured_step_s([make_record(0, curve=())]) is None


@pytest.mark.parametrize("given", ["24GiB", {"memory_gib": 24}, {"memory_gib": 24.0}])
def test_a_card_of_which_only_the_memory_is_known_is_named_by_it(given: object) -> None:
    assert gpu_named(given).name == "24GiB"
    assert gpu_named(given).memory_mib == 24 * 1024


@pytest.mark.parametrize("given", ["T5", "0GiB", {"memory_gib": 0}, {"memory_gib": True}, {"memory": 24}, 24, "GiB"])
def test_what_is_no_card_is_refused_with_what_is_one(given: object) -> None:
    with pytest.raises(ValueError, match="T4-16GB"):
        gpu_named(given)


def test_the_workload_is_what_the_file_says() -> None:
    config = make_config(
        training={"task": "causal-lm", "max_steps": 8, "batch_size": 2, "gradient_accumulation_steps": 4},
        objectives={"memory": {"gpu": "T4-16GB", "longest_tokens": 100, "logits": "kept", "adapter_dtype": "compute"}},
    )
    turing, ampere = (workload_of(config, GPUS[name]) for name in ("T4-16GB", "L4-24GB"))

    assert (turing.dtype, turing.autocast) == ("float32", False)
    assert (ampere.dtype, ampere.autocast, ampere.adapter_dtype) == ("bfloat16", True, "bfloat16")
    assert (turing.tokens, turing.learned_tokens, turing.has_accumulation) == (100, 198, True)


@pytest.mark.parametrize(
    ("capacity_gib", "verdict"), [(22.1, Verdict.FITS), (21.9, Verdict.UNCERTAIN), (18.9, Verdict.DOES_NOT_FIT)]
)
def test_the_verdict_leaves_room_for_what_is_luck(capacity_gib: float, verdict: Verdict, tmp_path: Path) -> None:
    """18 GiB allocated, 20 reserved, 1 of context."""
    from dataclasses import replace

    file = sweep_file(tmp_path)
    found = make_plan(load_sweep_file(file), str(file), num_samples=0).corners[0].prediction
    gib = 2**30
    made = replace(
        found,
        allocated_bytes=18 * gib,
        reserved_bytes=20 * gib,
        context_bytes=gib,
        capacity_bytes=int(capacity_gib * gib),
    )

    assert made.verdict is verdict


def test_metrics_of_an_untrained_trial_have_no_step_time() -> None:
    assert measured_step_s([make_record(0, curve=(make_metrics(steps=0),))]) is None
