"""Which of the study's trials are at work where, and what becomes of them when a worker is lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from tests.builders import make_spec
from tuner.backends.ray_trials import Trials
from tuner.backends.ray_tune import _StudySearcher
from tuner.resources_config import ResourcesConfig
from tuner.trial import FailReason, Outcome, TrialSpec


class FakeStudy:
    """Gives out so many trials, and is over after that."""

    def __init__(self, num: int) -> None:
        self.left = [make_spec(number) for number in range(num)]
        self.told: dict[int, Outcome] = {}
        self.is_interrupted = False

    @property
    def is_over(self) -> bool:
        return not self.left

    def ask(self) -> TrialSpec | None:
        return self.left.pop(0) if self.left else None

    def tell(self, number: int, outcome: Outcome) -> None:
        self.told[number] = outcome


def trials_of(num: int, **resources: Any) -> tuple[Trials, FakeStudy]:
    study: Any = FakeStudy(num)
    return Trials(study, ResourcesConfig(**{"max_worker_restarts": 1, **resources})), study


def lost(trial_id: str, status: str) -> Any:
    return SimpleNamespace(trial_id=trial_id, status=status, error_file=None)


def test_a_worker_gets_as_many_as_it_has_room_for_and_the_sweep_allows() -> None:
    trials, _ = trials_of(9, max_concurrent_trials=5)

    assert list(trials.new_team("a", 3)) == [0, 1, 2]
    assert list(trials.new_team("b", 3)) == [3, 4]
    del trials.teams["a"][1]
    assert [spec.number for spec in trials.fill("a", 2)] == [5]


def test_where_there_is_nothing_nothing_is_kept() -> None:
    trials, _ = trials_of(0)

    assert trials.new_team("a", 4) == {}
    assert trials.teams == {}


def test_a_trial_whose_worker_dies_while_it_takes_it_on_goes_to_another_as_often_as_allowed() -> None:
    trials, study = trials_of(1)
    trials.new_team("a", 1)

    trials.lost(lost("a", Trial.PENDING))
    trials.ended("a", is_lost=True)
    assert list(trials.new_team("b", 1)) == [0]
    trials.lost(lost("b", Trial.PENDING))
    trials.ended("b", is_lost=True)

    assert study.told[0].reason is FailReason.WORKER_LOST


def test_trials_that_were_lost_together_are_tried_again_each_alone() -> None:
    trials, study = trials_of(4)
    trials.new_team("a", 2)

    trials.lost(lost("a", Trial.RUNNING))
    trials.ended("a", is_lost=True)

    assert [list(trials.new_team(name, 2)) for name in "bcd"] == [[0], [1], [2, 3]]
    assert study.told == {}


def test_a_trial_that_goes_on_by_itself_is_given_to_nobody_else() -> None:
    trials, _ = trials_of(1)
    trials.new_team("a", 1)

    trials.lost(lost("a", Trial.ERROR))  # what Tune calls a trial that it restarts

    assert trials.again == []


def test_ray_is_not_told_that_the_search_is_over_while_trials_are_out() -> None:
    trials, study = trials_of(1)
    placement: Any = SimpleNamespace(may_ask=lambda: True, asked=lambda *_: None, ended=lambda _: None)
    searcher = _StudySearcher(study, trials, placement, 1)  # type: ignore[arg-type]
    searcher.set_search_properties(None, None, {})
    searcher.suggest("a")

    assert study.is_over
    assert searcher.suggest("b") is None
    searcher.on_trial_complete("a")
    assert searcher.suggest("c") == Searcher.FINISHED
