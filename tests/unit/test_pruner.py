"""The stopping rules."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers.async_hyperband import _Bracket

from tests.builders import make_config, make_metrics
from tuner.forecast import Outlook
from tuner.front import Objective, objectives_of
from tuner.ladder import Ladder, Rung
from tuner.pruner import asha_stops, dominator, is_below_floor, median_stops, rivals_of
from tuner.trial import Metrics

OBJECTIVES = objectives_of(make_config())


def at_rung(accuracy: float, *, params: int = 100, memory: int = 100, loss: float | None = None) -> Metrics:
    return make_metrics(
        steps=30,
        accuracy=accuracy,
        loss=1 - accuracy if loss is None else loss,
        trainable_params=params,
        peak_memory_bytes=memory,
        num_validation=400,
    )


def rung_of(reports: list[Metrics], objectives: tuple[Objective, ...] = OBJECTIVES) -> Rung:
    ladder = Ladder(objectives)
    for number, metrics in enumerate(reports):
        ladder.add(number, metrics)
    return ladder.at(30)


def lasting(rung: Rung, rows: np.ndarray, error: float = 0.0) -> Outlook:
    """The outlook of trials that end where they are now."""
    return Outlook(metric=rung.metric[rows].copy(), error=np.full(len(rows), error))


def stops(
    candidate: Metrics, others: list[Metrics], objectives: tuple[Objective, ...] = OBJECTIVES, *, error: float = 0.0
) -> bool:
    """Whether some of the others stop the candidate at the usual confidence."""
    rung = rung_of([*others, candidate], objectives)
    row = len(others)
    rivals = rivals_of(rung, row)
    expected = lasting(rung, np.append(rivals, row), error)
    return dominator(rung, row, rivals, expected, confidence=0.95) is not None


def test_a_cheaper_and_clearly_better_trial_stops_another() -> None:
    assert stops(at_rung(0.5, params=200), [at_rung(0.7, params=100)])


def test_an_equally_cheap_and_clearly_better_trial_stops_another() -> None:
    assert stops(at_rung(0.5), [at_rung(0.7)])


def test_a_better_trial_with_more_parameters_stops_nothing() -> None:
    assert not stops(at_rung(0.3, params=99), [at_rung(0.9, params=100)])


def test_a_better_trial_with_more_memory_stops_nothing() -> None:
    assert not stops(at_rung(0.3, memory=99), [at_rung(0.9, memory=100)])


def test_a_cost_that_is_no_objective_does_not_protect() -> None:
    objectives = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)

    assert stops(at_rung(0.3, memory=99), [at_rung(0.9, memory=100)], objectives)


def test_a_lead_within_the_noise_of_the_validation_data_stops_nothing() -> None:
    # standard error of the difference at n = 400 and p near 0.5: 3.5 points; 95 % one-sided: 5.8 points
    assert not stops(at_rung(0.50), [at_rung(0.55)])
    assert stops(at_rung(0.50), [at_rung(0.56)])


def test_a_lead_must_be_clearer_the_more_rivals_there_are() -> None:
    # the other three are better at a price in parameters that the candidate pays too: each could lead by chance
    rivals = [
        at_rung(0.56, params=100),
        at_rung(0.555, params=99),
        at_rung(0.552, params=98),
        at_rung(0.551, params=97),
    ]

    assert stops(at_rung(0.50), rivals[:1])
    assert not stops(at_rung(0.50), rivals)


def test_a_lead_in_accuracy_alone_stops_nothing() -> None:
    assert not stops(at_rung(0.5, loss=0.4), [at_rung(0.7, loss=0.5)])


def test_a_lead_that_is_not_expected_to_last_stops_nothing() -> None:
    assert not stops(at_rung(0.5), [at_rung(0.7)], error=0.2)


def perplexity_at_rung(perplexity: float, *, loss: float) -> Metrics:
    return make_metrics(steps=30, accuracy=perplexity, loss=loss, standard_error=0.5)


def test_a_clearly_lower_perplexity_stops_a_higher_one_and_never_the_other_way_round() -> None:
    low, high = perplexity_at_rung(4.0, loss=1.4), perplexity_at_rung(8.0, loss=2.1)
    objectives = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS)

    assert stops(high, [low], objectives)
    assert not stops(low, [high], objectives)


def test_a_sweep_without_costs_stops_by_the_metric_alone() -> None:
    assert stops(at_rung(0.3, params=1, memory=1), [at_rung(0.9)], (Objective.ACCURACY,))


reports = st.builds(
    at_rung,
    accuracy=st.integers(0, 400).map(lambda right: right / 400),
    params=st.integers(1, 4),
    memory=st.integers(1, 4),
)


def leads_beyond_noise(other: Metrics, candidate: Metrics) -> bool:
    error = np.hypot(other.standard_error, candidate.standard_error)
    return (
        other.trainable_params <= candidate.trainable_params
        and other.peak_memory_bytes <= candidate.peak_memory_bytes
        and other.accuracy - candidate.accuracy > 1.6448 * error
    )


@given(reports, st.lists(reports, max_size=8))
def test_a_trial_that_is_not_dominated_beyond_the_noise_is_never_stopped(
    candidate: Metrics, others: list[Metrics]
) -> None:
    if stops(candidate, others):
        assert any(leads_beyond_noise(other, candidate) for other in others)


@given(reports, st.lists(reports, min_size=1, max_size=8), reports)
def test_a_dominated_trial_changes_nothing_for_another(
    candidate: Metrics, others: list[Metrics], more: Metrics
) -> None:
    worse = dataclasses.replace(
        more,
        accuracy=max(0.0, others[0].accuracy - 0.01),
        loss=others[0].loss + 0.01,
        trainable_params=others[0].trainable_params + 1,
        peak_memory_bytes=others[0].peak_memory_bytes,
    )

    assert stops(candidate, [*others, worse]) == stops(candidate, others)


@given(st.lists(reports, max_size=8), st.randoms(use_true_random=False))
def test_who_survives_a_rung_does_not_depend_on_the_order_of_arrival(others: list[Metrics], draw: object) -> None:
    shuffled = [*others]
    draw.shuffle(shuffled)  # type: ignore[attr-defined]

    assert survivors(shuffled) == survivors(others)


def survivors(reports: list[Metrics]) -> list[tuple[float, int, int]]:
    """What is left once all have arrived, as sorted values."""
    left = [report for index, report in enumerate(reports) if not stops(report, reports[:index] + reports[index + 1 :])]
    return sorted((report.accuracy, report.trainable_params, report.peak_memory_bytes) for report in left)


def test_a_trial_at_the_floor_is_stopped_once_another_is_clearly_above_it() -> None:
    rung = rung_of([at_rung(0.3, params=1), at_rung(0.5)])

    assert is_below_floor(rung, 0, floor=-0.3, confidence=0.95)
    assert not is_below_floor(rung, 1, floor=-0.3, confidence=0.95)


def test_where_nobody_is_clearly_above_the_floor_nobody_is_stopped_for_it() -> None:
    rung = rung_of([at_rung(0.3, params=1), at_rung(0.32)])

    assert not is_below_floor(rung, 0, floor=-0.3, confidence=0.95)


def named(trial_id: str) -> Any:
    """What Ray's bracket looks at in a trial."""
    return SimpleNamespace(trial_id=trial_id)


