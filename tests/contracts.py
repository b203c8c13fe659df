"""What every backend must do, told by a sweep of a synthetic worker. Each backend's test subclasses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.sweeps import small_config, write_sweep
from tuner import sweep
from tuner.errors import TooManyFailuresError
from tuner.trial import FailReason, TrialState

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"


class BackendContract:
    """The same claims for every backend."""

    backend: ClassVar[str]

    def run(self, folder: Path, changes: dict[str, Any] | None = None, worker: str = SYNTHETIC) -> sweep.Sweep:
        file = write_sweep(folder, {"search.num_trials": 12, **(changes or {})})
        return sweep.run(file, out=folder / "out", backend=self.backend, worker=worker)

    def test_every_trial_ends_complete_or_pruned(self, tmp_path: Path) -> None:
        swept = self.run(tmp_path)

        assert len(swept.trials) == 12
        assert {record.state for record in swept.trials} == {TrialState.COMPLETE, TrialState.PRUNED}

    def test_only_finished_trials_stand_on_the_front(self, tmp_path: Path) -> None:
        swept = self.run(tmp_path)

        assert swept.front
        assert all(record.last and record.last.steps == 8 for record in swept.front)

    def test_curves_have_a_point_at_each_rung(self, tmp_path: Path) -> None:
        config = small_config(tmp_path)

        for record in self.run(tmp_path).trials:
            steps = tuple(metrics.steps for metrics in record.curve)
            assert steps == config.rungs[: len(steps)]
            assert record.state is TrialState.PRUNED or steps == config.rungs

    def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(self, tmp_path: Path) -> None:
        swept = self.run(
            tmp_path,
            {
                "search.space.learning_rate": {"choices": [0.003, 0.5]},
                "resources.max_failures_in_a_row": 12,
            },
        )

        reasons = {record.outcome.reason for record in swept.trials if record.outcome}
        assert reasons == {None, FailReason.LOSS_NOT_FINITE}
        assert len(swept.trials) == 12

    def test_failures_in_a_row_end_the_sweep_with_the_last_reason(self, tmp_path: Path) -> None:
        changes = {"search.space.learning_rate": 0.5, "resources.max_failures_in_a_row": 3}

        with pytest.raises(TooManyFailuresError, match=r"(?s)3 trials failed one after another.*synthetic divergence"):
            self.run(tmp_path, changes)

        assert (tmp_path / "out" / "report.html").is_file()

    def test_a_sweep_that_ended_early_can_be_resumed(self, tmp_path: Path) -> None:
        changes = {"search.space.learning_rate": {"choices": [0.003, 0.5]}, "resources.max_failures_in_a_row": 1}
        with pytest.raises(TooManyFailuresError):
            self.run(tmp_path, changes)
        file = tmp_path / "out" / "sweep.yaml"
        file.write_text(file.read_text().replace("max_failures_in_a_row: 1", "max_failures_in_a_row: 99"))

        resumed = sweep.resume(tmp_path / "out", worker=SYNTHETIC)

        assert len(resumed.trials) == 12
        assert TrialState.RUNNING not in {record.state for record in resumed.records}

    def test_the_same_specs_give_the_same_results_everywhere(self, tmp_path: Path) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "local").mkdir()
        changes = {"pruning.method": "none"}
        file = write_sweep(tmp_path / "local", {"search.num_trials": 12, **changes})
        expected = sweep.run(file, out=tmp_path / "local" / "out", backend="local", worker=SYNTHETIC)

        assert self.run(tmp_path / "here", changes).records == expected.records
