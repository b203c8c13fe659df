"""Hostile names, paths, classes and errors: nothing is written outside of the folder, nothing runs where it is shown."""

from __future__ import annotations

import ast
import csv
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.builders import make_config, make_inspection, make_record, make_spec
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.config import SweepConfig
from tuner.errors import ConfigError, FolderError
from tuner.exporting import export
from tuner.exporting.card import inference_code, model_card
from tuner.forms import Checked, Form, Request
from tuner.report import write_report
from tuner.sweep import Sweep
from tuner.sweep_file import load_sweep_file
from tuner.trial import Inspection, Outcome, TrialRecord, TrialState

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
HOSTILE = (
    SCRIPT,
    "=cmd|'/C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "../../up",
    "a\nb: c",
    "`x` **b** [l](javascript:x)",
    "---\nx: 1",
)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        ".",
        ".hidden",
        "/tmp/x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a b",
        "-rf",
        "",
        " ",
        "x" * 101,
        "é",
        "CON",
        "nul.txt",
        "com1",
        "LPT9.log",
        "x.",
        "~root",
        "$HOME",
        "a:b",
        "a\u202eb",
    ],
    ids=ascii,
)
def test_a_name_that_is_no_plain_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"name: must"):
        load_sweep_file(write_sweep(tmp_path, {"name": name}))


@pytest.mark.parametrize("name", ["a", "x" * 100, "a..b", "1.0_b-c", "console", "com10"])
def test_a_plain_name_will_do(tmp_path: Path, name: str) -> None:
    assert load_sweep_file(write_sweep(tmp_path, {"name": name})).name == name


@pytest.mark.parametrize("key", ["model.name", "model.config", "data.path"])
@pytest.mark.parametrize(
    "path", ["./a\0b", f"./{'x' * 256}", f"./{'é' * 128}", "./" + "x/" * 1600], ids=lambda path: ascii(path)[:9]
)
def test_a_path_that_no_file_system_takes_is_refused(tmp_path: Path, key: str, path: str) -> None:
    with pytest.raises(
        ConfigError, match=f"{key}: must have no NUL in it, at most 255 bytes between slashes and 3000 in all"
    ):
        load_sweep_file(write_sweep(tmp_path, {key: path}))


@pytest.mark.parametrize(
    "name",
    ["/etc", "./rows", "../rows", "a/b/c", "org/..", "-x", "file:///etc", "https://h/x", "a\0b", "a b"],
    ids=ascii,
)
def test_a_data_set_on_the_hub_can_not_name_a_folder_here(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.name: must be the id of a data set on the hub"):
        load_sweep_file(write_sweep(tmp_path, {"data.path": None, "data.name": name}))


def test_an_out_that_no_file_system_takes_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="File name too long"):
        sweep.run(write_sweep(tmp_path), out=tmp_path / ("x" * 300), worker=SYNTHETIC)


def hostile_changes() -> dict[str, Any]:
    return {
        "search.space.target_modules": {"choices": {name: ["query"] for name in HOSTILE}},
        "search.space.rank_pattern": None,
        "search.num_trials": 9,
        "data.label": SCRIPT,
        "data.separator": "../../x",
    }


def test_a_sweep_with_hostile_names_writes_in_its_folder_alone(tmp_path: Path) -> None:
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    file = write_sweep(inner, hostile_changes())

    swept = sweep.run(file, out=inner / "out", worker=SYNTHETIC)

    outside = {path for path in tmp_path.rglob("*") if inner / "out" not in (path, *path.parents)}
    assert outside == {file, inner, inner.parent}
    assert {path.name for path in (inner / "out").iterdir() if path.is_dir()} <= {"adapters", "checkpoints", "logs"}
    assert len(swept.trials) == 9


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.met: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))


