"""Pareto arithmetic: fast answers agree with brute force, ties and duplicates included."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.pareto import BoolArray, FloatArray, hypervolume, knee_index, non_dominated_mask

WIDTH = 4
"""Small whole coordinates below this one, so that ties and duplicates are common."""


def losses_of(rows: list[list[float]], num_objectives: int) -> FloatArray:
    return np.array(rows, dtype=np.float64).reshape(len(rows), num_objectives)


@st.composite
def small_losses(draw: st.DrawFn, *, min_rows: int = 0) -> FloatArray:
    num_objectives = draw(st.integers(1, 4))
    row = st.lists(st.integers(0, WIDTH - 1).map(float), min_size=num_objectives, max_size=num_objectives)
    return losses_of(draw(st.lists(row, min_size=min_rows, max_size=10)), num_objectives)


def brute_force_mask(losses: FloatArray) -> BoolArray:
    def is_dominated(row: FloatArray) -> bool:
        return any(bool(np.all(other <= row) and np.any(other < row)) for other in losses)

    return np.array([not is_dominated(row) for row in losses], dtype=np.bool_)


def brute_force_hypervolume(losses: FloatArray) -> float:
    """Count the unit cells up to WIDTH that some point reaches down to."""
    cells = itertools.product(range(WIDTH), repeat=losses.shape[1])
    return float(sum(any(bool(np.all(row <= np.array(cell))) for row in losses) for cell in cells))


@given(losses=small_losses())
def test_the_front_is_what_comparing_all_pairs_gives(losses: FloatArray) -> None:
    np.testing.assert_array_equal(non_dominated_mask(losses), brute_force_mask(losses))


@given(losses=small_losses(min_rows=1), data=st.data())
def test_the_order_of_rows_changes_nothing(losses: FloatArray, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(losses))))

    np.testing.assert_array_equal(non_dominated_mask(losses[order]), non_dominated_mask(losses)[order])


@given(losses=small_losses(min_rows=1))
def test_a_front_is_never_empty(losses: FloatArray) -> None:
    assert non_dominated_mask(losses).any()


def test_equal_rows_are_all_on_the_front() -> None:
    assert non_dominated_mask(losses_of([[1, 2], [1, 2], [2, 2]], 2)).tolist() == [True, True, False]


def test_no_rows_have_an_empty_front() -> None:
    assert non_dominated_mask(losses_of([], 3)).tolist() == []


@given(losses=small_losses())
def test_the_hypervolume_is_what_counting_cells_gives(losses: FloatArray) -> None:
    reference = np.full(losses.shape[1], float(WIDTH))

    assert hypervolume(losses, reference) == pytest.approx(brute_force_hypervolume(losses))


@given(losses=small_losses(min_rows=1))
def test_another_point_never_takes_from_the_hypervolume(losses: FloatArray) -> None:
    reference = np.full(losses.shape[1], WIDTH - 1.0)  # points may lie on it

    assert hypervolume(losses, reference) >= hypervolume(losses[:-1], reference)


@given(losses=small_losses(min_rows=1))
def test_only_the_front_makes_the_hypervolume(losses: FloatArray) -> None:
    reference = np.full(losses.shape[1], float(WIDTH))

    assert hypervolume(losses[non_dominated_mask(losses)], reference) == pytest.approx(hypervolume(losses, reference))


def test_points_beyond_the_reference_add_nothing() -> None:
    reference = np.array([2.0, 2.0])

    assert hypervolume(losses_of([[0, 3], [3, 0], [2, 0]], 2), reference) == 0.0
    assert hypervolume(losses_of([[0, 3], [1, 1]], 2), reference) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[5, 5]], 0),
        ([[0, 10], [4, 4], [10, 0]], 1),
        ([[0, 10], [9, 9], [10, 0]], 0),
        ([[0, 1000], [0.2, 300], [1, 0]], 1),
        ([[0, 7, 1], [1, 7, 0]], 0),
        ([[3, 3], [3, 3]], 0),
        ([[0, 0.4, 1], [0.1, 0.3, 0.1], [1, 0, 0]], 1),
    ],
    ids=["alone", "middle", "bulging middle", "units differ", "constant column", "all equal", "three objectives"],
)
def test_the_knee_is_nearest_to_the_ideal_point(rows: list[list[float]], expected: int) -> None:
    assert knee_index(losses_of(rows, len(rows[0]))) == expected


@given(losses=small_losses(min_rows=1), exponent=st.integers(-10, 30), shift=st.integers(-100, 100))
def test_the_knee_does_not_depend_on_units(losses: FloatArray, exponent: int, shift: int) -> None:
    assert knee_index(losses * 2.0**exponent) == knee_index(losses)
    assert knee_index(losses + shift) == knee_index(losses)


@given(losses=small_losses(min_rows=1))
def test_the_knee_of_all_rows_is_on_their_front(losses: FloatArray) -> None:
    assert non_dominated_mask(losses)[knee_index(losses)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    losses = losses_of([[1, 2], [3, value]], 2)

    with pytest.raises(ValueError, match="losses must be finite"):
        non_dominated_mask(losses)
    with pytest.raises(ValueError, match="losses must be finite"):
        hypervolume(losses, np.array([4.0, 4.0]))
    with pytest.raises(ValueError, match="losses must be finite"):
        knee_index(losses)


def test_losses_of_one_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="losses must have 2 dimensions, got 1"):
        non_dominated_mask(np.array([1.0, 2.0]))


def test_no_rows_have_no_knee() -> None:
    with pytest.raises(ValueError, match="at least one row, got none"):
        knee_index(losses_of([], 2))
