"""What a rung says about the end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.builders import make_config, make_metrics
from tuner.forecast import MIN_FINISHED, MOST_LEARNED, Forecast, fit_forecast, outlook
from tuner.front import objectives_of
from tuner.ladder import Ladder, Rung

OBJECTIVES = objectives_of(make_config())


def rungs(final_of: Callable[[float], float], *, num: int = 30, num_finished: int = 20) -> tuple[Rung, Rung]:
    """A rung of trials with losses from 0 to 1, and the end of the first ones."""
    ladder = Ladder(OBJECTIVES)
    losses = np.random.default_rng(0).permutation(np.linspace(0, 1, num))
    for number, loss in enumerate(losses):
        ladder.add(number, make_metrics(steps=30, loss=float(loss), accuracy=0.5))
        if number < num_finished:
            ladder.add(number, make_metrics(steps=120, accuracy=final_of(float(loss)), standard_error=0.01))
    return ladder.at(30), ladder.at(120)


def fitted(final_of: Callable[[float], float]) -> tuple[Rung, Rung, Forecast]:
    rung, last = rungs(final_of)
    forecast = fit_forecast(rung, last)
    assert forecast is not None
    return rung, last, forecast


@pytest.mark.parametrize(
    "final_of", [lambda loss: 0.9 - 0.5 * loss, lambda loss: 0.9 - 2 * (loss - 0.4) ** 2], ids=["line", "peak"]
)
def test_a_signal_that_tells_is_learned_whether_it_is_monotone_or_not(final_of: Callable[[float], float]) -> None:
    rung, _, forecast = fitted(final_of)

    new = np.arange(20, 30)
    expected = forecast.of(rung, new)

    assert -expected.metric == pytest.approx([final_of(loss) for loss in rung.loss[new]], abs=0.05)


def test_a_signal_that_tells_nothing_gives_the_mean_with_the_whole_spread() -> None:
    noise = np.random.default_rng(1)
    rung, last, forecast = fitted(lambda _: float(noise.uniform(0.4, 0.9)))

    expected = forecast.of(rung, np.arange(20, 30))

    assert expected.metric == pytest.approx(np.full(10, last.metric.mean()), abs=0.1)
    assert np.all(expected.error > 0.8 * last.metric.std())


def test_forecasts_hit_as_often_as_their_errors_say() -> None:
    noise = np.random.default_rng(2)
    hits = []
    for _ in range(20):
        truth: dict[float, float] = {}

        def final_of(loss: float, truth: dict[float, float] = truth) -> float:
            return truth.setdefault(loss, 0.9 - 0.5 * loss + float(noise.normal(0, 0.05)))

        rung, _, forecast = fitted(final_of)
        new = np.arange(20, 30)
        expected = forecast.of(rung, new)
        finals = np.array([-final_of(loss) for loss in rung.loss[new]])
        hits += [*(np.abs(finals - expected.metric) < 2 * expected.error)]

    assert np.mean(hits) > 0.9


def test_too_few_finished_trials_give_no_forecast() -> None:
    assert fit_forecast(*rungs(lambda loss: 1 - loss, num_finished=MIN_FINISHED - 1)) is None
    assert fit_forecast(*rungs(lambda loss: 1 - loss, num_finished=MIN_FINISHED)) is not None


def test_trials_that_all_end_alike_are_no_obstacle() -> None:
    rung, last, forecast = fitted(lambda _: 0.5)

    assert outlook(rung, np.arange(25, 30), last, forecast).metric == pytest.approx(np.full(5, -0.5))


def test_a_finished_trial_is_expected_where_it_ended() -> None:
    rung, last, forecast = fitted(lambda loss: 0.9 - 0.5 * loss)

    expected = outlook(rung, np.array([3, 25]), last, forecast)

    assert expected.metric[0] == last.metric[3]
    assert expected.error[0] == pytest.approx(0.01)
    assert expected.error[1] > 0


def test_a_long_sweep_learns_from_its_newest_trials() -> None:
    rung, last = rungs(lambda loss: 1 - loss, num=200, num_finished=150)
    forecast = fit_forecast(rung, last)

    assert forecast is not None
    assert len(forecast.points) == MOST_LEARNED
