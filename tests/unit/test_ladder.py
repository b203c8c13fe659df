"""The rungs as arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import make_config, make_metrics
from tuner.front import objectives_of
from tuner.ladder import ERROR, Ladder, rows_of

OBJECTIVES = objectives_of(make_config())


def test_a_rung_nobody_has_reached_is_empty() -> None:
    assert len(Ladder(OBJECTIVES).at(30).numbers) == 0


def test_a_report_stands_at_its_rung_turned_so_that_lower_is_better() -> None:
    ladder = Ladder(OBJECTIVES)

    ladder.add(7, make_metrics(steps=30, accuracy=0.75, loss=0.6, trainable_params=1000, peak_memory_bytes=2**30))

    rung = ladder.at(30)
    assert rung.numbers.tolist() == [7]
    assert (rung.metric[0], rung.loss[0]) == (-0.75, 0.6)
    assert rung.costs.tolist() == [[1000, 1.0]]
    assert 7 in rung.places
    assert 7 not in ladder.at(60).places


def test_the_same_report_counts_once() -> None:
    ladder = Ladder(OBJECTIVES)

    ladder.add(7, make_metrics(steps=30))
    ladder.add(7, make_metrics(steps=30))

    assert len(ladder.at(30).numbers) == 1


def test_a_rung_grows_past_what_was_made_ready() -> None:
    ladder = Ladder(OBJECTIVES)

    for number in range(200):
        ladder.add(number, make_metrics(steps=30, loss=float(number)))

    assert ladder.at(30).loss.tolist() == list(range(200))
    assert ladder.at(30).places[150] == 150


small = st.integers(0, 3)


@given(st.lists(st.tuples(small, small, small, small), max_size=100))
def test_the_front_is_what_brute_force_finds(rows: list[tuple[int, int, int, int]]) -> None:
    ladder = Ladder(OBJECTIVES)
    for number, (right, loss, params, memory) in enumerate(rows):
        metrics = make_metrics(
            steps=30, accuracy=right / 4, loss=float(loss), trainable_params=params, peak_memory_bytes=memory * 2**30
        )
        ladder.add(number, metrics)

    rung = ladder.at(30)

    table = np.delete(rung.table, ERROR, axis=1)
    expected = [not any(np.all(other <= row) and np.any(other < row) for other in table) for row in table]
    assert rung.is_front.tolist() == expected


@given(st.permutations(range(20)), st.sets(st.integers(0, 19)))
def test_rows_are_found_by_number(order: list[int], asked: set[int]) -> None:
    ladder = Ladder(OBJECTIVES)
    for number in order:
        ladder.add(number, make_metrics(steps=30))
    rung = ladder.at(30)

    assert rung.numbers[rows_of(rung, asked)].tolist() == [*asked]


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=60))
def test_many_reports_at_once_make_the_same_front_as_one_after_another(rows: list[tuple[int, int, int]]) -> None:
    at_once, one_by_one = Ladder(OBJECTIVES), Ladder(OBJECTIVES)

    for number, (loss, params, memory) in enumerate(rows):
        metrics = make_metrics(
            steps=30, loss=float(loss), accuracy=loss / 4, trainable_params=params, peak_memory_bytes=memory
        )
        at_once.add(number, metrics)
        one_by_one.add(number, metrics)
        one_by_one.at(30)

    assert at_once.at(30).is_front.tolist() == one_by_one.at(30).is_front.tolist()
