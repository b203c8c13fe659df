"""Who works next."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import optuna
import pytest

from tests.builders import make_config, make_metrics
from tuner.front import objectives_of
from tuner.scheduler import Next, Scheduler
from tuner.trial import Decision, Metrics, Stop, StopReason

UNLIMITED: dict[str, Any] = {"may_begin": True, "left_steps": math.inf}


def scheduler(*, max_steps: int = 80, floor: float = math.inf, **pruning: object) -> Scheduler:
    """Rungs at 10, 20, 40 and 80 steps by default."""
    config = make_config(training={"max_steps": max_steps}, pruning={"min_steps": 10, "wait_every": 1, **pruning})
    return Scheduler(config, objectives_of(config), floor)


def at(steps: int, accuracy: float, *, params: int = 100, **more: Any) -> Metrics:
    values = {"loss": 1 - accuracy, "trainable_params": params, "peak_memory_bytes": 2**20, **more}
    return make_metrics(steps=steps, accuracy=accuracy, **values)


def report(ladder: Scheduler, number: int, metrics: Metrics, **changes: Any) -> Decision:
    ladder.begin(number, 0)
    return ladder.report(number, metrics, **{**UNLIMITED, **changes})


def filled(ladder: Scheduler, accuracies: list[float], *, params: int = 100) -> None:
    """Trials that went all the way, numbered from 100."""
    for number, accuracy in enumerate(accuracies, start=100):
        for steps in (10, 20, 40, 80):
            ladder.learn(number, at(steps, accuracy, params=params))
        ladder.end(number, is_finished=True)


def test_the_first_at_a_rung_waits_while_there_are_new_trials_to_begin() -> None:
    assert report(scheduler(), 0, at(10, 0.9)) is Decision.PAUSE


def test_one_of_two_goes_on_and_it_is_the_better_one() -> None:
    ladder = scheduler()

    assert report(ladder, 0, at(10, 0.5)) is Decision.PAUSE
    assert report(ladder, 1, at(10, 0.9)) is Decision.CONTINUE


def test_between_the_rungs_at_which_trials_wait_they_go_on_unless_they_are_stopped() -> None:
    ladder = scheduler(wait_every=2)

    assert report(ladder, 0, at(10, 0.9)) is Decision.PAUSE
    assert report(ladder, 1, at(20, 0.1)) is Decision.CONTINUE
    assert report(ladder, 1, at(40, 0.1)) is Decision.PAUSE  # alone there
    filled(ladder, [0.9, 0.89, 0.91, 0.88, 0.9, 0.92])
    assert report(ladder, 2, at(20, 0.3, params=200)) is Decision.PRUNE


def test_one_in_four_goes_on_the_share_rounded_to_the_nearest() -> None:
    ladder = scheduler(wait_every=2)
    decisions = [report(ladder, number, at(10, 0.3 + number / 20)) for number in range(10)]

    assert [number for number, decision in enumerate(decisions) if decision is Decision.CONTINUE] == [1, 5, 9]


def test_a_paused_trial_is_given_out_when_it_is_the_best_that_waits() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.9))
    report(ladder, 1, at(10, 0.5))

    assert ladder.choose(**UNLIMITED) == 0
    ladder.go_on(0)
    assert ladder.choose(**UNLIMITED) is Next.BEGIN


def test_the_cheapest_goes_on_beside_the_most_accurate() -> None:
    ladder = scheduler()
    for number, (accuracy, params) in enumerate([(0.9, 10_000), (0.89, 9_000), (0.6, 10), (0.88, 9_500)]):
        report(ladder, number, at(10, accuracy, params=params))

    while isinstance(choice := ladder.choose(**UNLIMITED), int):
        ladder.go_on(choice)

    assert 2 in {number for number in range(4) if ladder.has_gone_on(number, 10)}


def test_without_new_trials_all_that_wait_are_finished() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.9))

    assert ladder.choose(may_begin=False, left_steps=math.inf) == 0
    assert ladder.report(0, at(20, 0.9), may_begin=False, left_steps=math.inf) is Decision.CONTINUE


def test_nothing_is_begun_that_the_budget_could_not_finish() -> None:
    ladder = scheduler()

    assert ladder.choose(may_begin=True, left_steps=80) is Next.BEGIN
    assert ladder.choose(may_begin=True, left_steps=79) is Next.NOTHING


def test_steps_promised_to_trials_at_work_are_not_given_out_twice() -> None:
    ladder = scheduler()
    ladder.begin(0, 0)

    assert ladder.choose(may_begin=True, left_steps=159) is Next.NOTHING
    assert ladder.choose(may_begin=True, left_steps=160) is Next.BEGIN


def test_the_rest_of_a_budget_finishes_what_waits_rather_than_beginning_anew() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.9))

    assert ladder.choose(may_begin=True, left_steps=75) == 0


def test_nobody_is_stopped_before_anything_is_known_of_the_end() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.9))

    assert report(ladder, 1, at(10, 0.1, params=200)) is Decision.PAUSE


def test_a_trial_that_others_dominate_is_stopped_with_its_evidence() -> None:
    ladder = scheduler()
    filled(ladder, [0.9, 0.89, 0.91, 0.88, 0.9, 0.92])

    assert report(ladder, 0, at(10, 0.3, params=200)) is Decision.PRUNE
    assert ladder.end(0, is_finished=False) == Stop(
        reason=StopReason.DOMINATED, detail="trial 105 costs no more and leads by 0.62 ± 0.027"
    )


def test_a_small_trial_that_nothing_dominates_is_not_stopped() -> None:
    ladder = scheduler()
    filled(ladder, [0.9, 0.89, 0.91, 0.88, 0.9, 0.92])

    assert report(ladder, 0, at(10, 0.3, params=99)) is not Decision.PRUNE


def test_late_risers_are_not_stopped_where_others_rose_late() -> None:
    """At this rung the order says nothing: those that were behind ended as those that were ahead."""
    ladder = scheduler()
    for number, early in enumerate([0.9, 0.3, 0.8, 0.2, 0.7, 0.4, 0.6, 0.5]):
        for steps, accuracy in ((10, early), (20, 0.8), (40, 0.85), (80, 0.9 + number / 1000)):
            ladder.learn(number, at(steps, accuracy))
        ladder.end(number, is_finished=True)

    assert report(ladder, 50, at(10, 0.25, params=200)) is not Decision.PRUNE


def test_a_waiting_trial_that_others_came_to_dominate_is_stopped_when_its_turn_comes() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.3, params=200))
    filled(ladder, [0.9, 0.89, 0.91, 0.88, 0.9, 0.92])

    assert ladder.choose(may_begin=False, left_steps=math.inf) is Next.NOTHING
    assert ladder.take_stopped()[0].reason is StopReason.DOMINATED
    assert ladder.waiting == ()


def test_when_the_budget_is_used_up_those_that_wait_are_stopped_for_it() -> None:
    ladder = scheduler()
    report(ladder, 0, at(10, 0.3))

    assert ladder.stop_all_waiting() == {0: Stop(reason=StopReason.BUDGET)}


def test_a_trial_at_the_floor_is_stopped_from_half_of_its_steps_on() -> None:
    ladder = scheduler(floor=-0.5)
    filled(ladder, [0.9, 0.8], params=1000)
    for steps in (10, 20):
        assert report(ladder, 0, at(steps, 0.5, params=1)) is not Decision.PRUNE

    assert report(ladder, 0, at(40, 0.5, params=1)) is Decision.PRUNE


@pytest.mark.parametrize("method", ["asha", "median", "none"])
def test_the_other_methods_never_pause(method: str) -> None:
    ladder = scheduler(method=method)

    assert report(ladder, 0, at(10, 0.5)) is Decision.CONTINUE


def test_asha_keeps_the_larger_and_stops_the_cheaper() -> None:
    ladder = scheduler(method="asha")
    report(ladder, 0, at(10, 0.9, params=1000))

    assert report(ladder, 1, at(10, 0.8, params=1)) is Decision.PRUNE


def test_with_one_objective_what_goes_on_at_once_is_what_successive_halving_promotes() -> None:
    """Where both rules apply, with an even number at the rung: Optuna stops what is not among the best n // 2, here it waits."""
    config = make_config(
        training={"max_steps": 80},
        objectives={"trainable_params": False, "memory": False},
        pruning={"min_steps": 10, "wait_every": 1},
    )
    ladder = Scheduler(config, objectives_of(config))
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)
    )
    for number, accuracy in enumerate(np.random.default_rng(0).permutation(np.linspace(0.2, 0.9, 24))):
        trial = study.ask()
        trial.report(accuracy, 10)
        is_promoted = not trial.should_prune()
        decision = report(ladder, number, at(10, float(accuracy)))

        while isinstance(waiting := ladder.choose(may_begin=True, left_steps=math.inf), int):
            ladder.go_on(waiting)
        if decision is Decision.CONTINUE and number % 2:
            assert is_promoted


def test_a_decision_takes_under_five_milliseconds_with_ten_thousand_trials() -> None:
    ladder, draw = scheduler(), np.random.default_rng(0)
    for number in range(10_000):
        accuracy, params = float(draw.uniform(0.2, 0.9)), int(draw.integers(1, 10_000))
        ladder.learn(number, at(10, accuracy, params=params))
        if number % 4 == 0:
            ladder.learn(number, at(20, accuracy, params=params))
            ladder.learn(number, at(40, accuracy, params=params))
            ladder.learn(number, at(80, accuracy, params=params))
            ladder.end(number, is_finished=True)
        elif number % 4 == 1:
            ladder.wait(number, 10)

    taken_s = []
    for number in range(10_000, 10_050):
        start_s = time.process_time()
        report(ladder, number, at(10, float(draw.uniform(0.2, 0.9)), params=int(draw.integers(1, 10_000))))
        taken_s.append(time.process_time() - start_s)

    assert np.median(taken_s) < 0.005
