"""What is done once a search is over: each thing once, from what the search found alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.builders import make_config, make_inspection, make_record, make_spec
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.beside import after_search
from tuner.front import front, objectives_of
from tuner.picking import worth_confirming
from tuner.trial import FailReason, HeldOut, Outcome, Result, TrialRecord, TrialSpec, TrialState
from tuner.worker.synthetic import SyntheticWorker

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
LADDER = tuple(
    make_record(number, accuracy=accuracy, trainable_params=size)
    for number, (accuracy, size) in enumerate([(0.70, 100), (0.80, 200), (0.845, 300), (0.85, 4_000), (0.60, 500)])
)
"""Trials 0 to 3 are the front; 4 is dominated."""


def config_for(**sections: object) -> Any:
    return make_config(objectives={"memory": False}, **sections)


def todo(records: tuple[TrialRecord, ...], **sections: object) -> list[TrialSpec]:
    """Everything in the order in which it would be given out."""
    config, done = config_for(**sections), list(records)
    while (spec := next(after_search(done, config, make_inspection()), None)) is not None:
        done.append(make_record(spec=spec))
    return [record.spec for record in done[len(records) :]]


def test_the_front_is_scored_once_and_nothing_else_is() -> None:
    assert sorted(spec.scores for spec in todo(LADDER) if spec.scores is not None) == [0, 1, 2, 3]


def test_nothing_is_scored_without_test_data() -> None:
    assert list(after_search(LADDER, config_for(), make_inspection(num_test=0))) == []


def test_numbers_go_on_below_those_that_stand_beside_the_search() -> None:
    numbers = [spec.number for spec in todo((*LADDER, make_record(spec=make_spec(-1))))]

    assert numbers == [-2, -3, -4, -5]


def test_confirmations_train_the_recommended_trials_first_from_seeds_of_their_own() -> None:
    specs = [spec for spec in todo(LADDER, confirm={"top": 2, "seeds": 3}) if spec.confirms is not None]
    recommended = worth_confirming(front(LADDER, objectives_of(config_for())), objectives_of(config_for()), 2)

    assert [spec.confirms for spec in specs] == [record.number for record in recommended] * 3
    assert [spec.seed for spec in specs] == [1, 1, 2, 2, 3, 3]
    assert {spec.lora for spec in specs} == {record.spec.lora for record in recommended}


@pytest.mark.parametrize(("num", "expected"), [(0, []), (1, [2]), (2, [2, 3]), (3, [2, 3, 1]), (9, [2, 3, 1, 0])])
def test_worth_confirming_is_what_is_recommended_and_then_the_best(num: int, expected: list[int]) -> None:
    objectives = objectives_of(config_for())

    chosen = worth_confirming(front(LADDER, objectives), objectives, num)

    assert [record.number for record in chosen] == expected


def test_a_confirmed_spec_differs_in_number_and_seed_alone() -> None:
    spec = next(spec for spec in todo(LADDER, confirm={"top": 1, "seeds": 1}) if spec.confirms is not None)

    assert dataclasses.replace(spec, number=2, seed=0, confirms=None) == LADDER[2].spec


def ran(folder: Path, **changes: object) -> sweep.Sweep:
    asked = {"search.num_trials": 12, "data.test": 500, "confirm": {"top": 2, "seeds": 2}, **changes}
    return sweep.run(write_sweep(folder, asked), out=folder / "out", worker=SYNTHETIC)


def held_out(swept: sweep.Sweep) -> dict[str, HeldOut | None]:
    return {record.spec.label: record.last.held_out for record in swept.records if record.last}


def test_only_what_stands_beside_the_search_ever_sees_the_test_data(tmp_path: Path) -> None:
    swept = ran(tmp_path, **{"baselines.head_only": [0.01], "pruning.audit": 1})

    seen = {record.spec.label for record in swept.records if record.last and record.last.held_out}
    front_labels = {f"test of trial {record.number}" for record in swept.front}
    again = {record.spec.label for record in swept.records if record.spec.confirms is not None}
    assert len(again) == 4
    assert seen == {*front_labels, *again, "baseline 1 (head only)"}


def test_no_decision_hangs_on_the_test_data(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "with").mkdir()
    without = ran(tmp_path / "without", **{"data.test": 0, "confirm.top": 0})

    swept = ran(tmp_path / "with")

    assert swept.trials == without.trials
    assert swept.front == without.front


def test_a_sweep_that_is_resumed_scores_nothing_twice(tmp_path: Path) -> None:
    swept = ran(tmp_path)

    resumed = sweep.resume(tmp_path / "out", worker=SYNTHETIC)

    assert resumed.records == swept.records
    assert all(record.state is not TrialState.RUNNING for record in resumed.records)


class Forgetful(SyntheticWorker):
    """Can't find the adapters that it is to score."""

    def advance(self) -> Result:
        if self._spec and self._spec.scores is not None:
            return Outcome(state=TrialState.FAIL, reason=FailReason.EXCEPTION, detail="FileNotFoundError: gone")
        return super().advance()


def test_a_scoring_that_failed_is_not_tried_again_by_the_same_driver_and_is_by_the_next(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"search.num_trials": 4, "data.test": 500, "resources.max_failures_in_a_row": 99})
    swept = sweep.run(file, out=tmp_path / "out", worker=f"{__name__}:Forgetful")
    failed = [record for record in swept.records if record.state is TrialState.FAIL]

    resumed = sweep.resume(tmp_path / "out", worker=SYNTHETIC)

    assert sorted(record.spec.scores or 0 for record in failed) == sorted(record.number for record in swept.front)
    assert len(resumed.records) == len(swept.records) + len(failed)
    scored = {record.spec.scores for record in resumed.records if record.last and record.last.held_out}
    assert scored == {record.number for record in swept.front}
