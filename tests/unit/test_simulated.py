"""Whole sweeps on a simulated clock: what the rule does from the first trial to the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sweeps import small_config
from tuner.backends.simulated import SimulatedBackend
from tuner.config import SweepConfig
from tuner.front import front, objectives_of
from tuner.study import Study, create_study, open_study
from tuner.trial import FailReason, Metrics, Outcome, Result, StopReason, TrialRecord, TrialState
from tuner.worker.synthetic import SyntheticWorker

LONG = {"training.max_steps": 64, "pruning.min_steps": 4, "search.num_trials": 30, "data.test": 0}


def simulated(
    folder: Path, changes: dict[str, Any] | None = None, *, num_workers: int = 4
) -> tuple[Study, SweepConfig]:
    config = small_config(folder, {**LONG, **(changes or {})})
    backend = SimulatedBackend(SyntheticWorker, num_workers)
    study = create_study(folder / "study.journal", config, backend.inspect(config))
    backend.run(config, folder, study)
    return study, config


def steps_of(study: Study) -> int:
    return sum(record.last.steps for record in study.records if record.last and record.spec.is_searched)


def states_of(study: Study) -> set[TrialState]:
    return {record.state for record in study.records}


def test_workers_side_by_side_take_less_time_than_one_and_do_the_same_work(tmp_path: Path) -> None:
    config = small_config(tmp_path, {**LONG, "pruning.method": "none"})
    clocks = {}
    for num_workers in (1, 3):
        backend = SimulatedBackend(SyntheticWorker, num_workers)
        study = create_study(tmp_path / f"{num_workers}.journal", config, backend.inspect(config))
        backend.run(config, tmp_path, study)
        clocks[num_workers] = backend.now_s
        assert states_of(study) == {TrialState.COMPLETE}

    assert clocks[1] == pytest.approx(30 * 0.64)
    assert clocks[3] == pytest.approx(10 * 0.64)


@pytest.mark.parametrize("method", ["pareto", "asha", "median", "none"])
def test_every_trial_ends(tmp_path: Path, method: str) -> None:
    study, config = simulated(tmp_path, {"pruning.method": method})

    assert len(study.records) == 30
    assert states_of(study) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert study.is_over
    assert open_study(tmp_path / "study.journal", config).records == study.records


def leads_beyond_noise(other: Metrics, candidate: Metrics) -> bool:
    error = np.hypot(other.standard_error, candidate.standard_error)
    costs_no_more = (
        other.trainable_params <= candidate.trainable_params and other.peak_memory_bytes <= candidate.peak_memory_bytes
    )
    return bool(costs_no_more and other.accuracy - candidate.accuracy > error)


@pytest.mark.parametrize("seed", range(5))
def test_nobody_who_is_not_dominated_beyond_the_noise_is_stopped_while_budget_remains(
    tmp_path: Path, seed: int
) -> None:
    study, _ = simulated(tmp_path, {"search.seed": seed})

    for stopped in (record for record in study.records if record.state is TrialState.PRUNED):
        assert stopped.last is not None
        at_rung = [metrics for other in study.records for metrics in other.curve if metrics.steps == stopped.last.steps]
        assert any(leads_beyond_noise(other, stopped.last) for other in at_rung)
        assert stopped.outcome is not None
        assert stopped.outcome.stop in {StopReason.DOMINATED, StopReason.BELOW_FLOOR}


def test_stopping_early_keeps_the_front_that_training_everything_finds(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "ours").mkdir()
    everything, config = simulated(tmp_path / "all", {"pruning.method": "none"})
    ours, _ = simulated(tmp_path / "ours")

    wanted = {record.spec.params for record in front(everything.records, objectives_of(config))}
    got = {record.spec.params for record in front(ours.records, objectives_of(config))}
    assert len(wanted & got) >= 0.9 * len(wanted)
    assert steps_of(ours) < steps_of(everything)


def test_the_first_trials_do_not_run_to_the_end_just_because_they_came_first(tmp_path: Path) -> None:
    order: list[tuple[int, int]] = []

    class Noting(SyntheticWorker):
        def advance(self) -> Result:
            result = super().advance()
            if isinstance(result, Metrics) and self._spec is not None:
                order.append((self._spec.number, result.steps))
            return result

    config = small_config(tmp_path, LONG)
    backend = SimulatedBackend(Noting, 4)
    backend.run(config, tmp_path, create_study(tmp_path / "study.journal", config, backend.inspect(config)))

    begun_before_any_finish = {number for number, _ in order[: [steps for _, steps in order].index(64)]}
    assert len(begun_before_any_finish) >= 8


@pytest.mark.parametrize("method", ["pareto", "none"])
def test_a_budget_in_steps_is_kept_and_used_and_everything_begun_is_finished_or_stopped(
    tmp_path: Path, method: str
) -> None:
    study, _ = simulated(tmp_path, {"search.budget": {"steps": 640}, "pruning.method": method})

    assert 640 - 64 < steps_of(study) <= 640
    assert states_of(study) <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert TrialState.COMPLETE in states_of(study)


def test_what_a_budget_leaves_unfinished_says_so(tmp_path: Path) -> None:
    study, _ = simulated(tmp_path, {"search.budget": {"steps": 300}})

    stops = {record.outcome.stop for record in study.records if record.outcome and record.outcome.stop}
    assert StopReason.BUDGET in stops


def test_a_budget_in_seconds_ends_the_sweep_by_its_pace(tmp_path: Path) -> None:
    config = small_config(tmp_path, {**LONG, "search.budget": {"time_s": 2.0}})
    backend = SimulatedBackend(SyntheticWorker, 4)
    create_study(tmp_path / "study.journal", config, backend.inspect(config))
    study = open_study(tmp_path / "study.journal", config, clock=lambda: backend.now_s)

    backend.run(config, tmp_path, study)

    assert 1.5 < backend.now_s < 2.7
    assert TrialState.COMPLETE in states_of(study)


def test_an_audit_finishes_a_sample_of_the_stopped_and_keeps_it_apart(tmp_path: Path) -> None:
    study, config = simulated(tmp_path, {"pruning.audit": 3})

    audits = [record for record in study.records if record.spec.audits is not None]
    stopped = {record.number: record for record in study.records if record.state is TrialState.PRUNED}
    assert len(audits) == 3
    assert {audit.spec.audits for audit in audits} <= stopped.keys()
    assert all(audit.state is TrialState.COMPLETE and audit.last and audit.last.steps == 64 for audit in audits)
    assert not {audit.number for audit in audits} & {
        record.number for record in front(study.records, objectives_of(config))
    }


def test_a_trial_that_turns_out_too_large_is_infeasible_and_the_sampler_is_told(tmp_path: Path) -> None:
    limit = (100 * 2**20 + 2**16 * 13) / 2**30
    study, _ = simulated(tmp_path, {"resources.memory_limit_gib": limit})

    by_state: dict[TrialState, list[TrialRecord]] = {state: [] for state in TrialState}
    for record in study.records:
        by_state[record.state].append(record)
    assert by_state[TrialState.INFEASIBLE]
    assert by_state[TrialState.COMPLETE]
    assert all(record.last is None or record.last.steps == 4 for record in by_state[TrialState.INFEASIBLE])
    frozen = study._journal._search.get_trials(deepcopy=False)
    excess = {trial.number: sum(trial.constraints.values()) for trial in frozen}
    assert all(excess[record.number] > 0 for record in by_state[TrialState.INFEASIBLE])
    assert all(excess[record.number] == 0 for record in by_state[TrialState.COMPLETE])


class FullWorker(SyntheticWorker):
    """Runs out of memory in trials with all modules."""

    def advance(self) -> Result:
        if self._spec is not None and dict(self._spec.params).get("target_modules") == "all":
            return Outcome(state=TrialState.FAIL, reason=FailReason.OUT_OF_MEMORY, detail="full")
        return super().advance()


def test_running_out_of_memory_is_infeasible_and_the_others_go_on(tmp_path: Path) -> None:
    config = small_config(tmp_path, LONG)
    backend = SimulatedBackend(FullWorker, 4)
    study = create_study(tmp_path / "study.journal", config, backend.inspect(config))

    backend.run(config, tmp_path, study)

    ended = {record.number: record.state for record in study.records}
    assert set(ended.values()) == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.INFEASIBLE}
    assert all(
        (ended[record.number] is TrialState.INFEASIBLE) == (dict(record.spec.params)["target_modules"] == "all")
        for record in study.records
    )


def test_a_study_that_is_reopened_in_the_middle_ends_with_all_trials_told(tmp_path: Path) -> None:
    config = small_config(tmp_path, LONG)
    backend = SimulatedBackend(SyntheticWorker, 1)
    study = create_study(tmp_path / "study.journal", config, backend.inspect(config))

    class Killed(Exception):  # noqa: N818
        """The driver is gone."""

    class Dying(SyntheticWorker):
        rungs = 0

        def advance(self) -> Result:
            Dying.rungs += 1
            if Dying.rungs == 25:
                raise Killed
            return super().advance()

    with pytest.raises(Killed):
        SimulatedBackend(Dying, 1).run(config, tmp_path, study)
    resumed = open_study(tmp_path / "study.journal", config)
    SimulatedBackend(SyntheticWorker, 1).run(config, tmp_path, resumed)
    (tmp_path / "whole").mkdir()
    whole, _ = simulated(tmp_path / "whole", num_workers=1)

    assert resumed.records == whole.records
