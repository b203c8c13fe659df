"""Real trials that wait at rungs and go on: the result is that of a trial that was never interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.sweeps import write_sweep
from tuner import sweep
from tuner.trial import StopReason, TrialRecord, TrialState

pytestmark = pytest.mark.slow


def curves(records: tuple[TrialRecord, ...]) -> dict[int, list[object]]:
    """Number -> reports without what a clock measured."""
    return {
        record.number: [dataclasses.replace(metrics, train_s=0.0, span=None) for metrics in record.curve]
        for record in records
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[object]]:
    """The curves where no trial ever waits."""
    folder = tmp_path_factory.mktemp("straight")
    file = write_sweep(folder, {"pruning.method": "none"})
    return curves(sweep.run(file, out=folder / "out", backend="local").records)


@pytest.mark.ray
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_trials_that_waited_end_as_if_they_had_not(
    tmp_path: Path, straight: dict[int, list[object]], backend: str
) -> None:
    swept = sweep.run(write_sweep(tmp_path), out=tmp_path / "out", backend=backend)

    assert '"paused":true' in (tmp_path / "out" / "study.journal").read_text()
    assert {record.state for record in swept.records} == {TrialState.COMPLETE}
    assert curves(swept.records) == straight
    assert [folder.name for folder in (tmp_path / "out" / "checkpoints").iterdir()] == []


def test_a_budget_leaves_the_most_promising_finished_and_the_audit_goes_on_from_a_checkpoint(
    tmp_path: Path, straight: dict[int, list[object]]
) -> None:
    changes = {"search.budget": {"steps": 20}, "pruning.audit": 1}
    swept = sweep.run(write_sweep(tmp_path, changes), out=tmp_path / "out", backend="local")

    stopped = {record.number: record for record in swept.records if record.state is TrialState.PRUNED}
    (audit,) = (record for record in swept.records if record.spec.audits is not None)
    assert {record.outcome.stop for record in stopped.values() if record.outcome} == {StopReason.BUDGET}
    assert sum(record.last.steps for record in swept.records if record.last and record.spec.is_searched) <= 20
    assert curves((audit,))[audit.number][-1] == straight[audit.spec.audits or 0][-1]
    assert "What stopping early cost" in (tmp_path / "out" / "report.html").read_text()
