"""The driver around a study: checkpoints that wait for an audit, and failures in a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sweeps import write_sweep
from tuner import sweep
from tuner.errors import TooManyFailuresError
from tuner.trial import FailReason, Outcome, Result, TrialSpec, TrialState, folder_name
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.config import SweepConfig


class KeepingWorker(SyntheticWorker):
    """Leaves a checkpoint after each rung, and notes which audits found one when they began."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._folder = folder

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        assert self._folder
        self._checkpoint = self._folder / "checkpoints" / folder_name(spec.number)
        if spec.audits is not None:
            noted = self._folder.parent / "audits"
            noted.mkdir(exist_ok=True)
            (noted / f"{spec.audits}-{self._checkpoint.is_dir()}").touch()

    def advance(self) -> Result:
        self._checkpoint.mkdir(parents=True, exist_ok=True)
        return super().advance()


class FullWorker(SyntheticWorker):
    """Runs out of memory, always."""

    def advance(self) -> Result:
        return Outcome(state=TrialState.FAIL, reason=FailReason.OUT_OF_MEMORY, detail="no room")


def run(folder: Path, changes: dict[str, Any], worker: type) -> sweep.Sweep:
    file = write_sweep(folder, {"search.num_trials": 12, **changes})
    return sweep.run(file, out=folder / "out", worker=f"{__name__}:{worker.__name__}")


def test_audits_go_on_from_the_checkpoints_of_stopped_trials_and_none_are_left(tmp_path: Path) -> None:
    swept = run(tmp_path, {"pruning.method": "asha", "pruning.audit": 2}, KeepingWorker)

    audits = sorted(record.spec.audits for record in swept.records if record.spec.audits is not None)
    assert len(audits) == 2
    assert sorted(path.name for path in (tmp_path / "audits").iterdir()) == sorted(f"{of}-True" for of in audits)
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_trials_that_run_out_of_memory_one_after_another_end_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailuresError, match=r"(?s)5 trials failed one after another.*out of memory.*no room"):
        run(tmp_path, {}, FullWorker)
