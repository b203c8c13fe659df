"""The search section as a space: what is asked of a trial, and the adapter that comes of it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from tests.sweeps import document
from tuner.config import SpaceConfig, SweepConfig
from tuner.space import Suggestion, searched_params, suggest
from tuner.trial import LoraSpec

ALL = ("query", "value", "intermediate.dense")
POINT = {"r": 4, "lora_dropout": 0.1, "learning_rate": 0.002}
FIXED: dict[str, Any] = {
    "r": 4,
    "lora_dropout": 0.1,
    "learning_rate": 0.002,
    "target_modules": ["query", "value"],
    "rank_pattern": {"value": 2},
}


def small_space(changes: dict[str, Any] | None = None) -> SpaceConfig:
    """The small sweep's space, changed; keys are relative to it."""
    changes = {f"search.space.{key}": value for key, value in (changes or {}).items()}
    return SweepConfig.model_validate(document(changes)).search.space


def suggest_at(params: dict[str, Any], changes: dict[str, Any] | None = None) -> Suggestion:
    return suggest(optuna.trial.FixedTrial(params), small_space(changes))


def suggest_many(space: SpaceConfig, *, num_trials: int = 40, seed: int = 0) -> list[Suggestion]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    suggestions = []
    for _ in range(num_trials):
        trial = study.ask()
        suggestions.append(suggest(trial, space))
        assert dict(suggestions[-1].params) == trial.params
        study.tell(trial, 0.0)
    return suggestions


def test_a_point_becomes_the_adapter_that_it_describes() -> None:
    suggestion = suggest_at(POINT | {"target_modules": "all", "rank_pattern.intermediate.dense": 2})

    assert suggestion == Suggestion(
        lora=LoraSpec(
            r=4,
            lora_alpha=8.0,
            lora_dropout=0.1,
            target_modules=ALL,
            rank_pattern=(("intermediate.dense", 2),),
        ),
        learning_rate=0.002,
        params=(
            ("r", 4),
            ("lora_dropout", 0.1),
            ("learning_rate", 0.002),
            ("target_modules", "all"),
            ("rank_pattern.intermediate.dense", 2),
        ),
    )


def test_a_rank_of_its_own_is_not_asked_for_where_the_module_is_no_target() -> None:
    # FixedTrial raises on a name that it was not given
    suggestion = suggest_at(POINT | {"target_modules": "qv"})

    assert suggestion.lora.rank_pattern == ()
    assert "rank_pattern.intermediate.dense" not in dict(suggestion.params)


def test_a_rank_of_its_own_is_asked_for_where_the_module_is_a_target() -> None:
    with pytest.raises(ValueError, match=r"rank_pattern\.intermediate\.dense"):
        suggest_at(POINT | {"target_modules": "all"})


def test_a_fixed_rank_of_its_own_goes_to_the_adapter_and_not_to_the_params() -> None:
    suggestion = suggest_at(POINT | {"target_modules": "all"}, {"rank_pattern": {"intermediate.dense": 0}})

    assert suggestion.lora.rank_pattern == (("intermediate.dense", 0),)
    assert suggestion.lora.ranks() == {"query": 4, "value": 4}
    assert suggestion.params == (("r", 4), ("lora_dropout", 0.1), ("learning_rate", 0.002), ("target_modules", "all"))


def test_a_fixed_rank_of_a_module_that_is_no_target_is_left_out() -> None:
    suggestion = suggest_at(POINT | {"target_modules": "qv"}, {"rank_pattern": {"intermediate.dense": 2}})

    assert suggestion.lora.rank_pattern == ()


def test_a_fixed_space_asks_for_nothing() -> None:
    suggestion = suggest_at({}, FIXED)

    assert suggestion.params == ()
    assert searched_params(small_space(FIXED)) == ()
    assert suggestion.lora.target_modules == ("query", "value")
    assert suggestion.lora.ranks() == {"query": 4, "value": 2}
    assert suggestion.learning_rate == 0.002


