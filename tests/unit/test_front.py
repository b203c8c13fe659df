"""Which finished trials stand on the front."""

from __future__ import annotations

import pytest

from tests.builders import MIB, make_config, make_record, make_spec
from tuner.front import Objective, front, objectives_of
from tuner.trial import Baseline, MemoryKind, TrialRecord, TrialState

ALL = objectives_of(make_config())
BY_PARAMS = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)
BY_PERPLEXITY = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS)


def finished(number: int, *, accuracy: float, params: int = 100, mib: int = 100) -> TrialRecord:
    return make_record(number, accuracy=accuracy, trainable_params=params, peak_memory_bytes=mib * MIB)


def numbers(records: tuple[TrialRecord, ...]) -> list[int]:
    return [record.number for record in records]


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
