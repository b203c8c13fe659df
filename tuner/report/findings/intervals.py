"""How sure a score is, and whether two can be told apart. Pure; runs on the driver.

Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (JASA 1927), for shares of right examples;
Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, for all other scores and for paired differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tuner.trial import HeldOut, Metric, Metrics

CONFIDENCE = 0.95
"""Of all intervals."""
NUM_SIGMAS = 1.959964
"""Standard errors on either side of a normal interval of that confidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A score with where it lies."""

    value: float
    """In the metric's unit."""
    low: float
    """Low end of its interval."""
    high: float
    """High end."""
    num_examples: int
    """Behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """By how much one trial is better than another, in the metric's unit; above 0 where it is better."""

    value: float
    low: float
    """Low end of its interval."""
    high: float
    """High end."""
    is_paired: bool
    """Whether both were scored on the same test examples, and compared example by example; else on validation data, as if
    they were not the same examples, which makes the interval wider than need be."""

    @property
    def is_clear(self) -> bool:
        """Whether it is beyond the noise, in whichever direction."""
        return self.low > 0 or self.high < 0


def validation_estimate(metric: Metric, metrics: Metrics) -> Estimate:
    """A trial's score on the validation data."""
    return _estimate(metric, metrics.accuracy, metrics.standard_error, metrics.num_validation)


def held_out_estimate(metric: Metric, held_out: HeldOut) -> Estimate:
    """A trial's score on the test data."""
    if metric.is_hit_rate or not held_out.resampled:
        return _estimate(metric, held_out.accuracy, held_out.standard_error, held_out.num_test)
    low, high = _percentiles(np.array(held_out.resampled))
    return Estimate(value=held_out.accuracy, low=low, high=high, num_examples=held_out.num_test)


def gap_of(metric: Metric, one: Metrics, other: Metrics, tests: tuple[HeldOut | None, HeldOut | None]) -> Gap:
    """By how much one trial is better than another: on the test data where both were scored there, else on validation data.

    Args:
        metric: The sweep's.
        one: Its newest report.
        other: The other's.
        tests: Their scores on the test data, where they have any.
    """
    mine, its = tests
    if mine is not None and its is not None and _are_paired(mine, its):
        return paired_gap(metric, mine, its)
    error = math.hypot(one.standard_error, other.standard_error)
    return _normal_gap(_better_by(metric, one.accuracy, other.accuracy), error)


def _are_paired(one: HeldOut, other: HeldOut) -> bool:
    return one.num_test == other.num_test and len(one.resampled) == len(other.resampled) > 0


def paired_gap(metric: Metric, one: HeldOut, other: HeldOut) -> Gap:
    """By how much one trial is better than another on the same resamples of the test data."""
    gaps = np.array(one.resampled) - np.array(other.resampled)
    low, high = _percentiles(gaps if metric.is_maximized else -gaps)
    return Gap(value=_better_by(metric, one.accuracy, other.accuracy), low=low, high=high, is_paired=True)


def flattery(metric: Metric, metrics: Metrics, held_out: HeldOut) -> Gap:
    """By how much the validation score is better than that on the test data, which are different examples."""
    error = math.hypot(metrics.standard_error, held_out.standard_error)
    return _normal_gap(_better_by(metric, metrics.accuracy, held_out.accuracy), error)


def num_to_tell_apart(metric: Metric, one: Metrics, other: Metrics) -> int | None:
    """Validation examples of which the gap of two trials would be clear, if it stays as it is; None where there is none."""
    gap = abs(_better_by(metric, one.accuracy, other.accuracy))
    if gap == 0 or not math.isfinite(gap):
        return None
    variance = one.standard_error**2 * one.num_validation + other.standard_error**2 * other.num_validation
    return math.ceil(variance * (NUM_SIGMAS / gap) ** 2)


def _normal_gap(value: float, error: float) -> Gap:
    return Gap(value=value, low=value - NUM_SIGMAS * error, high=value + NUM_SIGMAS * error, is_paired=False)


def _better_by(metric: Metric, one: float, other: float) -> float:
    return metric.loss(other) - metric.loss(one)


def _estimate(metric: Metric, value: float, error: float, num: int) -> Estimate:
    if metric.is_hit_rate:
        low, high = _wilson(round(value * num), num)
    else:
        least, most = (0.0, 1.0) if metric.is_share else (1.0, math.inf)
        low, high = max(least, value - NUM_SIGMAS * error), min(most, value + NUM_SIGMAS * error)
    return Estimate(value=value, low=low, high=high, num_examples=num)


def _wilson(num_right: int, num: int) -> tuple[float, float]:
    from scipy.stats import binomtest  # noqa: PLC0415 -- takes a second to import

    found = binomtest(num_right, num).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def _percentiles(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
