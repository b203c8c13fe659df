"""The model of a sweep file: its rungs, and the sweep files that come with the project."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.sweeps import ROOT, document
from tuner.config import SweepConfig, is_folder_name
from tuner.dimensions import Choices, options_of
from tuner.sweep_file import load_sweep_file
from tuner.trial import Metric

if TYPE_CHECKING:
    from pathlib import Path

SEARCH_SPACES = ROOT / "search_spaces"
SWEEP_FILES = sorted(SEARCH_SPACES.rglob("*.y*ml"))


def rungs(max_steps: int, **pruning: Any) -> tuple[int, ...]:
    changes = {"training.max_steps": max_steps, "pruning": pruning}
    return SweepConfig.model_validate(document(changes)).rungs


def test_the_first_rung_is_a_sixteenth_of_the_steps_by_default() -> None:
    assert rungs(128) == (8, 16, 32, 64, 128)


def test_a_sixteenth_is_rounded_up_so_that_no_rung_lies_just_before_the_end() -> None:
    assert rungs(97) == (7, 14, 28, 56, 97)


@pytest.mark.parametrize(("max_steps", "expected"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4))])
def test_the_first_rung_is_a_step_at_least(max_steps: int, expected: tuple[int, ...]) -> None:
    assert rungs(max_steps) == expected


def test_each_rung_is_the_reduction_factor_times_the_one_before() -> None:
    assert rungs(100, min_steps=3, reduction_factor=3) == (3, 9, 27, 81, 100)


def test_a_rung_at_the_last_step_is_there_once() -> None:
    assert rungs(90, min_steps=10, reduction_factor=3) == (10, 30, 90)


def test_a_first_rung_at_the_last_step_is_the_only_one() -> None:
    assert rungs(90, min_steps=90) == (90,)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data(), max_steps=st.integers(1, 100_000), factor=st.integers(2, 10))
def test_rungs_rise_by_the_factor_from_the_first_to_the_last_step(
    data: st.DataObject, max_steps: int, factor: int
) -> None:
    first = data.draw(st.none() | st.integers(1, max_steps))

    steps = rungs(max_steps, min_steps=first, reduction_factor=factor)

    assert steps[0] == (first or math.ceil(max_steps / 16))
    assert steps[-1] == max_steps
    *inner, last = steps
    assert all(step * factor == after for step, after in itertools.pairwise(inner))
    assert all(step < after for step, after in itertools.pairwise(steps))
    assert not inner or inner[-1] * factor >= last


@pytest.mark.parametrize("name", [".", "..", "./small", "../small", "/models/small", "~/small"])
def test_a_model_name_that_starts_like_a_path_is_a_folder(name: str) -> None:
    assert is_folder_name(name)


@pytest.mark.parametrize("name", ["org/model", "model", ".hidden", "..model", "org/../model"])
def test_any_other_model_name_is_a_hub_id(name: str) -> None:
    assert not is_folder_name(name)


def test_a_fixed_list_of_targets_is_one_set_named_by_its_modules() -> None:
    space = SweepConfig.model_validate(
        document({"search.space.target_modules": ["query", "intermediate.dense"]})
    ).search.space

    assert space.target_sets() == {"query+intermediate.dense": ("query", "intermediate.dense")}


def targets_of(raw: object) -> dict[str, tuple[str, ...]]:
    return SweepConfig.model_validate(document({"search.space.target_modules": raw})).search.space.target_sets()


def test_a_target_alone_needs_no_list() -> None:
    assert targets_of("all-linear") == {"all-linear": ("all-linear",)}


def test_targets_to_choose_from_need_no_names() -> None:
    assert targets_of({"choices": ["attention", "mlp"]}) == {"attention": ("attention",), "mlp": ("mlp",)}


def test_a_named_set_of_one_target_needs_no_list() -> None:
    assert targets_of({"choices": {"all": "all-linear", "qv": ["query", "value"]}}) == {
        "all": ("all-linear",),
        "qv": ("query", "value"),
    }


@pytest.mark.parametrize(("task", "metric"), [("classification", Metric.ACCURACY), ("causal-lm", Metric.EXACT_MATCH)])
def test_each_task_has_a_metric_of_its_own_where_none_is_named(task: str, metric: Metric) -> None:
    assert SweepConfig.model_validate(document({"training.task": task})).metric is metric


def test_the_metric_named_is_the_metric() -> None:
    changes = {"training.task": "causal-lm", "objectives.accuracy": "perplexity"}

    assert SweepConfig.model_validate(document(changes)).metric is Metric.PERPLEXITY


@pytest.mark.parametrize(
    ("changes", "is_asked"),
    [({}, False), ({"data.choices": "options"}, True), ({"objectives.accuracy": "choice_accuracy"}, True)],
    ids=str,
)
def test_choices_are_scored_where_the_file_asks_for_it(changes: dict[str, Any], is_asked: bool) -> None:
    config = SweepConfig.model_validate(document({"training.task": "causal-lm", **changes}))

    assert config.is_choice_asked is is_asked


def test_options_are_one_value_or_all_choices() -> None:
    one: tuple[str, ...] = options_of("nf4")
    either: tuple[bool, ...] = options_of(Choices[bool](choices=(True, False)))

    assert (one, either) == (("nf4",), (True, False))


def test_a_sweep_never_changes_once_it_is_loaded_defaults_included() -> None:
    config = SweepConfig.model_validate(document({"pruning": {}}))

    with pytest.raises(ValidationError, match="frozen"):
        config.training.max_steps = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.objectives.memory = False  # type: ignore[misc, assignment]


def test_the_project_comes_with_sweep_files() -> None:
    assert SWEEP_FILES


@pytest.mark.parametrize("file", SWEEP_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_sweep_file_of_the_project_loads_with_paths_that_lie_in_the_project(file: Path) -> None:
    config = load_sweep_file(file)

    assert config.data.path is None or config.data.path.startswith(f"{ROOT}/")
    if is_folder_name(config.model.name):
        assert config.model.name.startswith(f"{ROOT}/")


@pytest.mark.parametrize("file", SWEEP_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_sweep_file_of_the_project_starts_with_the_command_that_runs_it(file: Path) -> None:
    first, *_ = file.read_text(encoding="utf-8").splitlines()

    assert first == f"# tuner run {file.relative_to(ROOT).as_posix()}"
