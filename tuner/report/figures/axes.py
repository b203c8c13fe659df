"""Where an axis begins and ends, and which numbers stand along it. Pure; runs on the driver."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Span = tuple[float, float]
"""Low and high end of an axis."""

MIN_TICKS = 3
PADDING = 0.08
"""Empty part of an axis on either side, as a share of its length."""
MOST_STRETCH = 0.25
"""How much longer an axis may get on either side for a point that it was not made for, as a share of its length."""
EDGE = 0.03
"""How far inside its end an axis shows what lies beyond, as a share of its length."""


def padded(values: Sequence[float], *, is_log: bool = False) -> Span:
    """An axis with room around the values; around 1 without any, and never of length 0."""
    if not values:
        return (0.5, 2.0)
    low, high = min(values), max(values)
    if is_log:
        factor = max((high / low) ** PADDING, 1.15)
        return (low / factor, high * factor)
    room = max(PADDING * (high - low), 0.02 * abs(high), 1e-3)
    return (low - room, high + room)


def stretched(span: Span, values: Sequence[float], *, is_log: bool = False) -> Span:
    """An axis made longer for those values that are not far beyond its ends; the others are left outside.

    Args:
        span: The axis as it is.
        values: What else it may show.
        is_log: Whether it is logarithmic; values of 0 are then left outside too.
    """
    low, high = on_scale(span, is_log=is_log)
    reach, room = MOST_STRETCH * (high - low), EDGE * (high - low)
    placed = on_scale([value for value in values if value > 0 or not is_log], is_log=is_log)
    beyond = [place for place in placed if low - reach <= place < low or high < place <= high + reach]
    if not beyond:
        return span
    ends = min(low, min(beyond) - room), max(high, max(beyond) + room)
    return (10 ** ends[0], 10 ** ends[1]) if is_log else ends


def clipped(value: float, span: Span, *, is_log: bool = False) -> float:
    """The value, or a place just inside the axis where it lies beyond."""
    if span[0] <= value <= span[1]:
        return value
    low, high = on_scale(span, is_log=is_log)
    place = low + EDGE * (high - low) if value < span[0] else high - EDGE * (high - low)
    return 10**place if is_log else place


def on_scale(values: Sequence[float], *, is_log: bool) -> list[float]:
    """The exponents of ten on a logarithmic axis, else the values."""
    return [math.log10(value) for value in values] if is_log else list(values)


def log_ticks(span: Span) -> tuple[float, ...]:
    """Round numbers inside a positive span: powers of ten, with 2 and 5 or evenly spaced where those are too few."""
    low, high = span
    decades = [10.0**exponent for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    for mantissas in ((1,), (1, 2, 5)):
        values = (round(mantissa * decade, 12) for decade in decades for mantissa in mantissas)
        ticks = tuple(value for value in values if low <= value <= high)
        if len(ticks) >= MIN_TICKS:
            return ticks
    return _even_ticks(span)


def _even_ticks(span: Span) -> tuple[float, ...]:
    low, high = span
    decade = 10.0 ** math.floor(math.log10(high - low))
    ticks: tuple[float, ...] = ()
    for parts in (1, 2, 5, 10):
        step = decade / parts
        ticks = tuple(round(at * step, 12) for at in range(math.ceil(low / step), math.floor(high / step) + 1))
        if len(ticks) >= MIN_TICKS:
            break
    return ticks
