"""The local backend keeps the contract; handing in results means the same for all."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.builders import make_config, make_metrics, make_record
from tests.contracts import BackendContract
from tuner.backends import hand_in, worker_environment
from tuner.gpus import Gpu
from tuner.prediction import Prediction
from tuner.trial import Decision, FailReason, Interruption, Metrics, Outcome, TrialRecord, TrialSpec, TrialState


class TestLocalBackend(BackendContract):
    backend: ClassVar[str] = "local"


class NotingStudy:
    """Decides as it was told to, and notes what it was told."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.told: list[Outcome] = []
        self.is_over = True
        self.is_interrupted = False
        self.problems: list[str] = []
        self.records: tuple[TrialRecord, ...] = ()

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        return None

    def ask(self) -> TrialSpec | None:
        return None

    def report(self, number: int, metrics: Metrics) -> Decision:
        return self.decision

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        self.told.append(outcome)
        return make_record(number)

    def interrupt(self, problem: str) -> None:
        self.problems.append(problem)


@pytest.mark.parametrize(("problem", "problems"), [("", []), ("the disk is full", ["the disk is full"])])
def test_an_interrupted_trial_stays_open_and_what_is_in_the_way_stops_the_sweep(
    problem: str, problems: list[str]
) -> None:
    study = NotingStudy(Decision.CONTINUE)

    assert hand_in(study, 0, Interruption(steps=3, problem=problem)) is Decision.PAUSE
    assert study.told == []
    assert study.problems == problems


@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (Decision.CONTINUE, []),
        (Decision.PAUSE, []),
        (Decision.PRUNE, [TrialState.PRUNED]),
        (Decision.FINISH, [TrialState.COMPLETE]),
    ],
)
def test_a_result_is_reported_and_a_trial_that_is_over_is_told(decision: Decision, told: list[TrialState]) -> None:
    study = NotingStudy(decision)

    assert hand_in(study, 0, make_metrics()) is decision
    assert [outcome.state for outcome in study.told] == told


def test_a_failure_is_told_as_it_is() -> None:
    study = NotingStudy(Decision.CONTINUE)
    failure = Outcome(state=TrialState.FAIL, reason=FailReason.OUT_OF_MEMORY, detail="full")

    assert hand_in(study, 0, failure) is not Decision.CONTINUE
    assert study.told == [failure]


def test_a_worker_process_gets_as_many_threads_as_a_trial_has_cores() -> None:
    config = make_config(resources={"cpus_per_trial": 2.0})

    assert worker_environment(config)["OMP_NUM_THREADS"] == "2"
    assert worker_environment(config)["OMP_WAIT_POLICY"] == "PASSIVE"
