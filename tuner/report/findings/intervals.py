"""How sure a score is, and whether two can be told apart. Pure; runs on the driver.

Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (JASA 1927), for shares of right examples;
Newcombe, Interval Estimation for the Difference between Independent Proportions (Statistics in Medicine 1998), method 10, and
Zou, Donner, Construction of Confidence Limits about Effect Measures (2008), for differences of independent scores; Efron,
Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, for all other scores on test data and for paired differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuner.pareto import FloatArray
    from tuner.trial import HeldOut, Metric, Metrics, TrialRecord

CONFIDENCE = 0.95
"""Of all intervals."""
NUM_SIGMAS = 1.959964
"""Standard errors on either side of a normal interval of that confidence."""
POWER_SIGMAS = 0.841621
"""More of them, so that a true difference is found four times in five."""


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
    return Estimate(value=held_out.accuracy, low=float(low), high=float(high), num_examples=held_out.num_test)


def validation_gap(metric: Metric, one: Metrics, other: Metrics) -> Gap:
    """By how much one trial is better than another on the validation data, as if they had been scored on other examples."""
    return independent_gap(metric, validation_estimate(metric, one), validation_estimate(metric, other))


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
    return validation_gap(metric, one, other)


def paired_gap(metric: Metric, one: HeldOut, other: HeldOut) -> Gap:
    """By how much one trial is better than another on the same resamples of the test data."""
    gaps = np.array(one.resampled) - np.array(other.resampled)
    low, high = _percentiles(gaps if metric.is_maximized else -gaps)
    value = metric.loss(other.accuracy) - metric.loss(one.accuracy)
    return Gap(value=value, low=float(low), high=float(high), is_paired=True)


def independent_gap(metric: Metric, one: Estimate, other: Estimate) -> Gap:
    """By how much one score is better than another on other examples, from where each of them lies."""
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    if not metric.is_maximized:
        value, low, high = -value, -high, -low
    return Gap(value=value, low=low, high=high, is_paired=False)


def flattery(metric: Metric, metrics: Metrics, held_out: HeldOut) -> Gap:
    """By how much the validation score is better than that on the test data, which are different examples."""
    return independent_gap(metric, validation_estimate(metric, metrics), held_out_estimate(metric, held_out))


def ties_of(metric: Metric, records: Sequence[TrialRecord], tests: Mapping[int, HeldOut]) -> dict[int, tuple[int, ...]]:
    """Trial -> the others that it can't be told apart from, in their order.

    Args:
        metric: The sweep's.
        records: Trials that have reported.
        tests: Trial number -> scores on the test data, where there are any.
    """
    lasts = [(record.number, record.last) for record in records if record.last]
    estimates = [validation_estimate(metric, last) for _, last in lasts]
    ties: dict[int, list[int]] = {number: [] for number, _ in lasts}
    for place, (number, _) in enumerate(lasts):
        paired = _paired_with(metric, number, [other for other, _ in lasts[place + 1 :]], tests)
        for shift, (other, _) in enumerate(lasts[place + 1 :], start=place + 1):
            gap = paired.get(other) or independent_gap(metric, estimates[place], estimates[shift])
            if not gap.is_clear:
                ties[number].append(other)
                ties[other].append(number)
    return {number: tuple(others) for number, others in ties.items()}


def num_to_tell_apart(metric: Metric, one: Metrics, other: Metrics) -> int | None:
    """Validation examples that would show the gap of two trials four times in five, if it is as large as it looks.

    None where there is no gap.
    """
    gap = abs(metric.loss(one.accuracy) - metric.loss(other.accuracy))
    if gap == 0 or not math.isfinite(gap):
        return None
    variance = one.standard_error**2 * one.num_validation + other.standard_error**2 * other.num_validation
    return math.ceil(variance * ((NUM_SIGMAS + POWER_SIGMAS) / gap) ** 2)


def _paired_with(metric: Metric, number: int, others: Sequence[int], tests: Mapping[int, HeldOut]) -> dict[int, Gap]:
    """The gaps to those of some trials that were scored on the same test examples; all at once, for a front may be long."""
    mine = tests.get(number)
    known = [other for other in others if mine and other in tests and _are_paired(mine, tests[other])]
    if mine is None or not known:
        return {}
    gaps = np.array(mine.resampled) - np.array([tests[other].resampled for other in known])
    lows, highs = _percentiles(gaps if metric.is_maximized else -gaps)
    values = [metric.loss(tests[other].accuracy) - metric.loss(mine.accuracy) for other in known]
    return {
        other: Gap(value=value, low=float(low), high=float(high), is_paired=True)
        for other, value, low, high in zip(known, values, lows, highs, strict=True)
    }


def _are_paired(one: HeldOut, other: HeldOut) -> bool:
    return one.num_test == other.num_test and len(one.resampled) == len(other.resampled) > 0


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


def _percentiles(values: FloatArray) -> FloatArray:
    """Low and high ends along the last axis."""
    tail = 50 * (1 - CONFIDENCE)
    return np.asarray(np.percentile(values, [tail, 100 - tail], axis=-1), dtype=np.float64)