def hostile_sweep() -> tuple[SweepConfig, Inspection, list[TrialRecord]]:
    space = make_config().search.space.model_dump() | {
        "target_modules": {"choices": {name: ["query"] for name in HOSTILE}},
        "rank_pattern": {"=1+1": {"choices": [1, 2]}},
    }
    config = make_config(
        model={"name": f"/models/{SCRIPT}`\nlicense: evil"},
        data={"path": f"/data/{SCRIPT}: x.csv", "validation": 40, "label": SCRIPT},
        search={"num_trials": 20, "space": space},
    )
    inspection = make_inspection(labels=HOSTILE, hardware=SCRIPT, versions=((SCRIPT, SCRIPT),), data_fingerprint=SCRIPT)
    records = [
        make_record(
            number,
            spec=make_spec(number, params=(("target_modules", name), ("rank_pattern.=1+1", 2))),
            accuracy=0.5 + number / 50,
        )
        for number, name in enumerate(HOSTILE)
    ]
    outcome = Outcome(state=TrialState.FAIL, reason=None, detail=f"{SCRIPT}\n=cmd()")
    failed = make_record(len(records), TrialState.FAIL, spec=make_spec(len(records)), curve=(), outcome=outcome)
    return config, inspection, [*records, failed]


def test_nothing_hostile_runs_in_the_report(tmp_path: Path) -> None:
    write_report(tmp_path, *hostile_sweep())

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert SCRIPT not in page
    assert [tag for tag, attrs in Tags(page).met if "onerror" in attrs or attrs.get("src") == "x"] == []
    assert "<script" not in re.sub(r"\\<", "", (tmp_path / "report.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["trials.csv", "front.csv"])
def test_no_cell_of_a_table_is_a_formula(tmp_path: Path, name: str) -> None:
    write_report(tmp_path, *hostile_sweep())

    rows = list(csv.reader(io.StringIO((tmp_path / name).read_text(encoding="utf-8"), newline="")))

    cells = [cell for row in rows for cell in row]
    assert any("cmd|" in cell for cell in cells) or name == "front.csv"
    assert [
        cell for cell in cells if cell.startswith(("=", "+", "@", "-")) and not re.fullmatch(r"-?[\d.e-]+", cell)
    ] == []


def hostile_card() -> tuple[Sweep, str]:
    config, inspection, records = hostile_sweep()
    swept = Sweep(folder=Path("reports/small"), config=config, inspection=inspection, records=tuple(records))
    request = Request(adapter="/a", folder="/f", form=Form.MERGED)
    checked = Checked(score=0.5, trained_score=0.5, largest_difference=0.0, tolerance=None, compute_dtype="float32")
    return swept, model_card(swept, records[0], "knee", request, checked)


def test_a_model_card_s_front_matter_says_what_it_should_and_no_more() -> None:
    swept, card = hostile_card()

    front_matter, body = re.split(r"^---$", card, flags=re.MULTILINE)[1:3]

    said = YAML(typ="safe").load(front_matter)
    assert list(said) == ["base_model", "library_name", "pipeline_tag", "tags", "model-index"]
    assert said["base_model"] == swept.config.model.name
    assert "<script>" not in re.sub(r"`[^`]*`|\\<", "", body.partition("```python")[0])
    assert "\nlicense: evil" not in card


def test_the_program_beside_an_export_is_one_program_whatever_the_classes_are_called() -> None:
    swept, _ = hostile_card()
    request = Request(adapter="/a", folder="/f", form=Form.MERGED)

    tree = ast.parse(inference_code(swept, request))

    [labels] = [node for node in ast.walk(tree) if isinstance(node, ast.List)]
    assert tuple(ast.literal_eval(labels)) == HOSTILE


@pytest.mark.parametrize("to", [".", "..", "/", "out", "out/..", "elsewhere"])
def test_an_export_never_takes_the_place_of_what_is_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    swept = sweep.run(write_sweep(tmp_path), out=tmp_path / "out", worker=SYNTHETIC)
    swept_adapter = swept.folder / "adapters" / f"trial-{swept.front[-1].number:04d}"
    swept_adapter.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(FolderError):
        export(swept.folder, to=to, pick=f"trial:{swept.front[-1].number}", overwrite=True)

    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_command_line_shows_of_hostile_values_is_one_message(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"name": f"../{SCRIPT}\x1b[2J"})

    done = subprocess.run(
        [sys.executable, "-m", "tuner", "validate", str(file)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr
