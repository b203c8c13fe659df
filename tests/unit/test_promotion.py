"""Which waiting trial goes on first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_config, make_metrics
from tuner.forecast import Outlook
from tuner.front import objectives_of
from tuner.ladder import Ladder, Rung
from tuner.pareto import hypervolume
from tuner.promotion import MARGIN, worthiest

OBJECTIVES = objectives_of(make_config())


def rung_of(rows: list[tuple[float, int]]) -> Rung:
    """Trials by (cross entropy, parameters), all with the same memory."""
    ladder = Ladder(OBJECTIVES)
    for number, (loss, params) in enumerate(rows):
        ladder.add(number, make_metrics(steps=30, loss=loss, trainable_params=params))
    return ladder.at(30)


def rows(*places: int) -> np.ndarray:
    return np.array(places, dtype=np.int64)


def test_the_better_of_two_that_cost_the_same_goes_first() -> None:
    assert worthiest(rung_of([(0.9, 100), (0.5, 100)]), rows(0, 1), rows(), None)[0] == 1


def test_the_cheaper_of_two_that_are_equally_good_goes_first() -> None:
    assert worthiest(rung_of([(0.5, 1000), (0.5, 100)]), rows(0, 1), rows(), None)[0] == 1


def test_a_small_trial_goes_before_a_slightly_better_copy_of_what_went_on() -> None:
    rung = rung_of([(0.5, 10_000), (0.49, 10_000), (0.6, 100)])

    assert worthiest(rung, rows(1, 2), rows(0), None)[0] == 1


def test_what_is_expected_counts_for_more_than_what_is_seen() -> None:
    rung = rung_of([(0.5, 100), (0.6, 100)])
    late_riser = Outlook(metric=np.array([-0.5, -0.8]), error=np.array([0.01, 0.01]))

    assert worthiest(rung, rows(0, 1), rows(), late_riser)[0] == 1


def test_of_two_that_are_expected_to_end_alike_the_less_certain_goes_first() -> None:
    rung = rung_of([(0.5, 100), (0.5, 100)])
    expected = Outlook(metric=np.array([-0.5, -0.5]), error=np.array([0.01, 0.1]))

    assert worthiest(rung, rows(0, 1), rows(), expected)[0] == 1


def test_what_went_on_leaves_nothing_to_gain_for_what_it_dominates() -> None:
    assert worthiest(rung_of([(0.5, 100), (0.6, 1000)]), rows(1), rows(0), None)[1] == 0


small = st.tuples(st.integers(0, 4).map(float), st.sampled_from([10, 100, 1000]))


@given(st.lists(small, min_size=2, max_size=12), st.data())
def test_the_worth_is_the_largest_of_all_exclusive_hypervolumes(
    rung_rows: list[tuple[float, int]], data: st.DataObject
) -> None:
    rung = rung_of(rung_rows)
    num_waiting = data.draw(st.integers(1, len(rung_rows)))
    waiting, gone_on = np.arange(num_waiting), np.arange(num_waiting, len(rung_rows))

    place, worth = worthiest(rung, waiting, gone_on, None)

    points = np.column_stack([rung.loss, np.log(rung.costs)])
    width = np.ptp(points, axis=0)
    points = (points - points.min(axis=0)) / np.where(width > 0, width, 1)
    reference = np.full(3, 1 + MARGIN)
    before = hypervolume(points[gone_on], reference)
    gains = [hypervolume(points[[*gone_on, row]], reference) - before for row in waiting]
    assert np.isclose(worth, max(gains) / (1 + MARGIN) ** 3)
    assert np.isclose(gains[place], max(gains))