accuracies = st.lists(st.integers(0, 400).map(lambda right: right / 400), min_size=1, max_size=20)


@given(accuracies, st.integers(2, 4))
def test_asha_stops_as_rays_does(values: list[float], factor: int) -> None:
    bracket = _Bracket(min_t=30, max_t=31, reduction_factor=factor, s=0)
    expected = [bracket.on_result(named(str(number)), 30, value) == "STOP" for number, value in enumerate(values)]
    rung = rung_of([at_rung(value) for value in values])

    got = [asha_stops(rung, row, factor) for row in range(len(values))]

    # both interpolate between two reports; where the value is that very point, rounding decides
    for ours, theirs, row in zip(got, expected, range(len(values)), strict=True):
        cutoff = np.quantile(values[:row], 1 - 1 / factor) if row else -1
        assert ours == theirs or values[row] == pytest.approx(cutoff, abs=1e-9)


@given(accuracies)
def test_asha_keeps_what_optunas_successive_halving_promotes(values: list[float]) -> None:
    """Optuna promotes the best n // factor of n, so with factor 2 nothing that it promotes is below the median before it."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=30, reduction_factor=2)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    rung = rung_of([at_rung(value) for value in values])

    for row, value in enumerate(values):
        trial = study.ask()
        trial.report(value, 30)
        is_promoted = not trial.should_prune()
        if is_promoted and row:
            assert not asha_stops(rung, row, 2)


@given(accuracies)
def test_the_median_rule_is_optunas(values: list[float]) -> None:
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    ladder = Ladder(OBJECTIVES)
    finished: set[int] = set()
    for number, value in enumerate(values):
        trial = study.ask()
        trial.report(value, 30)
        ladder.add(number, at_rung(value))

        is_stopped = median_stops(ladder.at(30), number, best=-value, finished=frozenset(finished))

        assert is_stopped == trial.should_prune()
        study.tell(trial, value)
        finished.add(number)
