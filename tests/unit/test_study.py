"""The study: ask, report, tell, and what a journal brings back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.builders import make_inspection, make_metrics
from tests.sweeps import small_config
from tuner.config import SweepConfig
from tuner.errors import FolderError
from tuner.study import Study, create_study, open_study
from tuner.trial import Baseline, Decision, FailReason, MemoryKind, Metrics, Outcome, StopReason, TrialSpec, TrialState

INSPECTION = make_inspection()
BASELINES = {"baselines": {"head_only": [0.01], "full": [1e-05]}}
START = {"search.start": "recommended"}
COST: dict[str, Any] = {"trainable_params": 10, "peak_memory_bytes": 10, "num_validation": 400}


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


def climb(study: Study, *, accuracy: float) -> TrialSpec:
    """A trial that reports the same at every rung and is let go on, whatever the study says."""
    spec = asked(study)
    for steps in (2, 4, 8):
        study.report(spec.number, make_metrics(steps=steps, accuracy=accuracy, loss=1 - accuracy, **COST))
    study.tell(spec.number, Outcome(state=TrialState.COMPLETE))
    return spec


def in_journal(folder: Path, name: str) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name=name)


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
    study, config = begin(tmp_path, {"pruning.method": "none"})
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
    study, _ = begin(tmp_path, {"search.num_trials": 12})
    for place in range(8):
        climb(study, accuracy=0.8 - place / 100)

    bad = asked(study)

    assert study.report(bad.number, make_metrics(steps=2, accuracy=0.2, loss=0.8, **COST)) is Decision.PRUNE
    assert study.tell(bad.number, Outcome(state=TrialState.PRUNED)).outcome == Outcome(
        state=TrialState.PRUNED, stop=StopReason.DOMINATED, detail="trial 0 costs no more and leads by 0.6 ± 0.028"
    )


def test_the_journal_holds_the_states_and_values_that_optuna_understands(tmp_path: Path) -> None:
    study, config = begin(tmp_path)
    finish(study, accuracy=0.75)
    study.tell(asked(study).number, Outcome(state=TrialState.PRUNED))

    trials = in_journal(tmp_path, config.name).get_trials()

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


def test_the_recommended_point_is_tried_first(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, START)

    first = asked(study)

    assert first.number == 0
    assert dict(first.params) == {
        "r": 1,
        "lora_dropout": 0.05,
        "learning_rate": 0.0018,
        "target_modules": "all",
        "rank_pattern.intermediate.dense": 1,
    }
    assert first.learning_rate == 0.0018
    assert first.lora
    assert first.lora.target_modules == ("query", "value", "intermediate.dense")


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_trials_after_the_starting_points_are_sampled_as_without_them(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, _ = begin(tmp_path / "one", {"search.sampler": sampler, **START})
    two, _ = begin(tmp_path / "two", {"search.sampler": sampler})

    started, plain = all_specs(one), all_specs(two)

    assert started[0] != plain[0]
    assert started[1:] == plain[1:]


def test_starting_points_count_as_trials(tmp_path: Path) -> None:
    pattern = {"query": {"choices": [1, 2, 4, 8]}, "key": {"choices": [1, 2, 4]}}
    space = {"search.space.target_modules": "all-linear", "search.space.rank_pattern": pattern}
    study, config = begin(tmp_path, {"search.num_trials": 1, **space, **START})

    assert [spec.number for spec in all_specs(study)] == [0]
    assert len(in_journal(tmp_path, config.name).get_trials()) == 1


def test_starting_points_still_wait_when_a_study_is_reopened(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, _ = begin(tmp_path / "whole", START)
    _, config = begin(tmp_path / "cut", START)

    assert all_specs(reopened(tmp_path / "cut", config)) == all_specs(whole)


def test_a_resumed_study_does_not_try_its_starting_points_again(tmp_path: Path) -> None:
    study, config = begin(tmp_path, START)
    finish(study)

    again = all_specs(reopened(tmp_path, config))

    assert [spec.number for spec in again] == [1, 2, 3]
    assert study.records[0].spec.params not in [spec.params for spec in again]


def test_baselines_come_first_and_take_nothing_from_the_trials(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"search.num_trials": 2, **BASELINES})

    specs = all_specs(study)

    assert [(spec.number, spec.baseline) for spec in specs] == [
        (-1, Baseline.HEAD_ONLY),
        (-2, Baseline.FULL),
        (0, None),
        (1, None),
    ]


def test_baselines_are_last_in_the_records(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"search.num_trials": 3, **BASELINES})

    all_specs(study)

    assert [record.number for record in study.records] == [0, 1, 2, -1, -2]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_sampler_does_not_see_the_baselines(tmp_path: Path, sampler: str) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_them, _ = begin(tmp_path / "with", {"search.sampler": sampler, **BASELINES})
    without, _ = begin(tmp_path / "without", {"search.sampler": sampler})
    for _ in BASELINES["baselines"]:
        finish(with_them, accuracy=0.99)

    assert [finish(with_them) for _ in range(4)] == [finish(without) for _ in range(4)]


def test_a_baseline_is_never_pruned_and_finishes_at_the_last_step(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"baselines": {"full": [1e-05]}})
    baseline, trial = asked(study), asked(study)
    study.report(trial.number, make_metrics(steps=2, accuracy=0.9, loss=0.1, **COST))

    assert study.report(baseline.number, make_metrics(steps=2, accuracy=0.1, loss=2.0, **COST)) is Decision.CONTINUE
    assert study.report(baseline.number, make_metrics(steps=8, accuracy=0.1, loss=2.0, **COST)) is Decision.FINISH


def test_no_trial_is_compared_with_a_baseline(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"baselines": {"full": [1e-05]}})
    baseline, trial = asked(study), asked(study)
    study.report(baseline.number, make_metrics(steps=2, accuracy=0.9, loss=0.1, **COST))

    assert study.report(trial.number, make_metrics(steps=2, accuracy=0.1, loss=2.0, **COST)) is Decision.PAUSE


def test_a_model_as_it_is_has_finished_with_its_first_report(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"training.task": "causal-lm", "baselines": {"zero_shot": True}})
    spec = asked(study)

    decision = study.report(spec.number, make_metrics(steps=0))
    study.tell(spec.number, Outcome(state=TrialState.COMPLETE))

    assert spec.baseline is Baseline.ZERO_SHOT
    assert decision is Decision.FINISH
    assert study.records[0].state is TrialState.COMPLETE


def test_the_baseline_without_quantization_is_the_recommended_point(tmp_path: Path) -> None:
    study, _ = begin(tmp_path, {"baselines": {"unquantized_lora": True}, **START})

    baseline, first = asked(study), asked(study)

    assert (baseline.number, first.number) == (-1, 0)
    assert baseline.lora == first.lora
    assert baseline.learning_rate == first.learning_rate
    assert baseline.params == first.params


def test_baselines_survive_the_journal(tmp_path: Path) -> None:
    study, config = begin(tmp_path, BASELINES)
    finish(study)
    finish(study, accuracy=0.75)
    finish(study)

    again = reopened(tmp_path, config)

    assert again.records == study.records
    assert [record.state for record in again.records] == [TrialState.COMPLETE] * 3


def test_a_resumed_study_asks_only_for_the_baselines_that_are_left(tmp_path: Path) -> None:
    study, config = begin(tmp_path, BASELINES)
    finish(study)

    assert [spec.number for spec in all_specs(reopened(tmp_path, config))] == [-2, 0, 1, 2, 3]


def test_a_resumed_study_goes_on_with_a_baseline_that_was_running(tmp_path: Path) -> None:
    study, config = begin(tmp_path, BASELINES)
    running = asked(study)
    study.report(running.number, make_metrics(steps=2))

    again = reopened(tmp_path, config)

    assert finish(again) == running
    assert [metrics.steps for metrics in again.records[0].curve] == [2, 8]


def test_a_driver_killed_while_it_asked_for_a_baseline_loses_nothing(tmp_path: Path) -> None:
    _, config = begin(tmp_path, BASELINES)
    in_journal(tmp_path, f"{config.name} baselines").ask()  # asked, and nothing written yet

    again = reopened(tmp_path, config)
    finish(again, accuracy=0.25)
    finish(again, accuracy=0.75)

    assert [record.number for record in again.records] == [-1, -2]
    trials = in_journal(tmp_path, f"{config.name} baselines").get_trials()
    assert [trial.values[0] for trial in trials if trial.values] == [0.25, 0.75]


def test_a_starting_point_that_a_killed_driver_had_taken_is_asked_again(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"search.start": "recommended"})
    study = create_study(tmp_path / "study.journal", config, make_inspection())
    study._journal.begin()
    taken = in_journal(tmp_path, config.name).get_trials()[0].system_attrs["fixed_params"]

    resumed = open_study(tmp_path / "study.journal", config)
    first = resumed.ask()

    assert first is not None
    assert dict(first.params).items() >= taken.items()
    states = [trial.state for trial in in_journal(tmp_path, config.name).get_trials()]
    assert states.count(optuna.trial.TrialState.RUNNING) == 1


def test_reading_a_study_changes_nothing_in_it(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"search.start": "recommended"})
    study = create_study(tmp_path / "study.journal", config, make_inspection())
    study._journal.begin()
    before = (tmp_path / "study.journal").read_bytes()

    assert open_study(tmp_path / "study.journal", config).records == ()
    assert (tmp_path / "study.journal").read_bytes() == before
