"""The search section as a space: what is asked of a trial, and the adapter that comes of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import optuna
import pytest

from tests.builders import BERT_SHAPES, make_layers, make_model
from tests.sweeps import document
from tuner.config import SweepConfig
from tuner.layers import ranks_of
from tuner.lora import Bias, Init, LoraSpec
from tuner.space import PLAIN, Suggestion, searched_params, space_problems, suggest
from tuner.space_config import SpaceConfig

LAYERS = make_model().layers
KNOWN = ", ".join(BERT_SHAPES)
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
    return suggest(optuna.trial.FixedTrial(params), small_space(changes), LAYERS)


def ranks_by_module(lora: LoraSpec) -> dict[str, set[int]]:
    """Last name of a module -> its ranks over the blocks."""
    ranks: dict[str, set[int]] = {}
    for name, rank in ranks_of(LAYERS, lora).items():
        ranks.setdefault(name.rpartition(".")[2], set()).add(rank)
    return ranks


def suggest_many(space: SpaceConfig, *, num_trials: int = 40, seed: int = 0) -> list[Suggestion]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    suggestions = []
    for _ in range(num_trials):
        trial = study.ask()
        suggestions.append(suggest(trial, space, LAYERS))
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
        weight_decay=0.0,
        lora_plus_ratio=1.0,
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
    assert ranks_by_module(suggestion.lora) == {"query": {4}, "value": {4}}
    assert suggestion.params == (("r", 4), ("lora_dropout", 0.1), ("learning_rate", 0.002), ("target_modules", "all"))


def test_a_fixed_rank_of_a_module_that_is_no_target_is_left_out() -> None:
    suggestion = suggest_at(POINT | {"target_modules": "qv"}, {"rank_pattern": {"intermediate.dense": 2}})

    assert suggestion.lora.rank_pattern == ()


def test_a_fixed_space_asks_for_nothing() -> None:
    suggestion = suggest_at({}, FIXED)

    assert suggestion.params == ()
    assert searched_params(small_space(FIXED)) == ()
    assert suggestion.lora.target_modules == ("query", "value")
    assert ranks_by_module(suggestion.lora) == {"query": {4}, "value": {2}}
    assert suggestion.learning_rate == 0.002


@pytest.mark.parametrize(("r", "scale", "lora_alpha"), [(1, 1, 1.0), (8, 1, 8.0), (8, 0.5, 4.0), (4, 4, 16.0)])
def test_alpha_is_scale_times_rank(r: int, scale: float, lora_alpha: float) -> None:
    lora = suggest_at({}, FIXED | {"r": r, "lora_scale": scale}).lora

    assert lora.lora_alpha == lora_alpha
    assert lora.scaling_at(r) == scale


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
    assert {round(lora.scaling_at(lora.r), 9) for lora in (each.lora for each in suggestions)} == {1.0, 4.0}
    assert {round(suggestion.lora.lora_dropout, 9) for suggestion in suggestions} == {0.0, 0.1, 0.2, 0.3}
    assert all(0.001 <= suggestion.learning_rate <= 0.01 for suggestion in suggestions)
    assert {suggestion.lora.target_modules for suggestion in suggestions} == {("query", "value"), ALL}


def test_every_suggestion_adapts_at_least_one_module() -> None:
    space = small_space({"rank_pattern": {"intermediate.dense": {"low": 0, "high": 1}, "query": {"choices": [0, 2]}}})

    assert all(ranks_of(LAYERS, suggestion.lora) for suggestion in suggest_many(space))


def test_the_same_seed_suggests_the_same_points() -> None:
    space = small_space()

    assert suggest_many(space, num_trials=5, seed=3) == suggest_many(space, num_trials=5, seed=3)
    assert suggest_many(space, num_trials=5, seed=3) != suggest_many(space, num_trials=5, seed=4)


FIELDS: list[tuple[str, Any, Any]] = [
    # (parameter, a value of it, another)
    ("weight_decay", 0.1, 0.0),
    ("lora_plus_ratio", 16.0, 1.0),
]
LORA_FIELDS: list[tuple[str, Any, Any]] = [
    ("lora_alpha", 12.0, 24.0),
    ("use_rslora", True, False),
    ("use_dora", True, False),
    ("init_lora_weights", "eva", "gaussian"),
    ("bias", "lora_only", "all"),
]


@pytest.mark.parametrize(("name", "value", "other"), FIELDS + LORA_FIELDS)
def test_a_fixed_option_goes_to_the_trial_and_not_to_the_params(name: str, value: Any, other: Any) -> None:
    del other

    suggestion = suggest_at({}, FIXED | {name: value})

    holder = suggestion if (name, value) in [entry[:2] for entry in FIELDS] else suggestion.lora
    assert getattr(holder, name) == value
    assert suggestion.params == ()


@pytest.mark.parametrize(("name", "value", "other"), FIELDS + LORA_FIELDS)
def test_a_searched_option_is_a_param_and_goes_to_the_trial(name: str, value: Any, other: Any) -> None:
    suggestion = suggest_at({name: value}, FIXED | {name: {"choices": [other, value]}})

    holder = suggestion if (name, value) in [entry[:2] for entry in FIELDS] else suggestion.lora
    assert getattr(holder, name) == value
    assert suggestion.params == ((name, value),)


def test_options_reach_the_adapter_as_enums() -> None:
    lora = suggest_at({}, FIXED | {"init_lora_weights": "loftq", "bias": "all"}).lora

    assert lora.init_lora_weights is Init.LOFTQ
    assert lora.bias is Bias.ALL


def test_an_alpha_of_its_own_is_the_same_at_any_rank() -> None:
    space = small_space({"r": {"choices": [2, 8]}, "lora_alpha": {"low": 16, "high": 16.5}})

    suggestions = suggest_many(space, num_trials=20)

    assert {each.lora.r for each in suggestions} == {2, 8}
    assert all(16 <= each.lora.lora_alpha <= 16.5 for each in suggestions)


def test_a_module_with_a_rank_of_its_own_keeps_the_factor_on_its_output() -> None:
    lora = suggest_at({}, FIXED | {"r": 4, "lora_alpha": 12}).lora

    assert lora.scaling_at(4) == lora.scaling_at(2) == 3.0


def test_a_module_with_a_rank_of_its_own_keeps_its_alpha_with_rslora() -> None:
    lora = suggest_at({}, FIXED | {"r": 4, "lora_alpha": 12, "use_rslora": True}).lora

    assert lora.scaling_at(4) == 6.0
    assert lora.alpha_at(16) == 12.0


def test_every_plain_parameter_can_be_searched_and_is_asked_in_order() -> None:
    options = {
        "lora_scale": None,
        "lora_alpha": {"low": 8, "high": 64, "log": True},
        "weight_decay": {"choices": [0, 0.01]},
        "lora_plus_ratio": {"low": 1, "high": 16},
        "use_rslora": {"choices": [True, False]},
        "use_dora": {"choices": [True, False]},
        "init_lora_weights": {"choices": ["default", "eva"]},
        "bias": {"choices": ["none", "all"]},
        "rank_pattern": {},
    }
    space = small_space(options)

    expected = (*(name for name in PLAIN if name != "lora_scale"), "target_modules")

    assert searched_params(space) == expected
    assert {tuple(dict(each.params)) for each in suggest_many(space, num_trials=5)} == {expected}


def asked_keys(targets: Any, pattern: dict[str, Any]) -> tuple[str, ...]:
    """Keys of a rank pattern that a trial with these targets is asked for."""
    space = small_space({"target_modules": targets, "rank_pattern": {key: {"choices": [1, 2]} for key in pattern}})
    (suggestion,) = suggest_many(space, num_trials=1)
    return tuple(key for key, _ in suggestion.lora.rank_pattern)


@pytest.mark.parametrize(
    ("targets", "keys", "asked"),
    [
        ("attention", ("attention", "mlp"), ("attention",)),
        ("all-linear", ("mlp", "attention"), ("mlp", "attention")),
        (["query", "value"], ("query", "value", "attention"), ("query", "value")),
        (["query", "key"], ("query", "attention"), ("query", "attention")),
        (["query"], ("first", "middle", "last"), ("first", "middle", "last")),
        (["query"], ("query", "first"), ("query",)),
        (["query@first"], ("first", "middle", "last"), ("first",)),
        (
            ["query"],
            ("query@first", "query@middle", "query@last", "query"),
            ("query@first", "query@middle", "query@last"),
        ),
        (["query"], ("query@last", "query"), ("query@last", "query")),
        (["intermediate.dense"], ("attention", "output.dense"), ()),
    ],
)
def test_a_key_is_asked_for_only_where_it_sets_the_rank_of_a_layer(
    targets: Any, keys: tuple[str, ...], asked: tuple[str, ...]
) -> None:
    assert asked_keys(targets, dict.fromkeys(keys)) == asked


def test_what_is_asked_for_fits_the_model_whatever_is_chosen() -> None:
    pattern = {key: {"choices": [1, 4]} for key in ("attention", "mlp@last", "query@first", "middle")}
    sets = {"choices": ["attention", "mlp", "all-linear", "query"]}
    space = small_space({"target_modules": sets, "rank_pattern": pattern})

    for suggestion in suggest_many(space, num_trials=60):
        assert ranks_of(LAYERS, suggestion.lora)  # raises where a key sets no layer's rank


def problems(changes: dict[str, Any], **model: Any) -> list[tuple[str, str]]:
    return list(space_problems(small_space({"r": 4} | changes), make_model(**model)))


def test_a_space_that_fits_the_model_has_no_problem() -> None:
    assert problems({}) == []
    assert (
        problems({"target_modules": "all-linear", "rank_pattern": {"mlp": 2, "query@last": {"choices": [0, 4]}}}) == []
    )


def test_targets_that_the_model_lacks_are_told_with_what_it_has() -> None:
    changes = {"target_modules": {"choices": {"a": ["query", "v_proj"], "b": ["c_attn"]}}, "rank_pattern": {}}

    assert problems(changes) == [
        ("search.space.target_modules", f"no linear layer is named c_attn, v_proj; the model has: {KNOWN}")
    ]


def test_a_model_without_linear_layers_in_its_blocks_says_so() -> None:
    changes = {"target_modules": ["query"], "rank_pattern": {}}

    assert problems(changes, layers=()) == [
        ("search.space.target_modules", "no linear layer is named query; the model has: none in its blocks")
    ]


def test_a_group_that_the_model_does_not_tell_apart_is_told_with_its_modules() -> None:
    layers = tuple(dataclasses.replace(layer, group=None) for layer in LAYERS)
    changes = {"target_modules": {"choices": ["attention", "mlp"]}, "rank_pattern": {}}

    ((key, message),) = problems(changes, layers=layers, tree="encoder\n  layer (6)\n    query", family="odd")

    assert key == "search.space.target_modules"
    assert message == (
        "attention and mlp: the blocks of this odd don't tell attention and MLP apart; name modules or use all-linear. "
        "The model:\nencoder\n  layer (6)\n    query"
    )


def test_names_still_do_where_groups_are_not_told_apart() -> None:
    layers = tuple(dataclasses.replace(layer, group=None) for layer in LAYERS)

    assert problems({"target_modules": ["query", "value"], "rank_pattern": {}}, layers=layers, tree="encoder") == []


@pytest.mark.parametrize(
    ("pattern", "key", "message"),
    [
        ({"pooler.dense": 2}, "pooler.dense", f"matches no linear layer; the model has: {KNOWN}"),
        ({"output.dense": 2}, "output.dense", "sets no layer's rank: no target_modules reach its layers, or more"),
        ({"attention": 2, "query": 2, "value": 2}, "attention", "sets no layer's rank: no target_modules reach its"),
    ],
)
def test_a_rank_of_its_own_that_no_layer_gets_is_told(pattern: dict[str, Any], key: str, message: str) -> None:
    changes = {"target_modules": ["query", "value"], "rank_pattern": pattern}

    ((place, told),) = problems(changes)

    assert place == f"search.space.rank_pattern.{key}"
    assert told.startswith(message)


@pytest.mark.parametrize(
    "pattern",
    [
        {"query": 0, "value": {"low": 0, "high": 4}},
        {"query": 0, "value": {"choices": [4, 0]}},
        {"attention": {"choices": [0, 2]}},
        {"first": 0, "middle": {"low": 0, "high": 1}, "last": 0},
    ],
    ids=str,
)
def test_ranks_that_may_all_be_0_together_are_told(pattern: dict[str, Any]) -> None:
    changes = {"target_modules": {"choices": {"qv": ["query", "value"]}}, "rank_pattern": pattern}

    message = "all modules of qv may get rank 0 together, so that nothing is adapted; let one start at 1"
    assert problems(changes) == [("search.space.rank_pattern", message)]


@pytest.mark.parametrize(
    "pattern",
    [{"query": 0}, {"query": 0, "value": {"choices": [1, 2]}}, {"first": 0, "last": 0}, {"attention@first": 0}],
    ids=str,
)
def test_one_layer_that_is_always_adapted_is_enough(pattern: dict[str, Any]) -> None:
    assert problems({"target_modules": ["query", "value"], "rank_pattern": pattern}) == []


def test_a_full_name_may_choose_one_block() -> None:
    layers = make_layers(BERT_SHAPES, "bert.encoder.layer", 2, has_bias=True)
    changes = {"target_modules": ["bert.encoder.layer.1.attention.self.query"], "rank_pattern": {}}

    assert problems(changes, layers=layers) == []


def test_a_searched_rank_that_every_key_overrules_is_refused() -> None:
    pattern = {"attention": {"choices": [1, 2]}, "mlp": 4}
    space = small_space({"target_modules": ["all-linear"], "rank_pattern": pattern})

    problems = dict(space_problems(space, make_model()))

    assert problems == {
        "search.space.r": "is searched and sets no layer's rank, for rank_pattern names them all; give one value"
    }
    assert not dict(space_problems(space.model_copy(update={"r": 8}), make_model()))
