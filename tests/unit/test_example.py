"""The committed example report is what its journal says, and what the sweep file beside it asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.sweeps import ROOT
from tuner import sweep
from tuner.report import write_report
from tuner.sweep_file import load_sweep_file
from tuner.trial import TrialState

EXAMPLE = ROOT / "reports" / "example"


@pytest.fixture
def rebuilt(tmp_path: Path) -> Path:
    """The example's report, written anew from its journal."""
    folder = tmp_path / "example"
    folder.mkdir()
    for name in ("sweep.yaml", "study.journal"):
        shutil.copy(EXAMPLE / name, folder)
    loaded = sweep.load(folder)
    write_report(folder, loaded.config, loaded.inspection, loaded.records)
    return folder


@pytest.mark.parametrize("name", ["trials.csv", "front.csv", "summary.json"])
def test_the_tables_are_what_the_journal_gives(rebuilt: Path, name: str) -> None:
    assert (rebuilt / name).read_text() == (EXAMPLE / name).read_text()


def test_the_page_and_the_picture_are_built_from_the_journal(rebuilt: Path) -> None:
    assert "Validation exact match" in (rebuilt / "report.html").read_text()
    assert (rebuilt / "front.png").stat().st_size > 10_000


def test_it_is_the_whole_tool_calling_sweep() -> None:
    loaded = sweep.load(EXAMPLE)
    asked = load_sweep_file(ROOT / "search_spaces" / "tool-calling-smollm2.yaml")

    was_stopped_by = {"pruning": loaded.config.pruning}  # its trials were stopped by the rule of their day
    assert loaded.config == asked.model_copy(update=was_stopped_by)
    assert sum(record.spec.baseline is None for record in loaded.records) == asked.search.num_trials >= 12
    assert {record.state for record in loaded.records} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_no_weights_and_no_machine_are_in_it() -> None:
    files = {path.name for path in EXAMPLE.rglob("*")}

    expected = {"sweep.yaml", "study.journal", "report.html", "front.png", "trials.csv", "front.csv", "summary.json"}
    assert files == expected
    assert not any("/home/" in (EXAMPLE / name).read_text() for name in expected - {"front.png", "report.html"})
