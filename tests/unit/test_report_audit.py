"""What an audit says of stopping early: counts by hand, intervals against known values, hypervolume against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import MIB, make_metrics, make_record, make_spec
from tuner.front import Objective
from tuner.report.findings.audit import Audit, build_audit, mean_interval, share_interval
from tuner.trial import Baseline, TrialRecord, TrialState

OBJECTIVES = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)
Place = tuple[float, int]
"""(accuracy, trainable parameters)."""


def finished(number: int, place: Place) -> TrialRecord:
    return make_record(number, accuracy=place[0], trainable_params=place[1])


def stopped(number: int) -> TrialRecord:
    return make_record(number, TrialState.PRUNED, steps=30, accuracy=0.1)


def audit_of(number: int, place: Place, state: TrialState = TrialState.COMPLETE) -> TrialRecord:
    """Goes on from where `stopped` ended."""
    curve = (make_metrics(steps=30, accuracy=0.1), make_metrics(accuracy=place[0], trainable_params=place[1]))
    return make_record(-1 - number, state, spec=make_spec(-1 - number, audits=number), curve=curve)


def audited(kept: list[Place], added: list[Place], num_more: int = 0) -> Audit:
    """An audit of trials that ended at `added`, out of as many and some more that were stopped."""
    trials = [finished(100 + number, place) for number, place in enumerate(kept)]
    out = [stopped(number) for number in range(len(added) + num_more)]
    audits = [audit_of(number, place) for number, place in enumerate(added)]
    audit = build_audit([*trials, *out, *audits], OBJECTIVES)
    assert audit is not None
    return audit


def test_without_an_ended_audit_nothing_is_known() -> None:
    running = audit_of(0, (0.9, 10), TrialState.RUNNING)

    assert build_audit([finished(1, (0.8, 10)), stopped(0)], OBJECTIVES) is None
    assert build_audit([stopped(0), running], OBJECTIVES) is None


def test_each_audited_trial_is_held_against_the_finished_ones_alone() -> None:
    audit = audited([(0.8, 1_000)], [(0.9, 1_000), (0.85, 1_000), (0.7, 1_000), (0.7, 10)])

    assert [trial.is_on_front for trial in audit.trials] == [True, True, False, True]
    assert audit.share == 0.75


def test_a_trial_that_equals_one_on_the_front_would_have_stood_there_too_and_added_nothing() -> None:
    (trial,) = audited([(0.8, 1_000), (0.5, 10)], [(0.8, 1_000)]).trials

    assert trial.is_on_front
    assert trial.hypervolume_loss == 0


def test_baselines_and_trials_that_are_not_finished_take_no_part() -> None:
    baseline = make_record(-9, spec=make_spec(-9, baseline=Baseline.FULL), accuracy=0.99, trainable_params=1)
    others = [baseline, make_record(7, TrialState.INFEASIBLE, accuracy=0.99, trainable_params=1)]

    audit = build_audit([finished(1, (0.8, 100)), stopped(0), audit_of(0, (0.9, 100)), *others], OBJECTIVES)

    assert audit
    assert (audit.num_stopped, audit.num_on_front) == (1, 1)


def test_audits_that_failed_are_counted_apart() -> None:
    lost = [audit_of(1, (0.9, 10), TrialState.FAIL), audit_of(2, (0.9, 10), TrialState.INFEASIBLE)]
    records = [finished(9, (0.8, 10)), *(stopped(number) for number in range(3))]

    audit = build_audit([*records, audit_of(0, (0.7, 10)), *lost], OBJECTIVES)
    none = build_audit([*records, *lost], OBJECTIVES)

    assert audit
    assert (audit.num_audited, audit.num_failed, audit.share, audit.is_census) == (1, 2, 0.0, False)
    assert none
    assert (none.num_audited, none.num_failed, none.share, none.num_lost, none.mean_loss) == (0, 2, None, None, None)


def test_an_audit_takes_the_steps_after_the_stop_or_all_where_it_began_anew() -> None:
    going_on, anew = audit_of(0, (0.7, 10)), audit_of(1, (0.7, 10))
    anew = replace(anew, curve=(replace(anew.curve[0], train_s=31.0), anew.curve[1]))

    audit = build_audit([stopped(0), stopped(1), going_on, anew], OBJECTIVES)

    assert audit
    assert audit.num_steps == 90 + 120


def test_the_number_lost_is_the_share_of_all_that_were_stopped() -> None:
    audit = audited([(0.8, 100)], [(0.9, 100), (0.7, 100), (0.7, 100), (0.7, 100)], num_more=16)

    assert audit.share == 0.25
    assert audit.share_interval == pytest.approx((0.0063, 0.8059), abs=1e-4)
    assert audit.num_lost == 5
    assert audit.num_lost_interval == pytest.approx((1, 0.8059 * 20), abs=1e-2)


def test_the_number_lost_is_never_less_than_was_found_nor_more_than_can_be_left() -> None:
    audit = audited([(0.8, 100)], [(0.9, 100), (0.7, 100), (0.7, 100)], num_more=1)

    assert audit.num_lost_interval == (1, 2)


def test_an_audit_of_every_stopped_trial_is_a_census_without_intervals() -> None:
    audit = audited([(0.8, 100)], [(0.9, 100), (0.7, 100)])

    assert audit.is_census
    assert audit.num_lost == 1
    assert (audit.share_interval, audit.num_lost_interval, audit.mean_loss_interval) == (None, None, None)


@pytest.mark.parametrize(
    ("num_hits", "num_drawn", "interval"),
    [(0, 10, (0, 0.3085)), (1, 10, (0.0025, 0.4450)), (10, 10, (0.6915, 1)), (5, 20, (0.0866, 0.4910))],
)
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(
    num_hits: int, num_drawn: int, interval: tuple[float, float]
) -> None:
    assert share_interval(num_hits, num_drawn) == pytest.approx(interval, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_interval_of_a_mean_lies_within_the_values_and_is_the_same_each_time(values: list[float]) -> None:
    interval = mean_interval(values)

    assert interval == mean_interval(values)
    if interval is None:
        assert len(set(values)) == 1
    else:
        assert min(values) - 1e-9 <= interval[0] <= interval[1] <= max(values) + 1e-9


def test_the_interval_of_a_mean_holds_the_mean() -> None:
    interval = mean_interval([0.0] * 9 + [1.0])

    assert interval == pytest.approx((0.0, 0.3))


def staircase(places: list[Place], everything: list[Place]) -> float:
    """Area that points dominate in the unit box, column by column."""
    errors = [(-accuracy, math.log10(params)) for accuracy, params in everything]
    low, high = [min(axis) for axis in zip(*errors, strict=True)], [max(axis) for axis in zip(*errors, strict=True)]
    width = [1.1 * ((b - a) or 1.0) for a, b in zip(low, high, strict=True)]
    points = [
        ((-accuracy - low[0]) / width[0], (math.log10(params) - low[1]) / width[1]) for accuracy, params in places
    ]
    xs = sorted({x for x, _ in points} | {1.0})
    heights = (1 - min(y for x, y in points if x <= left) for left in xs[:-1])
    widths = (right - left for left, right in itertools.pairwise(xs))
    return math.fsum(map(math.prod, zip(widths, heights, strict=True)))


places = st.lists(
    st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.9]), st.sampled_from([10, 100, 1_000])), min_size=1, max_size=5
)


@given(places, places)
def test_the_hypervolume_lost_is_the_area_by_brute_force(kept: list[Place], added: list[Place]) -> None:
    audit, everything = audited(kept, added), [*kept, *added]

    before, after = staircase(kept, everything), staircase(everything, everything)
    assert audit.hypervolume_loss == pytest.approx(1 - before / after, abs=1e-9)
    for trial, place in zip(audit.trials, added, strict=True):
        one = staircase([*kept, place], everything)
        assert trial.hypervolume_loss == pytest.approx(1 - before / one, abs=1e-9)


@given(places, places)
def test_only_a_trial_on_the_front_adds_hypervolume(kept: list[Place], added: list[Place]) -> None:
    for trial in audited(kept, added).trials:
        assert trial.is_on_front or trial.hypervolume_loss == pytest.approx(0, abs=1e-12)


def test_without_a_finished_trial_all_hypervolume_is_lost() -> None:
    audit = audited([], [(0.8, 100)])

    assert audit.hypervolume_loss == audit.mean_loss == 1
    assert audit.num_on_front == 1


def test_a_perplexity_too_large_for_a_float_is_on_no_front_and_loses_nothing() -> None:
    goals = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS, Objective.PEAK_MEMORY_GIB)
    kept = make_record(1, accuracy=3.0, standard_error=0.1, peak_memory_bytes=MIB)

    audit = build_audit([kept, stopped(0), audit_of(0, (math.inf, 1))], goals)

    assert audit
    assert (audit.num_on_front, audit.hypervolume_loss) == (0, 0.0)
