"""Where a search starts: the rules' numbers, and points that always lie in the space."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import make_config, make_inspection, make_llama, make_model
from tuner.config import SweepConfig
from tuner.dimensions import Choices
from tuner.layers import ModelFacts, ranks_of
from tuner.lora import LoraSpec
from tuner.recommend import Task, _nearest, baseline_specs, recommend, starting_points
from tuner.space import space_problems, suggest
from tuner.space_config import SpaceConfig
from tuner.trial import Baseline

LLAMA = make_llama()


def sized(billions: float) -> ModelFacts:
    return make_model(num_params=int(billions * 1e9))


def in_family(family: str, hidden_size: int) -> ModelFacts:
    return make_model(family=family, hidden_size=hidden_size)


@pytest.mark.parametrize(
    ("task", "r"),
    [
        (Task.CLASSIFICATION, 4),
        (Task.SUMMARIZATION, 16),
        (Task.QUESTION_ANSWERING, 16),
        (Task.GENERATION, 32),
    ],
)
def test_the_rank_grows_with_what_must_be_learned(task: Task, r: int) -> None:
    assert recommend(LLAMA, task, 5000).r == r


@pytest.mark.parametrize(
    ("billions", "r"),
    [
        (0.02, 8),
        (0.6, 8),
        (0.99, 8),
        (1.1, 16),
        (6.7, 16),
        (8.03, 16),
        (8.2, 16),
        (13.0, 24),
        (14.8, 24),
        (32.5, 32),
        (70.6, 32),
    ],
)
def test_the_rank_grows_with_the_model(billions: float, r: int) -> None:
    assert recommend(sized(billions), Task.SUMMARIZATION, 5000).r == r


@pytest.mark.parametrize(
    ("num_examples", "dropout"), [(10, 0.1), (999, 0.1), (1000, 0.05), (9999, 0.05), (10_000, 0.01), (10**6, 0.01)]
)
def test_the_dropout_falls_with_the_data(num_examples: int, dropout: float) -> None:
    assert recommend(LLAMA, Task.GENERATION, num_examples).lora_dropout == dropout


@pytest.mark.parametrize(
    ("model", "learning_rate"),
    [
        (in_family("llama", 4096), 2.9e-4),
        (in_family("llama", 2000), 5e-4),
        (in_family("bert", 384), 1.8e-3),
        (in_family("qwen2", 3584), 4.8e-4),
        (in_family("qwen3", 1024), 5.3e-4),
        (in_family("odd", 0), 2e-4),
    ],
    ids=lambda value: f"{value.family} {value.hidden_size}" if isinstance(value, ModelFacts) else str(value),
)
def test_the_learning_rate_follows_the_width_and_the_family(model: ModelFacts, learning_rate: float) -> None:
    assert recommend(model, Task.GENERATION, 5000).learning_rate == learning_rate


def test_alpha_is_twice_the_rank_and_all_linear_layers_are_adapted() -> None:
    wanted = recommend(LLAMA, Task.GENERATION, 5000)

    assert (wanted.r, wanted.lora_alpha, wanted.target_modules) == (32, 64, "all-linear")
    assert (wanted.lr_scheduler_type, wanted.warmup_ratio) == ("cosine", 0.1)


def test_every_recommendation_has_its_reason() -> None:
    reasons = dict(recommend(LLAMA, Task.GENERATION, 5000).reasons)

    assert set(reasons) == {"r", "lora_alpha", "lora_dropout", "learning_rate", "target_modules", "schedule"}
    assert reasons["r"] == "32 for generation, times 1 for a model of 8B parameters"
    assert "here 5,000" in reasons["lora_dropout"]


def test_the_profile_doubles_queries_and_values_and_halves_gates_and_downs() -> None:
    wanted = recommend(LLAMA, Task.SUMMARIZATION, 5000)

    assert dict(wanted.rank_pattern) == {
        "q_proj": 32,
        "v_proj": 32,
        "k_proj": 16,
        "o_proj": 16,
        "up_proj": 16,
        "gate_proj": 8,
        "down_proj": 8,
    }


@pytest.mark.parametrize("model", [LLAMA, make_model()], ids=["llama", "bert"])
@pytest.mark.parametrize("task", Task)
def test_the_profile_fits_the_model_that_it_was_made_for(model: ModelFacts, task: Task) -> None:
    wanted = recommend(model, task, 5000)
    lora = LoraSpec(
        r=wanted.r,
        lora_alpha=wanted.lora_alpha,
        lora_dropout=wanted.lora_dropout,
        target_modules=(wanted.target_modules,),
        rank_pattern=wanted.rank_pattern,
    )

    assert len(ranks_of(model.layers, lora)) == len(model.layers)


def test_a_model_of_unknown_names_gets_no_profile() -> None:
    shapes = make_model(layers=())

    assert recommend(shapes, Task.GENERATION, 5000).rank_pattern == ()


SPACE: dict[str, Any] = {
    "r": {"choices": [4, 16, 64]},
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "target_modules": "all-linear",
}


def sweep_with(space: dict[str, Any], **sections: Any) -> SweepConfig:
    """A sweep of a causal language model over a space; None as a value removes the key."""
    merged = {key: value for key, value in (SPACE | space).items() if value is not None}
    values: dict[str, Any] = {
        "training": {"task": "causal-lm", "max_steps": 120},
        "search": {"num_trials": 4, "space": merged},
    }
    return make_config(**values | sections)


def points(space: dict[str, Any], model: ModelFacts = LLAMA) -> tuple[dict[str, Any], ...]:
    return starting_points(sweep_with(space), make_inspection(model=model, num_train=5000))


def test_a_space_without_ranks_by_module_starts_with_one_point() -> None:
    assert points({}) == ({"r": 16, "learning_rate": 2.9e-4},)


@pytest.mark.parametrize(
    ("dimension", "nearest"),
    [
        ({"choices": [8, 64, 128]}, 64),
        ({"choices": [1, 2]}, 2),
        ({"choices": [100, 256]}, 100),
        ({"low": 1, "high": 64}, 32),
        ({"low": 1, "high": 9}, 9),
        ({"low": 40, "high": 50}, 40),
        ({"low": 1, "high": 61, "step": 10}, 31),
        ({"low": 2, "high": 16, "log": True}, 16),
    ],
    ids=str,
)
def test_a_value_is_the_nearest_of_the_space(dimension: dict[str, Any], nearest: int) -> None:
    (point,) = points({"r": dimension})

    assert point["r"] == nearest


def test_the_last_step_of_a_range_does_not_overshoot_it() -> None:
    (point,) = points({"lora_scale": {"low": 0.1, "high": 0.3, "step": 0.1}})

    assert point["lora_scale"] == 0.3


def test_alpha_is_twice_the_rank_that_the_space_allows() -> None:
    (searched,) = points({"r": {"choices": [4]}, "lora_alpha": {"low": 1, "high": 100}})
    (fixed,) = points({"r": 12, "lora_alpha": {"low": 1, "high": 100}})

    assert searched["lora_alpha"] == 8
    assert fixed["lora_alpha"] == 24


def test_options_start_as_plain_lora_where_the_space_has_it() -> None:
    options = {
        "use_dora": {"choices": [True, False]},
        "use_rslora": {"choices": [True]},
        "init_lora_weights": {"choices": ["eva", "default"]},
        "bias": {"choices": ["all", "lora_only"]},
        "weight_decay": {"low": 0.01, "high": 0.1},
        "lora_plus_ratio": {"choices": [16, 1]},
    }

    (point,) = points(options)

    assert {name: point[name] for name in options} == {
        "use_dora": False,
        "use_rslora": True,
        "init_lora_weights": "default",
        "bias": "all",
        "weight_decay": 0.01,
        "lora_plus_ratio": 1.0,
    }


@pytest.mark.parametrize(
    ("targets", "name"),
    [
        ({"choices": ["attention", "mlp", "all-linear"]}, "all-linear"),
        ({"choices": {"small": ["q_proj"], "large": ["attention", "mlp"]}}, "large"),
        ({"choices": {"qv": ["q_proj", "v_proj"], "q": ["q_proj"]}}, "qv"),
        ({"choices": ["attention", "mlp@first"]}, "attention"),
    ],
    ids=str,
)
def test_the_targets_are_the_set_that_shares_most_with_all_layers(targets: dict[str, Any], name: str) -> None:
    (point,) = points({"target_modules": targets})

    assert point["target_modules"] == name


RANKS = {"choices": [0, 8, 16, 32, 64]}


def test_ranks_by_module_start_alike_first_and_by_the_profile_second() -> None:
    uniform, profiled = points({"r": 32, "rank_pattern": {"q_proj": RANKS, "o_proj": RANKS, "down_proj": RANKS}})

    def ranks_at(point: dict[str, Any]) -> list[int]:
        return [point[f"rank_pattern.{name}"] for name in ("q_proj", "o_proj", "down_proj")]

    assert ranks_at(uniform) == [32, 32, 32]
    assert ranks_at(profiled) == [64, 32, 16]
    assert {key: value for key, value in uniform.items() if "rank" not in key} == {
        key: value for key, value in profiled.items() if "rank" not in key
    }


def test_points_that_come_out_alike_are_tried_once() -> None:
    assert len(points({"rank_pattern": {"o_proj": RANKS, "k_proj": RANKS}, "r": 32})) == 1


def test_a_space_with_nothing_to_search_has_no_starting_point() -> None:
    assert points({"r": 8, "learning_rate": 1e-4}) == ()


def test_a_sweep_may_start_without_points() -> None:
    search = {"num_trials": 4, "start": "none", "space": SPACE}

    assert starting_points(sweep_with({}, search=search), make_inspection(model=LLAMA)) == ()


def test_a_model_of_which_nothing_is_known_has_no_starting_point() -> None:
    assert points({}, make_model(layers=())) == ()


numbers = st.lists(st.integers(1, 128), min_size=1, max_size=4, unique=True)
int_ranges = st.builds(
    lambda low, count, step: {"low": low, "high": low + count * step, "step": step},
    st.integers(1, 64),
    st.integers(1, 12),
    st.integers(1, 9),
)
int_logs = st.builds(
    lambda low, more: {"low": low, "high": low + more, "log": True}, st.integers(1, 64), st.integers(1, 99)
)
ranks = st.integers(1, 128) | st.builds(lambda choices: {"choices": choices}, numbers) | int_ranges | int_logs


def floats(low: float, high: float) -> st.SearchStrategy[Any]:
    """Dimensions of numbers above `low` and up to `high`: fixed, choices, and ranges, some logarithmic or with steps."""
    value = st.floats(low, high, exclude_min=True)
    pair = st.lists(value, min_size=2, max_size=2, unique=True).map(sorted)
    unit = (high - low) / 100
    return st.one_of(
        value,
        st.lists(value, min_size=1, max_size=3, unique=True).map(lambda choices: {"choices": choices}),
        pair.map(lambda ends: {"low": ends[0], "high": ends[1]}),
        pair.map(lambda ends: {"low": ends[0], "high": ends[1], "log": True}),
        st.integers(1, 50).map(lambda count: {"low": unit, "high": float(f"{unit * (count + 1):.6g}"), "step": unit}),
    )


sets = st.sampled_from(
    [
        "all-linear",
        ["q_proj", "v_proj"],
        {"choices": ["attention", "mlp", "all-linear"]},
        {"choices": {"first": ["attention@first"], "qkv": ["q_proj", "k_proj", "v_proj"], "mlp": "mlp"}},
    ]
)
keys = st.sampled_from(["q_proj", "attention", "mlp", "first", "down_proj@last", "v_proj@middle", "self_attn.v_proj"])
flags = st.none() | st.booleans() | st.sampled_from([{"choices": [True, False]}, {"choices": [True]}])
spaces = st.fixed_dictionaries(
    {
        "r": ranks,
        "learning_rate": floats(1e-6, 1e-1),
        "target_modules": sets,
        "rank_pattern": st.dictionaries(keys, ranks, max_size=4),
    },
    optional={
        "lora_scale": floats(0, 10),
        "lora_dropout": floats(0, 0.5),
        "weight_decay": floats(0, 1),
        "lora_plus_ratio": floats(1, 32),
        "use_dora": flags.filter(lambda flag: flag is not None),
        "init_lora_weights": st.sampled_from(["eva", {"choices": ["gaussian", "default"]}, {"choices": ["eva"]}]),
    },
)


def is_reached(space: dict[str, Any]) -> bool:
    """Whether a drawn space is one that the sweep file takes and the model has."""
    try:
        return not list(space_problems(SpaceConfig.model_validate(space), LLAMA))
    except ValueError:
        return False


@settings(max_examples=150, derandomize=True, deadline=None)
@given(spaces.filter(is_reached))
def test_starting_points_lie_in_the_space_and_are_suggested_as_they_are(space: dict[str, Any]) -> None:
    config = sweep_with(space)
    study = optuna.create_study()

    for point in points(space):
        study.enqueue_trial(point)
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # optuna warns of a value that is out of the space
            suggestion = suggest(trial, config.search.space, LLAMA.layers)
        assert dict(suggestion.params) == point
        assert ranks_of(LLAMA.layers, suggestion.lora)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(spaces.filter(is_reached))
def test_starting_points_differ(space: dict[str, Any]) -> None:
    found = points(space)

    assert len({tuple(point.items()) for point in found}) == len(found) <= 2


def specs(space: dict[str, Any], **sections: Any) -> list[tuple[int, Baseline | None, float]]:
    made = baseline_specs(sweep_with(space, **sections), make_inspection(model=LLAMA, num_train=5000))
    return [(spec.number, spec.baseline, spec.learning_rate) for spec in made]


def test_a_sweep_that_asks_for_no_baselines_has_none() -> None:
    assert specs({}) == []


def test_baselines_are_numbered_downwards_from_minus_1() -> None:
    asked = {"zero_shot": True, "full": [1e-5, 2e-5], "unquantized_lora": True}

    assert specs({}, baselines=asked) == [
        (-1, Baseline.ZERO_SHOT, 0.0),
        (-2, Baseline.FULL, 1e-5),
        (-3, Baseline.FULL, 2e-5),
        (-4, Baseline.UNQUANTIZED_LORA, 2.9e-4),
    ]


def test_a_head_is_trained_once_for_each_learning_rate() -> None:
    asked = {"head_only": [1e-3, 1e-2]}

    assert specs({}, training={"max_steps": 120}, baselines=asked) == [
        (-1, Baseline.HEAD_ONLY, 1e-3),
        (-2, Baseline.HEAD_ONLY, 1e-2),
    ]


def test_only_the_baseline_without_quantization_has_an_adapter() -> None:
    config = sweep_with({}, baselines={"zero_shot": True, "full": [1e-5], "unquantized_lora": True})

    adapters = [spec.lora for spec in baseline_specs(config, make_inspection(model=LLAMA))]

    assert adapters[:2] == [None, None]
    assert adapters[2]
    assert (adapters[2].r, adapters[2].target_modules) == (16, ("all-linear",))


def test_the_baseline_without_quantization_fits_a_space_with_nothing_to_search() -> None:
    asked = {"unquantized_lora": True}

    assert specs({"r": 8, "learning_rate": 1e-4}, baselines=asked) == [(-1, Baseline.UNQUANTIZED_LORA, 1e-4)]


def test_baselines_have_the_seed_of_all_trials() -> None:
    config = sweep_with({}, training={"task": "causal-lm", "max_steps": 8, "seed": 7}, baselines={"zero_shot": True})

    assert [spec.seed for spec in baseline_specs(config, make_inspection(model=LLAMA))] == [7]


def test_a_recommended_rank_is_never_moved_to_zero() -> None:
    assert _nearest(Choices[int](choices=(0, 4, 16)), 2) == 4
    assert _nearest(Choices[int](choices=(0, 16)), 8) == 16
    assert _nearest(Choices[float](choices=(0.0, 0.1)), 0.01) == 0.0
