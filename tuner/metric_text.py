"""A metric and its values as people read them: shares in percent, perplexity as a plain number. Pure; runs on the driver."""

from __future__ import annotations

import math

from tuner.trial import Metric

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
PLAIN_NUMBERS = (1e-4, 1e6)
"""Numbers outside are written with an exponent."""


def name(metric: Metric) -> str:
    """What it is called inside a sentence: `exact match`, `macro F1`."""
    return "macro F1" if metric is Metric.MACRO_F1 else metric.value.replace("_", " ")


def title(metric: Metric) -> str:
    """What it is called at the start of a line: `Exact match`, `Macro F1`."""
    words = name(metric)
    return words[0].upper() + words[1:]


def column(metric: Metric) -> str:
    """The heading over its numbers: `Exact match (%)`, `Perplexity`."""
    return f"{title(metric)} (%)" if metric.is_share else title(metric)


def axis(metric: Metric) -> str:
    """The words along its axis."""
    return f"Validation {name(metric)} {'(%)' if metric.is_share else '(lower is better)'}"


def best(metric: Metric) -> str:
    """What the best trial has: `best exact match`, `lowest perplexity`."""
    return f"{'best' if metric.is_maximized else 'lowest'} {name(metric)}"


def scaled(metric: Metric, value: float) -> float:
    """A value, error or difference on the metric's axis: percent or points for shares, as it is for perplexity."""
    return 100 * value if metric.is_share else value


def number(metric: Metric, value: float) -> str:
    """A value on its axis, without a unit: shares to a tenth of a point, perplexity to three digits."""
    return f"{scaled(metric, value):.1f}" if metric.is_share else _digits(value, 3)


def span(metric: Metric, low: float, high: float) -> str:
    """An interval on its axis, without a unit: `80.7 to 87.7`."""
    return f"{number(metric, low)} to {number(metric, high)}"


def number_with_error(metric: Metric, value: float, error: float) -> str:
    """A value on its axis ± its standard error: `84.5 ± 1.8`, `3.42 ± 0.13`; in one piece where lines break."""
    spread = number(metric, error) if metric.is_share else _digits(error, 2)
    return f"{number(metric, value)} ± {spread}".replace(" ", NO_BREAK_SPACE)


def text(metric: Metric, value: float) -> str:
    """A value with its unit: `84.5%`, `3.42`."""
    return f"{number(metric, value)}{_unit(metric)}"


def text_with_error(metric: Metric, value: float, error: float) -> str:
    """A value with its unit ± its standard error: `84.5% ± 1.8`, `3.42 ± 0.13`; in one piece where lines break."""
    before, _, after = number_with_error(metric, value, error).partition(NO_BREAK_SPACE)
    return f"{before}{_unit(metric)}{NO_BREAK_SPACE}{after}"


def gap(metric: Metric, difference: float) -> str:
    """A distance of two values: `0.5 points`, `0.12`."""
    return f"{number(metric, difference)} points" if metric.is_share else _digits(difference, 2)


def margin(metric: Metric, difference: float) -> str:
    """A distance as someone set it, not rounded: `1 point`, `0.1`."""
    value = f"{scaled(metric, difference):g}"
    return f"{value} point{'' if value == '1' else 's'}" if metric.is_share else value


def _unit(metric: Metric) -> str:
    return "%" if metric.is_share else ""


def _digits(value: float, digits: int) -> str:
    """A number of 0 or more to so many digits, those before the point in full."""
    if not PLAIN_NUMBERS[0] <= value < PLAIN_NUMBERS[1]:
        return f"{value:.{digits}g}"
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(rounded)))}f}"
