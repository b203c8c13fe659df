"""The committed reports are what their journals say, and what the sweep files beside them asked for."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.sweeps import ROOT
from tuner import sweep
from tuner.report import write_report
from tuner.sweep_file import load_sweep_file
from tuner.trial import TrialState

FILES = {"report.html", "report.md", "summary.json", "trials.csv", "front.csv", "front.png", "front.svg"}
EXAMPLES = ("example", "tool-calling")

each_example = pytest.mark.parametrize("name", EXAMPLES)


@pytest.fixture
def rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """An example's report, written anew from its journal, at the same place seen from where the command is given."""
    folder = Path("reports") / name
    monkeypatch.chdir(tmp_path)
    folder.mkdir(parents=True)
    for file in ("sweep.yaml", "study.journal"):
        shutil.copy(ROOT / folder / file, folder)
    loaded = sweep.load(folder)
    write_report(folder, loaded.config, loaded.inspection, loaded.records)
    return folder


def parts(text: str) -> tuple[list[str], list[float]]:
    """Words and numbers: processors differ in the tenth digit of what scipy makes of them."""
    pieces = re.split(r"(\d+\.\d+(?:e-?\d+)?)", text)
    return pieces[::2], [float(piece) for piece in pieces[1::2]]


@each_example
def test_the_files_are_what_the_journal_gives(rebuilt: Path, name: str) -> None:
    for file in ("trials.csv", "front.csv", "summary.json", "report.md"):
        words, numbers = parts((rebuilt / file).read_text())
        committed_words, committed_numbers = parts((ROOT / "reports" / name / file).read_text())
        assert words == committed_words, "run `tuner report`"
        assert numbers == pytest.approx(committed_numbers, rel=1e-6), "run `tuner report`"
    assert "DecompressionStream" in (rebuilt / "report.html").read_text()
    assert (rebuilt / "front.png").stat().st_size > 10_000


def test_the_example_is_the_whole_quickstart() -> None:
    loaded = sweep.load(ROOT / "reports" / "example")
    asked = load_sweep_file(ROOT / "search_spaces" / "quickstart.yaml")

    assert loaded.config == asked
    assert len(loaded.trials) == asked.search.num_trials
    scored = {record.spec.scores for record in loaded.records if record.last and record.last.held_out}
    assert {record.number for record in loaded.front} <= scored
    assert sum(record.spec.confirms is not None for record in loaded.records) == asked.confirm.top * asked.confirm.seeds


def test_the_tool_calling_report_is_the_whole_sweep_by_the_rules_of_its_day() -> None:
    loaded = sweep.load(ROOT / "reports" / "tool-calling")
    asked = load_sweep_file(ROOT / "search_spaces" / "tool-calling-smollm2.yaml")

    of_its_day = {"pruning": loaded.config.pruning, "confirm": loaded.config.confirm}
    assert loaded.config == asked.model_copy(update=of_its_day)
    assert len(loaded.trials) == asked.search.num_trials >= 12
    assert {record.state for record in loaded.records} <= {TrialState.COMPLETE, TrialState.PRUNED}


@each_example
def test_no_weights_and_no_machine_are_in_it(name: str) -> None:
    folder = ROOT / "reports" / name
    files = {path.name for path in folder.rglob("*")} - {".lock"}

    assert files == FILES | {"sweep.yaml", "study.journal"}
    assert not any("/home/" in (folder / file).read_text() for file in files - {"front.png", "report.html"})
