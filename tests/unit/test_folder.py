"""A sweep's folder: free or taken, locked, adapters kept for the front alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_record, make_spec
from tuner.errors import FolderError
from tuner.folder import SweepFolder
from tuner.front import Objective
from tuner.trial import Baseline, TrialRecord, TrialState

OBJECTIVES = (Objective.ACCURACY, Objective.TRAINABLE_PARAMS)


def trained(folder: SweepFolder, number: int) -> None:
    adapter = folder.checkpoint(number) / "step-000120" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")


def test_a_new_folder_is_free_and_nothing_is_made_by_asking(tmp_path: Path) -> None:
    SweepFolder(tmp_path / "a" / "b").require_free()

    assert not (tmp_path / "a").exists()


def test_a_folder_with_a_sweep_is_refused_with_the_way_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()
    (tmp_path / "study.journal").touch()

    with pytest.raises(FolderError, match=f"tuner resume {tmp_path}"):
        SweepFolder(tmp_path).require_free()


def test_a_folder_with_the_mere_beginning_of_a_sweep_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()

    with pytest.raises(FolderError, match="killed before its first trial; remove the folder"):
        SweepFolder(tmp_path).require_free()


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(FolderError, match="no empty folder"):
        SweepFolder(tmp_path).require_free()


def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(FolderError, match="can't be written"):
        SweepFolder(Path("/proc/sweep")).require_free()


def test_a_folder_without_a_journal_is_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()

    with pytest.raises(FolderError, match=r"no study.journal"):
        SweepFolder(tmp_path).require_sweep()


def test_one_driver_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)

    with folder.locked(), pytest.raises(FolderError, match="in use by another"), folder.locked():
        pass
    with folder.locked():
        pass


def test_the_adapter_of_a_trial_on_the_front_is_kept_and_its_checkpoint_goes(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, 0)

    folder.settle([make_record(0)], OBJECTIVES)

    assert (folder.adapter(0) / "adapter_config.json").is_file()
    assert not folder.checkpoint(0).exists()


def test_an_adapter_goes_when_a_better_trial_pushes_it_off_the_front(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    worse, better = make_record(0, accuracy=0.7), make_record(1, accuracy=0.8)
    for records in ([worse], [worse, better]):
        trained(folder, records[-1].number)
        folder.settle(records, OBJECTIVES)

    assert not folder.adapter(0).exists()
    assert folder.adapter(1).exists()


def test_with_the_front_before_only_what_has_ended_since_is_told(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    best: tuple[TrialRecord, ...] = ()
    records = [make_record(number, accuracy=value) for number, value in enumerate((0.7, 0.8, 0.6))]
    for record in records:
        trained(folder, record.number)
        best = folder.settle([record], OBJECTIVES, best=best)

    assert best == (records[1],)
    assert [folder.adapter(number).exists() for number in range(3)] == [False, True, False]
    assert not any(folder.checkpoint(number).exists() for number in range(3))


def test_nothing_of_a_finished_baseline_stays(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, -1)
    spec = make_spec(-1, lora=None, baseline=Baseline.FULL)

    folder.settle([make_record(0), make_record(-1, spec=spec, accuracy=0.99)], OBJECTIVES)

    assert folder.checkpoint(-1).name == "beside-0001"
    assert not folder.checkpoint(-1).exists()
    assert not folder.adapter(-1).exists()


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.INFEASIBLE, TrialState.FAIL])
def test_nothing_of_a_stopped_trial_stays(tmp_path: Path, state: TrialState) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, 0)

    folder.settle([make_record(0, state)], OBJECTIVES)

    assert not folder.checkpoint(0).exists()
    assert not folder.adapter(0).exists()


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PAUSED])
def test_the_checkpoint_of_a_trial_that_may_go_on_stays(tmp_path: Path, state: TrialState) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, 0)

    folder.settle([make_record(0, state, outcome=None)], OBJECTIVES)

    assert folder.checkpoint(0).exists()


def test_checkpoints_of_stopped_trials_stay_for_an_audit_and_go_at_the_end(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    records = [make_record(0, TrialState.PRUNED), make_record(1, TrialState.INFEASIBLE), make_record(2, accuracy=0.1)]
    for record in [*records, make_record(3)]:
        trained(folder, record.number)

    folder.settle([*records, make_record(3)], OBJECTIVES, keep_stopped=True)
    kept = [folder.checkpoint(number).exists() for number in range(4)]
    folder.settle([*records, make_record(3)], OBJECTIVES)

    assert kept == [True, False, False, False]
    assert not folder.checkpoint(0).exists()


def test_an_audit_goes_on_from_the_checkpoint_of_the_stopped_trial(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, 7)
    for _ in range(2):  # a driver that was killed may hand over again
        folder.hand_over(7, -1)

    assert not folder.checkpoint(7).exists()
    assert (folder.checkpoint(-1) / "step-000120" / "adapter").is_dir()


def test_an_audit_begins_anew_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)

    folder.hand_over(7, -1)

    assert not folder.checkpoint(-1).exists()


def test_nothing_of_an_ended_audit_stays_however_good_it_is(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, -1)
    audit = make_record(-1, spec=make_spec(-1, audits=0), accuracy=0.99)

    folder.settle([make_record(0, TrialState.PRUNED), audit], OBJECTIVES, keep_stopped=True)

    assert not folder.checkpoint(-1).exists()
    assert not folder.adapter(-1).exists()


def test_settling_twice_changes_nothing(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    trained(folder, 0)
    for _ in range(2):
        folder.settle([make_record(0)], OBJECTIVES)

    assert [path.name for path in folder.adapter(0).iterdir()] == ["adapter_config.json"]


def test_a_sweep_whose_trials_are_in_a_database_has_no_journal_and_is_one_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("name: x\nstudy:\n  storage: postgresql://me@host/db\n")
    folder = SweepFolder(tmp_path)

    folder.require_sweep()

    with pytest.raises(FolderError, match=f"tuner resume {tmp_path}"):
        folder.require_free()
    assert folder.identity() == b"name: x  storage: postgresql://me@host/db"