@pytest.mark.parametrize(("r", "scale", "lora_alpha"), [(1, 1, 1.0), (8, 1, 8.0), (8, 0.5, 4.0), (4, 4, 16.0)])
def test_alpha_is_scale_times_rank(r: int, scale: float, lora_alpha: float) -> None:
    lora = suggest_at({}, FIXED | {"r": r, "lora_scale": scale}).lora

    assert lora.lora_alpha == lora_alpha
    assert lora.scale == scale


def test_a_searched_scale_is_a_param_and_alpha_is_none() -> None:
    suggestion = suggest_at({"lora_scale": 0.5}, FIXED | {"lora_scale": {"choices": [0.5, 1, 2]}})

    assert suggestion.params == (("lora_scale", 0.5),)
    assert suggestion.lora.lora_alpha == 2.0


@pytest.mark.parametrize(("name", "modules"), [("qv", ("query", "value")), ("all", ALL)])
def test_a_named_set_is_a_param_by_its_name_and_its_modules_are_the_targets(
    name: str, modules: tuple[str, ...]
) -> None:
    suggestion = suggest_at(POINT | {"target_modules": name}, {"rank_pattern": None})

    assert dict(suggestion.params)["target_modules"] == name
    assert suggestion.lora.target_modules == modules


def test_only_sets_that_have_a_name_can_be_chosen() -> None:
    with pytest.raises(ValueError, match="value"):
        suggest_at(POINT | {"target_modules": "value"})


def test_searched_params_are_in_the_order_of_the_space() -> None:
    pattern = {module: {"low": 1, "high": 2} for module in reversed(ALL)}
    space = small_space({"lora_scale": {"low": 0.5, "high": 4.0}, "rank_pattern": pattern})

    assert searched_params(space) == (
        "r",
        "lora_scale",
        "lora_dropout",
        "learning_rate",
        "target_modules",
        "rank_pattern.intermediate.dense",
        "rank_pattern.value",
        "rank_pattern.query",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"r": 4, "lora_dropout": 0.0},
        {"target_modules": ["query", "intermediate.dense"]},
        {"rank_pattern": {"intermediate.dense": {"low": 0, "high": 4}, "query": 2, "value": {"choices": [1, 8]}}},
        {"lora_scale": {"low": 0.5, "high": 4.0, "step": 0.5}, "r": {"low": 2, "high": 16, "log": True}},
    ],
    ids=str,
)
def test_what_is_sampled_is_a_part_of_searched_params_in_the_same_order(changes: dict[str, Any]) -> None:
    space = small_space(changes)
    names = searched_params(space)

    suggestions = suggest_many(space)

    sampled = [tuple(name for name, _ in suggestion.params) for suggestion in suggestions]
    assert all(each == tuple(name for name in names if name in each) for each in sampled)
    assert {name for each in sampled for name in each} == set(names)


def test_what_a_study_samples_lies_in_the_space() -> None:
    space = small_space(
        {
            "r": {"low": 2, "high": 8, "step": 2},
            "lora_scale": {"choices": [1, 4]},
            "lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
        }
    )

    suggestions = suggest_many(space, num_trials=60)

    assert {suggestion.lora.r for suggestion in suggestions} == {2, 4, 6, 8}
    assert {round(suggestion.lora.scale, 9) for suggestion in suggestions} == {1.0, 4.0}
    assert {round(suggestion.lora.lora_dropout, 9) for suggestion in suggestions} == {0.0, 0.1, 0.2, 0.3}
    assert all(0.001 <= suggestion.learning_rate <= 0.01 for suggestion in suggestions)
    assert {suggestion.lora.target_modules for suggestion in suggestions} == {("query", "value"), ALL}


def test_every_suggestion_adapts_at_least_one_module() -> None:
    space = small_space({"rank_pattern": {"intermediate.dense": {"low": 0, "high": 1}, "query": {"choices": [0, 2]}}})

    assert all(suggestion.lora.ranks() for suggestion in suggest_many(space))


def test_the_same_seed_suggests_the_same_points() -> None:
    space = small_space()

    assert suggest_many(space, num_trials=5, seed=3) == suggest_many(space, num_trials=5, seed=3)
    assert suggest_many(space, num_trials=5, seed=3) != suggest_many(space, num_trials=5, seed=4)
