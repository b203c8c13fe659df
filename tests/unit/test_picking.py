"""Which trial of a front a rule picks."""

from __future__ import annotations

import pytest

from tests.builders import MIB, make_config, make_record
from tuner.errors import PickError
from tuner.front import Objective, front, objectives_of
from tuner.picking import RULES, Pick
from tuner.trial import TrialRecord

ALL = objectives_of(make_config())
BY_PARAMS = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)
BY_PERPLEXITY = (Objective.PERPLEXITY, Objective.TRAINABLE_PARAMS)


def finished(number: int, *, accuracy: float, params: int = 100, mib: int = 100) -> TrialRecord:
    return make_record(number, accuracy=accuracy, trainable_params=params, peak_memory_bytes=mib * MIB)


CHEAPEST_FIRST = (
    finished(4, accuracy=0.60, params=100),
    finished(2, accuracy=0.88, params=200),
    finished(7, accuracy=0.89, params=500),
    finished(1, accuracy=0.90, params=1000),
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("most-accurate", 2),
        ("cheapest-within:0", 2),
        ("cheapest-within:0.5", 1),
        ("cheapest-within:20", 0),
        ("knee", 1),
    ],
)
def test_a_rule_picks_by_perplexity_as_by_a_share(rule: str, expected: int) -> None:
    records = [
        finished(0, accuracy=9.0, params=100),
        finished(1, accuracy=3.5, params=200),
        finished(2, accuracy=3.0, params=1000),
    ]

    assert Pick(rule=rule).of(front(records, BY_PERPLEXITY), BY_PERPLEXITY).number == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("knee", 2),
        ("most-accurate", 1),
        ("trial:7", 7),
        ("trial:007", 7),
        ("cheapest-within:0", 1),
        ("cheapest-within:0.015", 7),
        ("cheapest-within:0.05", 2),
        ("cheapest-within:1", 4),
        ("within:0.015", 7),
        ("max-params:1000", 1),
        ("max-params:0.5k", 7),
        ("max-params:499", 2),
        ("max-params:2M", 1),
        ("max-memory:1GiB", 1),
        ("max-memory:100MiB", 1),
    ],
)
def test_a_rule_picks_one_trial_of_the_front(rule: str, expected: int) -> None:
    assert Pick(rule=rule).of(CHEAPEST_FIRST, BY_PARAMS).number == expected


def test_of_equally_accurate_trials_the_cheapest_is_picked() -> None:
    equal = (finished(3, accuracy=0.9, params=1, mib=9), finished(0, accuracy=0.9, params=2, mib=8))

    assert Pick(rule="most-accurate").of(equal, ALL).number == 3
    assert Pick(rule="cheapest-within:0").of(equal, ALL).number == 3


@pytest.mark.parametrize("margin", ["0.01", "0.02", "0.1", "0.3"])
def test_a_trial_exactly_at_the_margin_is_within(margin: str) -> None:
    below = (finished(0, accuracy=round(0.9 - float(margin), 2), params=1), finished(1, accuracy=0.9, params=2))

    assert Pick(rule=f"cheapest-within:{margin}").of(below, BY_PARAMS).number == 0


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "best",
        "knee:1",
        "most-accurate:2",
        "Knee",
        "trial",
        "trial:",
        "trial:-1",
        "trial:one",
        "cheapest-within",
        "cheapest-within:",
        "cheapest-within:1%",
        "cheapest-within:-0.1",
        "cheapest-within:inf",
        "cheapest-within:nan",
        "cheapest-within:se",
        "cheapest-within:-1se",
        "cheapest-within:1 s",
        "within",
        "max-params",
        "max-params:many",
        "max-params:2GiB",
        "max-memory:2M",
        "max-memory:-1GiB",
        "max-memory:24",
    ],
)
def test_a_rule_that_is_none_of_these_is_told_with_all(rule: str) -> None:
    with pytest.raises(PickError) as caught:
        Pick(rule=rule).of(CHEAPEST_FIRST, BY_PARAMS)

    assert str(caught.value) == f"pick must be {RULES}, got {rule!r}"
    for name in ("knee", "most-accurate", "trial:N", "cheapest-within:", "within:", "max-params:", "max-memory:"):
        assert name in RULES


@pytest.mark.parametrize(("rule", "number"), [("0se", 1), ("0.5se", 1), ("1se", 0), ("2se", 0)])
def test_a_margin_may_be_given_in_standard_errors_of_the_best(rule: str, number: int) -> None:
    below = (finished(0, accuracy=0.885, params=1), finished(1, accuracy=0.9, params=2))  # one standard error is 0.015

    assert Pick(rule=f"cheapest-within:{rule}").of(below, BY_PARAMS).number == number


def test_a_trial_off_the_front_is_told_with_those_on_it() -> None:
    with pytest.raises(PickError, match=r"trial 3 is not on the front, .* are kept: 4, 2, 7, 1$"):
        Pick(rule="trial:3").of(CHEAPEST_FIRST, BY_PARAMS)


@pytest.mark.parametrize("rule", ["knee", "most-accurate", "trial:0", "cheapest-within:0.1"])
def test_an_empty_front_has_nothing_to_pick(rule: str) -> None:
    with pytest.raises(PickError, match="no trial has finished"):
        Pick(rule=rule).of((), ALL)


@pytest.mark.parametrize(
    ("rule", "words"),
    [("max-params:99", "the smallest takes 100"), ("max-memory:1MiB", "the smallest takes 104,857,600")],
)
def test_a_limit_that_nothing_keeps_is_told_with_the_smallest(rule: str, words: str) -> None:
    with pytest.raises(PickError, match=words):
        Pick(rule=rule).of(CHEAPEST_FIRST, BY_PARAMS)
