"""What the numbers say: intervals, ties, flattery, other seeds, ranks, growth of the front, timeline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_lora, make_metrics, make_model, make_record, make_spec
from tuner.front import Objective
from tuner.pareto import hypervolume
from tuner.report.findings.held_out import confirmations_of, flattery_of, held_out_of, seed_deviation_of
from tuner.report.findings.intervals import (
    flattery,
    gap_of,
    held_out_estimate,
    num_to_tell_apart,
    ties_of,
    validation_estimate,
    validation_gap,
)
from tuner.report.findings.progress import growth_of, timeline_of
from tuner.report.findings.ranks import heat_of, mean_ranks, rank_effect
from tuner.report.findings.volume import Box, points_of
from tuner.trial import HeldOut, Metric, Span, TrialRecord, TrialSpec, TrialState

ACCURACY, PERPLEXITY, F1 = Metric.ACCURACY, Metric.PERPLEXITY, Metric.MACRO_F1
PARAMS = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)


def scored(accuracy: float, num: int = 1000, resampled: tuple[float, ...] = ()) -> HeldOut:
    error = math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / num)
    return HeldOut(accuracy=accuracy, standard_error=error, loss=0.5, num_test=num, resampled=resampled)


def resamples(accuracy: float, *, own: float, seed: int) -> tuple[float, ...]:
    """Scores of resamples that trials mostly share: what is hard for one is hard for all."""
    common, mine = np.random.default_rng(0), np.random.default_rng(seed)
    return tuple((accuracy + 0.01 * common.standard_normal(500) + own * mine.standard_normal(500)).tolist())


def test_a_share_of_hits_gets_wilsons_interval() -> None:
    found = validation_estimate(ACCURACY, make_metrics(accuracy=0.9, num_validation=100))

    # by hand: center (p + z2/2n) / (1 + z2/n), half-width z sqrt(p q / n + z2 / 4 n2) / (1 + z2/n)
    assert (found.low, found.high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert validation_estimate(ACCURACY, make_metrics(accuracy=1.0, num_validation=50)).low < 0.95


def test_other_metrics_get_a_normal_interval_within_their_bounds() -> None:
    perplexity = validation_estimate(PERPLEXITY, make_metrics(accuracy=1.1, standard_error=0.2))
    f1 = validation_estimate(F1, make_metrics(accuracy=0.99, standard_error=0.02))

    assert (perplexity.low, perplexity.high) == pytest.approx((1.0, 1.1 + 1.96 * 0.2), abs=1e-3)
    assert f1.high == 1.0


def test_on_test_data_other_metrics_get_the_bootstraps_percentiles() -> None:
    values = tuple(np.linspace(2, 4, 1001).tolist())

    found = held_out_estimate(PERPLEXITY, scored(3.0, resampled=values))

    assert (found.low, found.high) == pytest.approx((2.05, 3.95))


def test_a_paired_comparison_tells_apart_what_an_unpaired_one_can_not() -> None:
    one, other = make_metrics(accuracy=0.86), make_metrics(accuracy=0.84)
    tests = (
        scored(0.86, resampled=resamples(0.86, own=0.002, seed=1)),
        scored(0.84, resampled=resamples(0.84, own=0.002, seed=2)),
    )

    unpaired, paired = gap_of(ACCURACY, one, other, (None, None)), gap_of(ACCURACY, one, other, tests)

    assert (unpaired.is_paired, unpaired.is_clear) == (False, False)
    assert (paired.is_paired, paired.is_clear) == (True, True)
    assert paired.value == pytest.approx(0.02)


def test_test_sets_of_different_size_are_not_paired() -> None:
    values = resamples(0.9, own=0.001, seed=1)
    tests = scored(0.9, num=1000, resampled=values), scored(0.8, num=900, resampled=values)

    assert not gap_of(ACCURACY, make_metrics(), make_metrics(), tests).is_paired


def test_a_gap_is_above_zero_where_the_first_is_better_whichever_way_the_metric_goes() -> None:
    low, high = make_metrics(accuracy=3.0, standard_error=0.1), make_metrics(accuracy=4.0, standard_error=0.1)

    assert gap_of(PERPLEXITY, low, high, (None, None)).value == 1.0
    assert gap_of(ACCURACY, make_metrics(accuracy=0.5), make_metrics(accuracy=0.9), (None, None)).value < 0


def test_validation_looks_flattered_only_beyond_the_noise_of_both() -> None:
    alike = flattery(ACCURACY, make_metrics(accuracy=0.86), scored(0.84))
    apart = flattery(ACCURACY, make_metrics(accuracy=0.96), scored(0.80))

    assert (alike.is_clear, apart.is_clear) == (False, True)
    assert alike.value == pytest.approx(0.02)


@pytest.mark.parametrize(("accuracy", "gap"), [(0.3, 0.05), (0.5, 0.1), (0.8, 0.03)])
def test_the_number_of_examples_shows_a_gap_of_that_size_four_times_in_five(accuracy: float, gap: float) -> None:
    num = num_to_tell_apart(ACCURACY, make_metrics(accuracy=accuracy + gap), make_metrics(accuracy=accuracy))
    assert num is not None
    draw = np.random.default_rng(0)

    found = 0
    for right, other in zip(draw.binomial(num, accuracy + gap, 400), draw.binomial(num, accuracy, 400), strict=True):
        one, two = (make_metrics(accuracy=hits / num, num_validation=num) for hits in (right, other))
        found += validation_gap(ACCURACY, one, two).low > 0

    assert found / 400 == pytest.approx(0.8, abs=0.06)


def test_perfect_scores_on_few_examples_are_not_certain() -> None:
    perfect, good = make_metrics(accuracy=1.0, num_validation=50), make_metrics(accuracy=0.92, num_validation=50)

    assert not validation_gap(ACCURACY, perfect, good).is_clear
    assert not flattery(ACCURACY, perfect, scored(0.98)).is_clear


def test_an_interval_of_a_difference_of_shares_is_newcombes() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80
    one = make_metrics(accuracy=56 / 70, num_validation=70)
    other = make_metrics(accuracy=48 / 80, num_validation=80)

    found = validation_gap(ACCURACY, one, other)

    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_ties_are_those_of_every_pair() -> None:
    records = [make_record(n, accuracy=value) for n, value in enumerate((0.5, 0.82, 0.84, 0.845))]
    tests = {
        n: scored(value, resampled=resamples(value, own=0.002, seed=n))
        for n, value in ((1, 0.80), (2, 0.84), (3, 0.84))
    }

    found = ties_of(ACCURACY, records, tests)

    for one in records:
        for other in records:
            if one.number != other.number:
                assert one.last
                assert other.last
                gap = gap_of(ACCURACY, one.last, other.last, (tests.get(one.number), tests.get(other.number)))
                assert (other.number in found[one.number]) is not gap.is_clear
    assert found[0] == ()
    assert 3 in found[2]


def test_equal_trials_can_never_be_told_apart() -> None:
    assert num_to_tell_apart(ACCURACY, make_metrics(), make_metrics()) is None


def beside(number: int, accuracy: float = 0.8, held_out: HeldOut | None = None, **spec: Any) -> TrialRecord:
    return make_record(number, spec=make_spec(number, **spec), accuracy=accuracy, held_out=held_out)


def test_test_scores_are_known_by_the_trial_that_they_are_of() -> None:
    records = [
        make_record(3),
        beside(-1, held_out=scored(0.7), baseline=None),
        beside(-2, held_out=scored(0.8), scores=3),
        beside(-3, held_out=scored(0.9), confirms=3, seed=1),
    ]

    assert {number: found.accuracy for number, found in held_out_of(records).items()} == {-1: 0.7, 3: 0.8}


def test_other_seeds_are_summed_up_without_the_trial_that_was_chosen_for_its_score() -> None:
    lost = make_record(-4, TrialState.FAIL, spec=make_spec(-4, confirms=3, seed=3), curve=())
    records = [
        make_record(3, accuracy=0.99),
        beside(-2, 0.80, scored(0.78), confirms=3, seed=1),
        beside(-3, 0.84, scored(0.82), confirms=3, seed=2),
        lost,
    ]

    (found,) = confirmations_of(records)

    assert (found.number, found.seeds, found.num_failed) == (3, (1, 2), 1)
    assert found.validation.mean == pytest.approx(0.82)
    assert found.validation.deviation == pytest.approx(math.sqrt(2 * 0.02**2))
    assert found.test is not None
    assert found.test.scores == (0.78, 0.82)
    assert seed_deviation_of([found]) == pytest.approx(math.sqrt(2 * 0.02**2))
    assert seed_deviation_of([]) is None


def test_seeds_that_all_failed_say_nothing() -> None:
    assert confirmations_of([make_record(-1, TrialState.FAIL, spec=make_spec(-1, confirms=3, seed=1), curve=())]) == ()


def test_flattery_is_that_of_the_best_and_the_mean_over_the_front() -> None:
    front = [make_record(1, accuracy=0.80), make_record(2, accuracy=0.90)]

    found = flattery_of(ACCURACY, front, {1: scored(0.80), 2: scored(0.86)})

    assert found is not None
    assert (found.best_number, found.num_trials) == (2, 2)
    assert (found.best.value, found.mean.value) == pytest.approx((0.04, 0.02))
    assert flattery_of(ACCURACY, front, {}) is None


LAYERS = make_model().layers


def at_rank(
    number: int, rank: int, accuracy: float, *, scale: float = 2.0, rate: float = 1e-3, num: int = 4000
) -> TrialRecord:
    lora = make_lora(r=rank, lora_alpha=scale * rank)
    spec = make_spec(number, lora=lora, learning_rate=rate)
    return make_record(number, spec=spec, accuracy=accuracy, num_validation=num)


def test_each_rank_is_shown_by_its_best_trial_whatever_its_learning_rate() -> None:
    finished = [
        at_rank(0, 4, 0.70, rate=1e-4),
        at_rank(1, 4, 0.85, rate=1e-3),
        at_rank(2, 8, 0.84),
        at_rank(3, 16, 0.85),
    ]

    found = rank_effect(ACCURACY, finished, LAYERS, {})

    assert found is not None
    (band,) = found.bands
    assert [(at.rank, at.record.number, at.num_trials) for at in band.best] == [(4, 1, 2), (8, 2, 1), (16, 3, 1)]


def test_scales_are_compared_each_by_itself() -> None:
    places = [(rank, scale) for scale in (1.0, 4.0) for rank in (2, 4, 8)]
    finished = [at_rank(number, rank, 0.8, scale=scale) for number, (rank, scale) in enumerate(places)]

    found = rank_effect(ACCURACY, finished, LAYERS, {})

    assert found is not None
    assert [band.scale for band in found.bands] == [1.0, 4.0]


def test_scales_are_mixed_only_where_none_has_enough_ranks() -> None:
    finished = [at_rank(0, 2, 0.8, scale=1), at_rank(1, 4, 0.8, scale=2), at_rank(2, 8, 0.8, scale=4)]

    found = rank_effect(ACCURACY, finished, LAYERS, {})

    assert found is not None
    assert found.tested.scale is None


def test_many_scales_are_taken_by_octaves() -> None:
    finished = [
        at_rank(number, rank, 0.8, scale=1.5 + 0.2 * number) for number, rank in enumerate((1, 2, 4, 8, 16, 32))
    ]

    found = rank_effect(ACCURACY, finished, LAYERS, {})

    assert found is not None
    assert [band.scale for band in found.bands] == [2.0]


def test_the_plateau_begins_where_no_higher_rank_is_better_beyond_the_noise() -> None:
    rising = [at_rank(0, 1, 0.60), at_rank(1, 4, 0.80), at_rank(2, 16, 0.805), at_rank(3, 32, 0.80)]

    found = rank_effect(ACCURACY, rising, LAYERS, {})

    assert found is not None
    assert found.plateau is not None
    assert (found.plateau.rank, found.plateau.num_compared, found.plateau.largest_rank) == (4, 2, 16)
    assert found.plateau.largest_gain.high > 0.005


def test_there_is_no_plateau_where_the_highest_rank_is_clearly_the_best() -> None:
    found = rank_effect(ACCURACY, [at_rank(0, 1, 0.5), at_rank(1, 4, 0.7), at_rank(2, 16, 0.9)], LAYERS, {})

    assert found is not None
    assert found.plateau is None


def test_what_another_seed_moves_is_no_gain_of_rank() -> None:
    rising = [at_rank(0, 1, 0.80), at_rank(1, 4, 0.84), at_rank(2, 16, 0.84)]

    without, allowed = (rank_effect(ACCURACY, rising, LAYERS, {}, deviation) for deviation in (None, 0.03))

    assert without is not None
    assert allowed is not None
    assert without.plateau is not None
    assert allowed.plateau is not None
    assert (without.plateau.rank, allowed.plateau.rank) == (4, 1)


def test_what_is_not_excluded_is_the_furthest_that_any_higher_rank_reaches() -> None:
    level = [at_rank(0, 1, 0.80, num=4000), at_rank(1, 4, 0.805, num=4000), at_rank(2, 16, 0.80, num=100)]

    found = rank_effect(ACCURACY, level, LAYERS, {})

    assert found is not None
    assert found.plateau is not None
    assert found.plateau.largest_rank == 16
    assert found.plateau.largest_gain.high > 0.07


def test_ranks_of_three_digits_stay_whole() -> None:
    lora = make_lora(r=128)

    assert mean_ranks([make_record(spec=make_spec(0, lora=lora))], LAYERS) == {0: 128}


def test_one_rank_can_not_be_compared() -> None:
    assert rank_effect(ACCURACY, [at_rank(0, 4, 0.8), at_rank(1, 4, 0.9)], LAYERS, {}) is None
    assert rank_effect(ACCURACY, [], LAYERS, {}) is None
    assert rank_effect(ACCURACY, [at_rank(0, 4, 0.8), at_rank(1, 8, 0.9)], (), {}) is None


def test_a_mean_rank_is_over_the_layers_that_are_adapted() -> None:
    lora = make_lora(r=8, rank_pattern=(("query", 2), ("value@last", 0)))

    ranks = mean_ranks(
        [make_record(spec=make_spec(0, lora=lora)), make_record(1, spec=make_spec(1, lora=None))], LAYERS
    )

    assert ranks == {0: pytest.approx((6 * 2 + 4 * 8) / 10)}


def test_heat_is_by_module_and_depth_with_zeros_where_nothing_is_adapted() -> None:
    lora = make_lora(r=8, rank_pattern=(("query@last", 2),))

    heat = heat_of([make_record(spec=make_spec(0, lora=lora))], LAYERS)

    places = (("attention.self.query", "first"), ("attention.self.query", "last"), ("output.dense", "middle"))
    assert [heat[place][0] for place in places] == [8, 2, 0]
    assert len(heat) == 6 * 3


def timed(number: int, accuracy: float, params: int, ended_s: float, worker: str = "a", **changes: Any) -> TrialRecord:
    span = Span(worker=worker, begun_s=ended_s - 10, ended_s=ended_s)
    return make_record(number, accuracy=accuracy, trainable_params=params, span=span, **changes)


def test_the_front_grows_in_the_order_in_which_trials_finished() -> None:
    records = [timed(0, 0.9, 1000, 300), timed(1, 0.7, 100, 100), timed(2, 0.6, 500, 200), timed(3, 0.5, 900, 400)]

    found = growth_of(records, PARAMS)

    assert found is not None
    assert found.numbers == (1, 2, 0, 3)
    assert found.steps == (120, 240, 360, 480)
    assert found.volumes[0] == found.volumes[1] < found.volumes[2] == found.volumes[3] == 1
    assert found.num_since == 1
    assert found.hours[0] == pytest.approx(10 / 3600)


def test_journals_without_times_are_told_by_number_and_steps_of_stopped_trials_count() -> None:
    stopped = make_record(0, TrialState.PRUNED, steps=30)

    found = growth_of([stopped, make_record(1), make_record(2)], PARAMS)

    assert found is not None
    assert (found.numbers, found.steps, found.hours) == ((1, 2), (150, 270), ())


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=5, max_size=12))
def test_the_expected_gain_is_the_jackknifes(points: list[tuple[int, int]]) -> None:
    records = [
        make_record(n, accuracy=a / 20, standard_error=0.0, trainable_params=10**p) for n, (a, p) in enumerate(points)
    ]
    placed = points_of(records, PARAMS)
    low = placed.min(axis=0)
    width = np.where(np.ptp(placed, axis=0) > 0, np.ptp(placed, axis=0), 1.0) * 1.1

    def volume(some: np.ndarray[Any, Any]) -> float:
        return hypervolume((some - low) / width, np.ones(2))

    found = growth_of(records, PARAMS)

    whole = volume(placed)
    losses = [1 - volume(np.delete(placed, place, axis=0)) / whole for place in range(len(placed))]
    assert found is not None
    assert found.expected_gain == pytest.approx(sum(losses) / len(losses), abs=1e-9)


def test_nothing_is_said_of_more_trials_after_a_few_and_nothing_at_all_after_none() -> None:
    few = growth_of([make_record(0), make_record(1)], PARAMS)

    assert few is not None
    assert few.is_likely_to_help is None
    assert growth_of([make_record(0, TrialState.PRUNED)], PARAMS) is None
    assert growth_of([make_record(0, accuracy=math.inf)], PARAMS) is None


def test_many_like_trials_are_unlikely_to_be_helped_by_one_more() -> None:
    found = growth_of([make_record(number, accuracy=0.8, trainable_params=1000) for number in range(50)], PARAMS)

    assert found is not None
    assert found.is_likely_to_help is False


def test_luck_is_no_gain() -> None:
    draw = np.random.default_rng(0)
    likely = 0
    for _ in range(20):
        scores = draw.binomial(400, 0.8, size=20) / 400
        records = [make_record(n, accuracy=float(score), trainable_params=1000) for n, score in enumerate(scores)]
        found = growth_of(records, PARAMS)
        assert found is not None
        likely += bool(found.is_likely_to_help)

    assert likely <= 4


def test_the_timeline_joins_work_on_one_trial_and_tells_how_busy_workers_were() -> None:
    def spans(worker: str, *times: tuple[float, float]) -> tuple[Any, ...]:
        return tuple(
            make_metrics(steps=30 * place, span=Span(worker=worker, begun_s=begun, ended_s=ended))
            for place, (begun, ended) in enumerate(times, start=1)
        )

    records = [
        make_record(0, curve=spans("node-1", (100, 110), (110, 130))),
        make_record(1, curve=spans("node-1", (140, 150))),
        make_record(2, curve=spans("node-2", (100, 150))),
    ]

    found = timeline_of(records)

    assert found is not None
    assert [(one.worker, one.number, one.begun_s, one.ended_s) for one in found.stretches] == [
        (0, 0, 0, 30),
        (1, 2, 0, 50),
        (0, 1, 40, 50),
    ]
    assert found.busy_share == pytest.approx((30 + 10 + 50) / 100)
    assert timeline_of([make_record(0)]) is None


def test_a_pause_is_no_work() -> None:
    curve = tuple(
        make_metrics(steps=steps, span=Span(worker="a", begun_s=begun, ended_s=begun + 10))
        for steps, begun in ((30, 0.0), (60, 1000.0))
    )

    found = timeline_of([make_record(0, curve=curve)])

    assert found is not None
    assert [(one.begun_s, one.ended_s) for one in found.stretches] == [(0, 10), (1000, 1010)]
    assert found.busy_share == pytest.approx(20 / 1010)


def test_an_audit_does_not_claim_the_work_that_the_stopped_trial_did() -> None:
    first = make_metrics(steps=30, span=Span(worker="a", begun_s=0, ended_s=10))
    second = make_metrics(steps=120, span=Span(worker="b", begun_s=50, ended_s=60))
    spec: TrialSpec = make_spec(-1, audits=0)

    found = timeline_of(
        [make_record(0, TrialState.PRUNED, curve=(first,)), make_record(-1, spec=spec, curve=(first, second))]
    )

    assert found is not None
    assert [(one.number, one.ended_s) for one in found.stretches] == [(0, 10), (-1, 60)]


def test_a_box_measures_shares_and_shrugs_off_what_has_no_place() -> None:
    box = Box(np.array([[0.0, 1.0], [1.0, 0.0], [math.inf, 0.0]]))

    assert box.volume(np.array([[0.0, 0.0]])) == pytest.approx(1.0)
    assert box.volume(np.array([[math.inf, 0.0]])) == 0
    assert box.loss(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]])) == 0
