"""How much each searched choice mattered."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.builders import make_config, make_metrics, make_outcome, make_record, make_spec
from tuner.config import SweepConfig
from tuner.dimensions import Choices, Range
from tuner.report.findings.importance import (
    MIN_TRIALS,
    Importance,
    Importances,
    Share,
    compared_rung,
    importances,
    positions,
)
from tuner.trial import Baseline, FailReason, Outcome, ParamValue, TrialRecord, TrialState

FIRST, SECOND, LAST = 30, 60, 120
RANKS = (4, 8, 16, 32)
SPACE: dict[str, Any] = {
    "r": {"choices": [*RANKS]},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "lora_dropout": {"low": 0.0, "high": 0.3},
    "target_modules": {"choices": {"qv": ["query", "value"], "mlp": ["intermediate.dense"], "q": ["query"]}},
    "use_dora": {"choices": [False, True]},
}


def sweep(**space: object) -> SweepConfig:
    choices = {name: value for name, value in (SPACE | space).items() if value is not None}
    objectives = {"accuracy": "accuracy"}
    return make_config(
        objectives=objectives,
        search={"num_trials": 4, "space": choices},
        pruning={"min_steps": FIRST, "reduction_factor": 2},
    )


Params = dict[str, ParamValue]


def drawn(num: int, *, seed: int = 0) -> list[Params]:
    draw = np.random.default_rng(seed)
    return [
        {
            "r": RANKS[draw.integers(4)],
            "learning_rate": float(10 ** draw.uniform(-4, -2)),
            "lora_dropout": float(draw.uniform(0, 0.3)),
            "target_modules": ("qv", "mlp", "q")[draw.integers(3)],
            "use_dora": bool(draw.integers(2)),
        }
        for _ in range(num)
    ]


def strong_rate_weak_rank(params: Params) -> float:
    rate, rank = math.log10(float(params["learning_rate"])) + 3, RANKS.index(int(params["r"]))
    return 0.9 - 0.2 * (rate - 0.3) ** 2 + 0.02 * rank


def tried(
    points: list[Params], accuracy: Callable[[Params], float], *, noise: float = 0.02, steps: int = FIRST
) -> list[TrialRecord]:
    draw = np.random.default_rng(1)
    return [
        at(number, params, accuracy(params) + noise * draw.standard_normal(), steps=steps)
        for number, params in enumerate(points)
    ]


def at(number: int, params: Params, accuracy: float, *, steps: int = FIRST, **changes: object) -> TrialRecord:
    spec = make_spec(number, params=tuple(params.items()))
    metrics = make_metrics(steps=steps, accuracy=accuracy, standard_error=0.01, loss=1 - accuracy)
    return make_record(number, TrialState.PAUSED, spec=spec, curve=(metrics,), **({"outcome": None} | changes))


def diverged(number: int, params: Params) -> TrialRecord:
    outcome = Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE)
    spec = make_spec(number, params=tuple(params.items()))
    return make_record(number, TrialState.FAIL, spec=spec, curve=(), outcome=outcome)


def told(records: list[TrialRecord], config: SweepConfig | None = None) -> Importances:
    found = importances(records, config or sweep())
    assert found is not None
    return found


def named(found: Importances) -> dict[str, Importance]:
    return {value.name: value for value in found.values}


def top_of(found: Importances, name: str) -> Share:
    return named(found)[name].top


def is_clear(one: Share, other: Share) -> bool:
    return one.low > other.high or other.low > one.high


def test_what_matters_more_comes_first_and_what_does_nothing_is_not_told_from_chance() -> None:
    found = told(tried(drawn(200), strong_rate_weak_rank))

    by_name = named(found)
    rate, rank, dropout = (by_name[name].share for name in ("learning_rate", "r", "lora_dropout"))
    assert [value.name for value in found.values[:2]] == ["learning_rate", "r"]
    assert is_clear(rate, rank)
    assert is_clear(rank, dropout)
    assert [by_name[name].matters for name in ("learning_rate", "r", "lora_dropout")] == [True, True, False]
    assert dropout.low < 0.002


def test_the_shares_are_near_those_that_the_metric_was_made_with() -> None:
    points = drawn(1000)
    fixed: tuple[Params, Params] = ({"r": 4}, {"learning_rate": 1e-3})
    alone = [[strong_rate_weak_rank(params | held) for params in points] for held in fixed]
    rate, rank = (float(np.var(values)) for values in alone)

    by_name = named(told(tried(points, strong_rate_weak_rank, noise=0.01)))

    assert by_name["learning_rate"].share.mean == pytest.approx(rate / (rate + rank), abs=0.05)
    assert by_name["r"].share.mean == pytest.approx(rank / (rate + rank), abs=0.05)


def test_being_among_the_best_quarter_is_explained_by_what_decides_it_and_by_nothing_else() -> None:
    found = told(tried(drawn(200), strong_rate_weak_rank))

    assert top_of(found, "learning_rate").low > found.chance.top.mean
    assert not is_clear(top_of(found, "lora_dropout"), found.chance.top)
    assert is_clear(top_of(found, "learning_rate"), top_of(found, "lora_dropout"))


def test_a_choice_without_an_order_is_found() -> None:
    goodness = {"qv": 0.7, "mlp": 0.9, "q": 0.7}
    found = told(tried(drawn(100), lambda params: goodness[str(params["target_modules"])]))

    assert found.values[0].name == "target_modules"
    assert found.values[0].share.low > 0.8
    assert top_of(found, "target_modules").low > 0.3


def test_noise_alone_makes_nothing_matter() -> None:
    found = [told(tried(drawn(60, seed=seed), lambda params: 0.8)) for seed in range(5)]

    assert sum(value.matters for one in found for value in one.values) <= 1


def test_intervals_are_narrower_with_more_trials_and_hold_their_means() -> None:
    few, many = (told(tried(drawn(num), strong_rate_weak_rank)) for num in (20, 200))

    widths = [named(found)["learning_rate"].share for found in (few, many)]
    assert widths[0].high - widths[0].low > 2 * (widths[1].high - widths[1].low)
    shares = [share for found in (few, many) for value in found.values for share in (value.share, value.top)]
    assert all(0 <= share.low <= share.mean <= share.high <= 1 for share in shares)


def test_twenty_trials_rank_nothing_that_they_cannot() -> None:
    found = told(tried(drawn(20), strong_rate_weak_rank, noise=0.05))

    assert not is_clear(named(found)["r"].share, named(found)["lora_dropout"].share)


def test_the_same_trials_give_the_same_answer_in_any_order() -> None:
    records = tried(drawn(30), strong_rate_weak_rank)

    assert told(records) == told(records[::-1])


def test_diverged_trials_count_as_the_worst_and_point_at_their_learning_rate() -> None:
    points = drawn(100)
    is_hot = [float(params["learning_rate"]) > 5e-3 for params in points]
    calm = tried(points, lambda params: 0.8)
    records = [
        diverged(record.number, params) if hot else record
        for record, params, hot in zip(calm, points, is_hot, strict=True)
    ]

    found = told(records)

    assert (found.num_trials, found.num_diverged) == (100, sum(is_hot))
    assert named(found)["learning_rate"].matters


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_perplexity_that_is_not_finite_counts_as_the_worst(value: float) -> None:
    config = make_config(
        objectives={"accuracy": "perplexity"},
        training={"task": "causal-lm", "max_steps": LAST},
        search={"num_trials": 4, "space": SPACE},
        pruning={"min_steps": FIRST},
    )
    records = [
        make_record(number, spec=make_spec(number, params=tuple(params.items())), steps=FIRST, loss=loss)
        for number, params in enumerate(drawn(40))
        for loss in [value if float(params["learning_rate"]) > 3e-3 else 1.0 + number / 1000]
    ]

    found = told(records, config)

    assert found.num_diverged > 0
    assert found.values[0].name == "learning_rate"


def test_too_few_trials_say_nothing() -> None:
    records = tried(drawn(MIN_TRIALS - 1), strong_rate_weak_rank)

    assert importances(records, sweep()) is None
    assert importances(records[:1], sweep()) is None
    assert importances([], sweep()) is None


@pytest.mark.parametrize("accuracy", [0.8, math.nan])
def test_where_all_trials_are_alike_there_is_nothing_to_tell(accuracy: float) -> None:
    assert importances(tried(drawn(30), lambda params: accuracy, noise=0), sweep()) is None


def test_points_that_were_tried_often_are_no_problem() -> None:
    found = told(tried(drawn(4) * 10, strong_rate_weak_rank))

    assert found.num_trials == 40


def test_many_choices_do_not_explain_all_by_having_a_trial_each() -> None:
    modules = {f"set{number}": [f"layer{number}"] for number in range(40)}
    points = [params | {"target_modules": f"set{number % 40}"} for number, params in enumerate(drawn(60))]

    found = told(tried(points, strong_rate_weak_rank), sweep(target_modules={"choices": modules}))

    assert top_of(found, "target_modules").low < 0.1


def test_what_not_all_trials_have_and_what_never_varied_is_told_and_left_out() -> None:
    config = sweep(rank_pattern={"intermediate.dense": {"choices": [1, 2]}})
    points = [
        params | {"use_dora": False} | ({"rank_pattern.intermediate.dense": 1} if number % 2 else {})
        for number, params in enumerate(drawn(40))
    ]

    found = told(tried(points, strong_rate_weak_rank), config)

    assert (found.conditional, found.unvaried) == (("rank_pattern.intermediate.dense",), ("use_dora",))
    assert {*named(found)} == {"r", "learning_rate", "lora_dropout", "target_modules"}


def test_where_no_choice_ever_varied_there_is_nothing_to_tell() -> None:
    assert importances(tried(drawn(1) * 20, lambda params: 0.8), sweep()) is None


def test_baselines_and_audits_count_in_nothing() -> None:
    records = tried(drawn(20), strong_rate_weak_rank)
    beside = [
        make_record(-1, spec=make_spec(-1, baseline=Baseline.FULL), steps=FIRST),
        make_record(-2, spec=make_spec(-2, audits=3), steps=FIRST),
    ]

    assert told(records + beside) == told(records)


def reached(*steps: int) -> TrialRecord:
    return make_record(spec=make_spec(), curve=tuple(make_metrics(steps=step) for step in steps))


def test_trials_are_compared_at_the_latest_rung_that_most_have_reached() -> None:
    rungs = (FIRST, SECOND, LAST)
    halved = [reached(FIRST)] * 20 + [reached(FIRST, SECOND)] * 15 + [reached(*rungs)] * 5
    steady = [reached(FIRST)] * 4 + [reached(FIRST, SECOND)] * 26 + [reached(*rungs)] * 10

    assert compared_rung(halved, rungs) == FIRST
    assert compared_rung(steady, rungs) == SECOND
    assert compared_rung(steady[:MIN_TRIALS], rungs) == FIRST
    assert compared_rung(steady[: MIN_TRIALS - 1], rungs) is None


def test_trials_that_did_not_reach_the_rung_are_counted_as_missing() -> None:
    config = sweep()
    points = drawn(40)
    late = tried(points[:35], strong_rate_weak_rank, steps=config.rungs[1])
    early = [at(number + 35, params, 0.5, steps=config.rungs[0]) for number, params in enumerate(points[35:])]

    found = told(late + early, config)

    assert (found.steps, found.num_trials, found.num_missing) == (config.rungs[1], 35, 5)


def test_a_failure_that_says_nothing_of_the_metric_counts_in_nothing() -> None:
    records = tried(drawn(20), strong_rate_weak_rank)
    lost = make_record(20, TrialState.FAIL, curve=(), outcome=make_outcome(TrialState.FAIL))

    assert told([*records, lost]) == told(records)


def test_positions_are_uniform_where_the_sampler_is() -> None:
    assert positions(Range[float](low=1e-4, high=1e-2, log=True), [1e-4, 1e-3, 1e-2]) == pytest.approx([0, 0.5, 1])
    assert positions(Range[int](low=1, high=4), [1, 2, 4]) == pytest.approx([1 / 8, 3 / 8, 7 / 8])
    assert positions(Range[int](low=4, high=12, step=4), [4, 8, 12]) == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert positions(Choices[int](choices=(16, 4)), [16, 4]) == pytest.approx([3 / 4, 1 / 4])
    assert positions(Choices[str](choices=("qv", "mlp")), ["qv", "mlp"]) == pytest.approx([1 / 4, 3 / 4])
