"""Which finished trials stand on the front, and which one a rule picks."""

from __future__ import annotations

import pytest

from tests.builders import MIB, make_config, make_record, make_spec
from tuner.errors import PickError
from tuner.front import Objective, Pick, front, objectives_of
from tuner.trial import Baseline, MemoryKind, TrialRecord, TrialState

ALL = objectives_of(make_config())
BY_PARAMS = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)
BY_PERPLEXITY = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS)


def finished(number: int, *, accuracy: float, params: int = 100, mib: int = 100) -> TrialRecord:
    return make_record(number, accuracy=accuracy, trainable_params=params, peak_memory_bytes=mib * MIB)


def numbers(records: tuple[TrialRecord, ...]) -> list[int]:
    return [record.number for record in records]


CHEAPEST_FIRST = (
    finished(4, accuracy=0.60, params=100),
    finished(2, accuracy=0.88, params=200),
    finished(7, accuracy=0.89, params=500),
    finished(1, accuracy=0.90, params=1000),
)


def test_objectives_have_their_own_units_and_directions() -> None:
    metrics = finished(0, accuracy=0.8, params=10, mib=512).last

    assert metrics is not None
    assert [goal.of(metrics) for goal in ALL] == [0.8, 10.0, 0.5]
    assert [goal.is_maximized for goal in ALL] == [True, False, False]


@pytest.mark.parametrize(
    ("has_params", "has_memory", "expected"),
    [
        (True, True, ["accuracy", "trainable_params", "peak_memory_gib"]),
        (True, False, ["accuracy", "trainable_params"]),
        (False, True, ["accuracy", "peak_memory_gib"]),
        (False, False, ["accuracy"]),
    ],
)
def test_the_sweep_file_chooses_the_objectives(has_params: bool, has_memory: bool, expected: list[str]) -> None:
    config = make_config(objectives={"trainable_params": has_params, "memory": has_memory})

    assert [str(goal) for goal in objectives_of(config)] == expected


@pytest.mark.parametrize("accuracy", ["exact_match", "choice_accuracy", "token_accuracy", "perplexity"])
def test_the_metric_that_the_sweep_names_is_weighed_first(accuracy: str) -> None:
    config = make_config(training={"task": "causal-lm", "max_steps": 120}, objectives={"accuracy": accuracy})

    assert [str(goal) for goal in objectives_of(config)] == [accuracy, "trainable_params", "peak_memory_gib"]


def test_each_objective_that_is_a_metric_goes_its_way_and_costs_go_down() -> None:
    maximized = {goal for goal in Objective if goal.is_maximized}

    assert set(Objective) - maximized == {Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS, Objective.PEAK_MEMORY_GIB}
    assert {goal for goal in Objective if goal.metric is None} == {
        Objective.TRAINABLE_PARAMS,
        Objective.PEAK_MEMORY_GIB,
    }


def test_a_baseline_stands_beside_the_front_and_pushes_nothing_off() -> None:
    spec = make_spec(-1, lora=None, baseline=Baseline.ZERO_SHOT)
    baseline = make_record(-1, spec=spec, accuracy=0.99, trainable_params=0, peak_memory_bytes=1)

    assert numbers(front([finished(0, accuracy=0.5), baseline], ALL)) == [0]


def test_a_baseline_may_have_measured_its_memory_in_another_way() -> None:
    spec = make_spec(-1, lora=None, baseline=Baseline.FULL)
    baseline = make_record(-1, spec=spec, memory_kind=MemoryKind.CUDA_ALLOCATED)

    assert numbers(front([baseline, finished(0, accuracy=0.5)], ALL)) == [0]


def test_the_lower_perplexity_is_the_better_one() -> None:
    worse, better = finished(0, accuracy=9.5), finished(1, accuracy=3.5)

    assert numbers(front([worse, better], BY_PERPLEXITY)) == [1]


def test_a_front_by_perplexity_is_cheapest_first_too() -> None:
    records = [finished(0, accuracy=3.5, params=300), finished(1, accuracy=9.5, params=100)]

    assert numbers(front(records, BY_PERPLEXITY)) == [1, 0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("most-accurate", 2),
        ("cheapest-within:0", 2),
        ("cheapest-within:0.5", 1),
        ("cheapest-within:20", 0),
        ("knee", 1),
    ],
)
def test_a_rule_picks_by_perplexity_as_by_a_share(rule: str, expected: int) -> None:
    records = [
        finished(0, accuracy=9.0, params=100),
        finished(1, accuracy=3.5, params=200),
        finished(2, accuracy=3.0, params=1000),
    ]

    assert Pick(rule=rule).of(front(records, BY_PERPLEXITY), BY_PERPLEXITY).number == expected


def test_a_trial_that_another_beats_everywhere_is_not_on_the_front() -> None:
    records = [finished(0, accuracy=0.8, params=200), finished(1, accuracy=0.9, params=100)]

    assert numbers(front(records, ALL)) == [1]


def test_a_trial_that_is_better_in_memory_alone_is_on_the_front() -> None:
    records = [finished(0, accuracy=0.8, params=200, mib=50), finished(1, accuracy=0.9, params=100, mib=60)]

    assert numbers(front(records, ALL)) == [1, 0]
    assert numbers(front(records, BY_PARAMS)) == [1]


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL])
def test_only_complete_trials_stand_on_the_front_and_no_other_pushes_them_off(state: TrialState) -> None:
    best = make_record(0, state, accuracy=0.99, trainable_params=1, peak_memory_bytes=1)

    assert numbers(front([best, finished(1, accuracy=0.5)], ALL)) == [1]


