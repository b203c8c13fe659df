"""What a report at a rung says about the end, learned from the trials that have got there. Pure; runs on the driver.

The metric now plus what is still to be gained, and that by a small Gaussian process over the rung's two signals, cross entropy
and metric. It need not be monotone: a learning rate that is too high is ahead at first, and falls back later. Far from all
that has finished, a trial is expected to gain what others gained: mostly the promising ones finish, and the worst would else
look like them. Where a rung says little about the end (in the warm-up, say) the forecast is wide, and then nobody is stopped
there. Which signal counts for how much is found by the likelihood, anew for each rung.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23 to 2.25 and 2.30.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.ladder import LOSS, METRIC, rows_of

if TYPE_CHECKING:
    from tuner.ladder import IntArray, Rung
    from tuner.pareto import FloatArray

MIN_FINISHED = 5
"""Trials that must have finished before a rung is read as a forecast."""
MOST_LEARNED = 40
"""Finished trials, the last ones begun, that a forecast is learned from: more would cost time and say little."""
LENGTHS = (0.5, 1.5, 8.0)
"""Distances over which a signal matters, in standard deviations of the rung; the last is "hardly at all"."""
NOISES = (0.1, 0.3, 0.8)
"""Shares of the gains' variance that no signal explains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Where some trials are expected to end."""

    metric: FloatArray
    """`(num,)` the final metric where a trial has finished, else its forecast; turned so that lower is better."""
    error: FloatArray
    """`(num,)` its standard error: of the evaluation, or of the forecast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a rung says about the end."""

    points: FloatArray
    """`(num_known, 2)` signals of finished trials, in kernel lengths."""
    lower: FloatArray
    """`(num_known, num_known)` Cholesky factor of their covariance."""
    weights: FloatArray
    """`(num_known,)` of the mean."""
    middle: FloatArray
    """`(2,)` signals at 0 lengths."""
    length: FloatArray
    """`(2,)` one kernel length in the signals' units."""
    noise: float
    """Share of the variance that the signals don't explain."""
    mean: float
    """Of the gains, final metric less the metric at the rung, turned so that lower is better."""
    deviation: float
    """Of the gains."""
    spread: float
    """Standard deviation of a gain far from all that is known."""

    def of(self, rung: Rung, rows: IntArray) -> Outlook:
        """What is expected of some trials of the rung, as if none had finished."""
        asked = (_signals(rung)[rows] - self.middle) / self.length
        kernel = _kernel(asked, self.points)
        kernel *= 1 - self.noise
        explained = np.linalg.solve(self.lower, kernel.T)
        explained **= 2
        variance = np.maximum(1.0 - np.sum(explained, axis=0), self.noise)
        gain = self.mean + self.deviation * (kernel @ self.weights)
        return Outlook(metric=rung.metric[rows] + gain, error=self.spread * np.sqrt(variance))


def fit_forecast(rung: Rung, last: Rung) -> Forecast | None:
    """Learn what a rung says about the last one.

    Args:
        rung: Reports at the rung.
        last: Reports at the last rung.

    Returns:
        None while fewer than MIN_FINISHED trials have finished.
    """
    newest = (number for number in np.sort(last.numbers)[::-1].tolist() if number in rung.places)
    shared = [*itertools.islice(newest, MOST_LEARNED)][::-1]
    if len(shared) < MIN_FINISHED:
        return None
    rows, signals = rows_of(rung, shared), _signals(rung)
    gain = last.metric[rows_of(last, shared)] - rung.metric[rows]
    width = signals.std(axis=0)
    middle, width = signals.mean(axis=0), np.where(width > 0, width, 1.0)
    known = (signals[rows] - middle) / width
    mean, deviation = float(gain.mean()), float(gain.std()) or 1.0
    fits = _fits(known, (gain - mean) / deviation)
    best = max(fits, key=lambda fit: fit.likelihood)
    return Forecast(
        points=known / best.lengths,
        lower=best.lower,
        weights=best.weights,
        middle=middle,
        length=width * best.lengths,
        noise=best.noise,
        mean=mean,
        deviation=deviation,
        spread=deviation * math.sqrt(best.variance),
    )


def outlook(rung: Rung, rows: IntArray, last: Rung, forecast: Forecast) -> Outlook:
    """Where some of a rung's trials are expected to end, or have ended."""
    expected = forecast.of(rung, rows)
    for here, number in enumerate(rung.numbers[rows].tolist()):
        if (there := last.places.get(number)) is not None:
            expected.metric[here], expected.error[here] = last.metric[there], last.error[there]
    return expected


def _signals(rung: Rung) -> FloatArray:
    return rung.table[:, [LOSS, METRIC]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    """One kernel's fit; the fields are those of Forecast."""

    likelihood: float
    """Log likelihood at the likeliest variance, up to a constant."""
    lengths: FloatArray
    noise: float
    lower: FloatArray
    weights: FloatArray
    variance: float


def _fits(points: FloatArray, target: FloatArray) -> list[_Fit]:
    """Fit every kernel of the grid at once.

    Args:
        points: `(num, 2)` standardized signals.
        target: `(num,)` standardized gains.
    """
    grid = [*itertools.product(itertools.product(LENGTHS, repeat=2), NOISES)]
    lengths, noises = np.array([pair for pair, _ in grid]), np.array([noise for _, noise in grid])[:, None, None]
    squares = (points[:, None, :] - points[None, :, :]) ** 2
    kernels = np.exp(-0.5 * np.einsum("abs,gs->gab", squares, lengths**-2))
    covariances = (1 - noises) * kernels + noises * np.eye(len(points))
    lowers = np.linalg.cholesky(covariances)
    weights = np.linalg.solve(covariances, np.broadcast_to(target[:, None], (len(grid), len(target), 1)))[:, :, 0]
    variances = np.maximum(weights @ target / (len(target) - 1), 1e-12)
    volumes = np.log(np.diagonal(lowers, axis1=1, axis2=2)).sum(axis=1)
    likelihoods = -0.5 * len(target) * np.log(variances) - volumes
    return [
        _Fit(
            likelihood=float(likelihoods[place]),
            lengths=lengths[place],
            noise=noise,
            lower=lowers[place],
            weights=weights[place],
            variance=float(variances[place]),
        )
        for place, (_, noise) in enumerate(grid)
    ]


def _kernel(one: FloatArray, other: FloatArray) -> FloatArray:
    """Squared exponential with unit lengths; in place, for new memory for thousands of rows takes longer than the arithmetic."""
    squared: FloatArray = np.sum(one**2, axis=1)[:, None] + np.sum(other**2, axis=1)[None, :]
    squared -= 2 * one @ other.T
    np.maximum(squared, 0.0, out=squared)
    squared *= -0.5
    return np.asarray(np.exp(squared, out=squared))
