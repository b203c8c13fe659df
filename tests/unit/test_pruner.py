"""The pruning rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_config, make_metrics
from tuner.config import PruningConfig
from tuner.front import Objective, objectives_of
from tuner.pruner import is_dominated
from tuner.trial import Metrics

PARETO, OBJECTIVES = PruningConfig(), objectives_of(make_config())


def at_rung(accuracy: float, *, params: int = 100, memory: int = 100, loss: float | None = None) -> Metrics:
    return make_metrics(
        steps=30,
        accuracy=accuracy,
        loss=1 - accuracy if loss is None else loss,
        trainable_params=params,
        peak_memory_bytes=memory,
        num_validation=400,
    )


def test_a_cheaper_and_clearly_better_trial_stops_another() -> None:
    assert is_dominated(at_rung(0.5, params=200), [at_rung(0.7, params=100)], PARETO, OBJECTIVES)


def test_an_equally_cheap_and_clearly_better_trial_stops_another() -> None:
    assert is_dominated(at_rung(0.5), [at_rung(0.7)], PARETO, OBJECTIVES)


def test_a_better_trial_with_more_parameters_stops_nothing() -> None:
    assert not is_dominated(at_rung(0.3, params=99), [at_rung(0.9, params=100)], PARETO, OBJECTIVES)


def test_a_better_trial_with_more_memory_stops_nothing() -> None:
    assert not is_dominated(at_rung(0.3, memory=99), [at_rung(0.9, memory=100)], PARETO, OBJECTIVES)


def test_a_cost_that_is_no_objective_does_not_protect() -> None:
    objectives = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)

    assert is_dominated(at_rung(0.3, memory=99), [at_rung(0.9, memory=100)], PARETO, objectives)


def test_a_lead_within_the_noise_of_the_validation_data_stops_nothing() -> None:
    # standard error of the difference at n = 400 and p near 0.5: 3.5 points; 95 % one-sided: 5.8 points
    assert not is_dominated(at_rung(0.50), [at_rung(0.55)], PARETO, OBJECTIVES)
    assert is_dominated(at_rung(0.50), [at_rung(0.56)], PARETO, OBJECTIVES)


def test_a_lead_in_accuracy_alone_stops_nothing() -> None:
    assert not is_dominated(at_rung(0.5, loss=0.4), [at_rung(0.7, loss=0.5)], PARETO, OBJECTIVES)


def perplexity_at_rung(perplexity: float, *, loss: float) -> Metrics:
    return make_metrics(steps=30, accuracy=perplexity, loss=loss, standard_error=0.5)


def test_a_clearly_lower_perplexity_stops_a_higher_one_and_never_the_other_way_round() -> None:
    low, high = perplexity_at_rung(4.0, loss=1.4), perplexity_at_rung(8.0, loss=2.1)
    objectives = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS)

    assert is_dominated(high, [low], PARETO, objectives)
    assert not is_dominated(low, [high], PARETO, objectives)


def test_a_lead_in_perplexity_within_its_standard_error_stops_nothing() -> None:
    near, far = perplexity_at_rung(4.0, loss=1.4), perplexity_at_rung(5.0, loss=1.6)

    assert not is_dominated(far, [near], PARETO, (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS))


def test_a_sweep_without_costs_stops_by_the_metric_alone() -> None:
    assert is_dominated(at_rung(0.3, params=1, memory=1), [at_rung(0.9)], PARETO, (Objective.ACCURACY,))


def test_method_none_stops_nothing() -> None:
    assert not is_dominated(at_rung(0.1), [at_rung(0.9)], PruningConfig(method="none"), OBJECTIVES)


reports = st.builds(
    at_rung,
    accuracy=st.integers(0, 400).map(lambda right: right / 400),
    params=st.integers(1, 4),
    memory=st.integers(1, 4),
)


@given(reports, st.lists(reports, max_size=8))
def test_a_trial_that_nothing_dominates_outright_is_never_stopped(candidate: Metrics, others: list[Metrics]) -> None:
    dominators = [
        other
        for other in others
        if other.trainable_params <= candidate.trainable_params
        and other.peak_memory_bytes <= candidate.peak_memory_bytes
        and other.accuracy > candidate.accuracy
    ]

    assert dominators or not is_dominated(candidate, others, PARETO, OBJECTIVES)


@given(reports, st.lists(reports, max_size=8), reports)
def test_another_report_can_only_add_a_reason_to_stop(candidate: Metrics, others: list[Metrics], more: Metrics) -> None:
    if is_dominated(candidate, others, PARETO, OBJECTIVES):
        assert is_dominated(candidate, [*others, more], PARETO, OBJECTIVES)