def test_no_finished_trial_is_an_empty_front() -> None:
    assert front([], ALL) == ()
    assert front([make_record(0, TrialState.RUNNING, curve=())], ALL) == ()


def test_the_front_is_sorted_by_parameters_then_memory_then_accuracy_then_number() -> None:
    by_cost = [
        finished(6, accuracy=0.5, params=100, mib=30),
        finished(5, accuracy=0.7, params=200, mib=10),
        finished(4, accuracy=0.8, params=200, mib=20),
        finished(1, accuracy=0.9, params=300, mib=40),
        finished(3, accuracy=0.9, params=300, mib=40),
    ]

    assert front(list(reversed(by_cost)), ALL) == tuple(by_cost)


def test_the_front_is_sorted_by_the_costs_that_the_sweep_weighs() -> None:
    by_memory = [finished(0, accuracy=0.8, params=200, mib=10), finished(1, accuracy=0.9, params=100, mib=20)]

    assert numbers(front(by_memory, (Objective.ACCURACY, Objective.PEAK_MEMORY_GIB))) == [0, 1]
    assert numbers(front(by_memory, ALL)) == [1, 0]


def test_of_equally_dear_trials_the_more_accurate_stands_alone() -> None:
    assert numbers(front([finished(0, accuracy=0.7), finished(1, accuracy=0.8)], ALL)) == [1]


def test_memory_measured_in_two_ways_shares_no_front() -> None:
    records = [make_record(0), make_record(1, memory_kind=MemoryKind.CUDA_ALLOCATED)]

    with pytest.raises(ValueError, match="two kinds of memory can't share a front"):
        front(records, ALL)


def test_a_failed_trial_may_have_measured_its_memory_in_another_way() -> None:
    records = [make_record(0), make_record(1, TrialState.FAIL, memory_kind=MemoryKind.CUDA_ALLOCATED)]

    assert numbers(front(records, ALL)) == [0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("knee", 2),
        ("most-accurate", 1),
        ("trial:7", 7),
        ("trial:007", 7),
        ("cheapest-within:0", 1),
        ("cheapest-within:0.015", 7),
        ("cheapest-within:0.05", 2),
        ("cheapest-within:1", 4),
    ],
)
def test_a_rule_picks_one_trial_of_the_front(rule: str, expected: int) -> None:
    assert Pick(rule=rule).of(CHEAPEST_FIRST, BY_PARAMS).number == expected


def test_of_equally_accurate_trials_the_cheapest_is_picked() -> None:
    equal = (finished(3, accuracy=0.9, params=1, mib=9), finished(0, accuracy=0.9, params=2, mib=8))

    assert Pick(rule="most-accurate").of(equal, ALL).number == 3
    assert Pick(rule="cheapest-within:0").of(equal, ALL).number == 3


@pytest.mark.parametrize("margin", ["0.01", "0.02", "0.1", "0.3"])
def test_a_trial_exactly_at_the_margin_is_within(margin: str) -> None:
    below = (finished(0, accuracy=round(0.9 - float(margin), 2), params=1), finished(1, accuracy=0.9, params=2))

    assert Pick(rule=f"cheapest-within:{margin}").of(below, BY_PARAMS).number == 0


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "best",
        "knee:1",
        "most-accurate:2",
        "Knee",
        "trial",
        "trial:",
        "trial:-1",
        "trial:one",
        "cheapest-within",
        "cheapest-within:",
        "cheapest-within:1%",
        "cheapest-within:-0.1",
        "cheapest-within:inf",
        "cheapest-within:nan",
        "cheapest-within:se",
        "cheapest-within:-1se",
        "cheapest-within:1 s",
    ],
)
def test_a_rule_that_is_none_of_these_is_told_with_all(rule: str) -> None:
    with pytest.raises(PickError) as caught:
        Pick(rule=rule).of(CHEAPEST_FIRST, BY_PARAMS)

    rules = "knee, most-accurate, trial:N or cheapest-within:MARGIN (0 or more, or 1se)"
    assert str(caught.value) == f"pick must be {rules}, got {rule!r}"


@pytest.mark.parametrize(("rule", "number"), [("0se", 1), ("0.5se", 1), ("1se", 0), ("2se", 0)])
def test_a_margin_may_be_given_in_standard_errors_of_the_best(rule: str, number: int) -> None:
    below = (finished(0, accuracy=0.885, params=1), finished(1, accuracy=0.9, params=2))  # one standard error is 0.015

    assert Pick(rule=f"cheapest-within:{rule}").of(below, BY_PARAMS).number == number


def test_a_trial_off_the_front_is_told_with_those_on_it() -> None:
    with pytest.raises(PickError, match=r"trial 3 is not on the front, .* are kept: 4, 2, 7, 1$"):
        Pick(rule="trial:3").of(CHEAPEST_FIRST, BY_PARAMS)


@pytest.mark.parametrize("rule", ["knee", "most-accurate", "trial:0", "cheapest-within:0.1"])
def test_an_empty_front_has_nothing_to_pick(rule: str) -> None:
    with pytest.raises(PickError, match="no trial has finished"):
        Pick(rule=rule).of((), ALL)
