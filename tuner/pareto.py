"""Pareto arithmetic over arrays: front, hypervolume, knee. Pure; runs anywhere."""

from __future__ import annotations

import moocore
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def non_dominated_mask(losses: FloatArray) -> BoolArray:
    """Mark the rows that no other row dominates.

    A row dominates another if it is no worse in every column and better in one.

    Args:
        losses: `(num_points, num_objectives)`, lower is better, finite.

    Returns:
        `(num_points,)`; True on the front. Equal rows are all on it, or all off it.

    Raises:
        ValueError: `losses` is not 2-D or holds a value that is not finite.
    """
    _check(losses)
    if len(losses) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(losses, keep_weakly=True), dtype=np.bool_)


def hypervolume(losses: FloatArray, reference: FloatArray) -> float:
    """Volume that the points dominate, up to a reference point.

    Args:
        losses: `(num_points, num_objectives)`, lower is better, finite.
        reference: `(num_objectives,)`; points that are not better in every column add nothing.

    Raises:
        ValueError: `losses` is not 2-D or holds a value that is not finite.

    Source: moocore, after Fonseca, Paquete, López-Ibáñez: An improved dimension-sweep algorithm for the
    hypervolume indicator (CEC 2006).
    """
    _check(losses)
    inside = losses[np.all(losses < reference, axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0


def knee_index(losses: FloatArray) -> int:
    """The compromise: the row nearest to the ideal point, each column scaled to [0, 1] over the rows.

    Args:
        losses: `(num_points, num_objectives)` of a front, lower is better, finite, at least one row.

    Returns:
        Index of the row; the first of equals.

    Raises:
        ValueError: `losses` is empty, not 2-D, or holds a value that is not finite.

    Source: compromise programming, Zeleny, Multiple Criteria Decision Making (1973).
    """
    _check(losses)
    if len(losses) == 0:
        msg = "losses must hold at least one row, got none"
        raise ValueError(msg)
    low, high = losses.min(axis=0), losses.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.linalg.norm((losses - low) / width, axis=1)))


def _check(losses: FloatArray) -> None:
    if losses.ndim != 2:  # noqa: PLR2004 -- rows and columns
        msg = f"losses must have 2 dimensions, got {losses.ndim}"
        raise ValueError(msg)
    if not np.all(np.isfinite(losses)):
        msg = "losses must be finite"
        raise ValueError(msg)
