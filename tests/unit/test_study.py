"""The study: ask, report, tell, and what a journal brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.builders import make_metrics
from tests.sweeps import small_config
from tuner.config import SweepConfig
from tuner.errors import FolderError
from tuner.study import Study, create_study, open_study
from tuner.trial import Decision, FailReason, Inspection, MemoryKind, Metrics, Outcome, TrialSpec, TrialState

INSPECTION = Inspection(problems=(), data_fingerprint="abc", num_validation=40, labels=("a", "b"))


def begin(folder: Path, changes: dict[str, Any] | None = None) -> tuple[Study, SweepConfig]:
    config = small_config(folder, changes)
    return create_study(folder / "study.journal", config, INSPECTION), config


def reopened(folder: Path, config: SweepConfig) -> Study:
    return open_study(folder / "study.journal", config)


def asked(study: Study) -> TrialSpec:
    spec = study.ask()
    assert spec is not None
    return spec


def finish(study: Study, *, accuracy: float = 0.5, memory_kind: MemoryKind = MemoryKind.CPU_ALLOCATED) -> TrialSpec:
    spec = asked(study)
    study.report(spec.number, make_metrics(steps=8, accuracy=accuracy, memory_kind=memory_kind))
    study.tell(spec.number, Outcome(state=TrialState.COMPLETE))
    return spec


def all_specs(study: Study) -> list[TrialSpec]:
    return list(iter(study.ask, None))


def test_gives_out_as_many_trials_as_the_file_says(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"search.num_trials": 3})

    assert [spec.number for spec in all_specs(study)] == [0, 1, 2]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_gives_the_same_specs(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, _ = begin(tmp_path / "one", {"search.sampler": sampler})
    two, _ = begin(tmp_path / "two", {"search.sampler": sampler})

    assert all_specs(one) == all_specs(two)


def test_another_seed_gives_other_specs(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, _ = begin(tmp_path / "one", {"search.seed": 1})
    two, _ = begin(tmp_path / "two", {"search.seed": 2})

    assert all_specs(one) != all_specs(two)


def test_a_reopened_study_draws_the_points_that_an_uninterrupted_one_would(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, _ = begin(tmp_path / "whole", {"search.sampler": "tpe"})
    cut, config = begin(tmp_path / "cut", {"search.sampler": "tpe"})

    expected = [finish(whole) for _ in range(4)]
    got = [finish(cut), finish(cut)]
    again = reopened(tmp_path / "cut", config)
    got += [finish(again), finish(again)]

    assert got == expected


def test_a_reopened_study_gives_out_unfinished_trials_first(tmp_path: Path) -> None:
    study, config = begin(tmp_path)
    finish(study)
    running = asked(study)
    study.report(running.number, make_metrics(steps=2))

    again = reopened(tmp_path, config)

    assert asked(again) == running
    assert asked(again).number == 2


def test_a_reopened_study_knows_all_that_was_reported_and_told(tmp_path: Path) -> None:
    study, config = begin(tmp_path)
    finish(study)
    pruned, failed = asked(study), asked(study)
    study.report(pruned.number, make_metrics(steps=2))
    study.tell(pruned.number, Outcome(state=TrialState.PRUNED))
    study.tell(failed.number, Outcome(state=TrialState.FAIL, reason=FailReason.OUT_OF_MEMORY, detail="card full"))

    again = reopened(tmp_path, config)

    assert again.records == study.records
    assert again.inspection == INSPECTION


def test_a_repeated_report_is_kept_once(tmp_path: Path) -> None:
    study, _ = begin(tmp_path)
    spec = asked(study)

    study.report(spec.number, make_metrics(steps=2, accuracy=0.4))
    study.report(spec.number, make_metrics(steps=2, accuracy=0.4))

    assert [metrics.steps for metrics in study.records[0].curve] == [2]


def test_the_last_rung_finishes_a_trial_however_bad_it_is(tmp_path: Path) -> None:
    study, _ = begin(tmp_path)
    finish(study, accuracy=0.9)
    spec = asked(study)

    assert study.report(spec.number, make_metrics(steps=8, accuracy=0.1)) is Decision.FINISH


def test_a_dominated_trial_is_pruned_at_its_rung(tmp_path: Path) -> None:
    study, _ = begin(tmp_path)
    good, bad = asked(study), asked(study)
    cost: dict[str, Any] = {"steps": 2, "trainable_params": 10, "peak_memory_bytes": 10, "num_validation": 400}

    assert study.report(good.number, make_metrics(accuracy=0.8, loss=0.2, **cost)) is Decision.CONTINUE
    assert study.report(bad.number, make_metrics(accuracy=0.2, loss=0.8, **cost)) is Decision.PRUNE


def test_the_journal_holds_the_states_and_values_that_optuna_understands(tmp_path: Path) -> None:
    study, config = begin(tmp_path)
    finish(study, accuracy=0.75)
    study.tell(asked(study).number, Outcome(state=TrialState.PRUNED))
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )

    trials = optuna.load_study(storage=storage, study_name=config.name).get_trials()

    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED"]
    assert trials[0].values[0] == 0.75
    assert len(trials[0].values) == 3


def test_a_trial_whose_memory_was_measured_otherwise_fails_and_never_meets_the_front(tmp_path: Path) -> None:
    study, _ = begin(tmp_path)
    finish(study)

    finish(study, memory_kind=MemoryKind.CUDA_ALLOCATED)

    outcome = study.records[1].outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason) == (TrialState.FAIL, FailReason.MEMORY_KIND)


def test_opening_something_that_is_no_journal_says_so(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    (tmp_path / "study.journal").write_text("")

    with pytest.raises(FolderError, match=r"study.journal holds no study named 'small'"):
        reopened(tmp_path, config)


def test_metrics_survive_the_journal_exactly(tmp_path: Path) -> None:
    study, config = begin(tmp_path)
    spec = asked(study)
    exact: Metrics = make_metrics(steps=2, accuracy=1 / 3, loss=2 / 7)

    study.report(spec.number, exact)

    assert reopened(tmp_path, config).records[0].curve == (exact,)
