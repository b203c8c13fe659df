"""The command line: quick to start, one message for each mistake, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import make_config, make_inspection, make_record, make_spec
from tests.commands import call
from tests.sweeps import write_sweep
from tuner import sweep
from tuner.cli import _tell
from tuner.trial import Baseline

SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"
HEAVY = ("torch", "ray", "transformers", "peft", "bitsandbytes", "datasets", "pandas", "matplotlib")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running some code."""
    script = f"{code}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    return set(printed.split("\n")[-2].split())


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("import tuner.cli, sys; sys.argv = ['tuner']")

    assert not loaded & {*HEAVY, "optuna", "plotly", "pydantic"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import tuner") & {*HEAVY, "optuna", "typer"}


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    """The folder of a sweep of synthetic trials."""
    return sweep.run(write_sweep(tmp_path), out=tmp_path / "out", backend="local", worker=SYNTHETIC).folder


def test_report_imports_neither_torch_nor_ray(swept: Path) -> None:
    loaded = modules_after(f"import sys; sys.argv = ['tuner', 'report', {str(swept)!r}]\nfrom tuner.cli import app\n"
                           "try: app()\nexcept SystemExit: pass")  # fmt: skip

    assert not loaded & {"torch", "ray", "transformers", "peft", "bitsandbytes"}


def test_report_says_the_front_and_where_the_page_is(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (swept / "report.html").unlink()

    code, out, _ = call(capsys, monkeypatch, "report", str(swept))

    assert code == 0
    assert f"report: {swept / 'report.html'}" in out
    assert (swept / "report.html").is_file()


def test_what_is_told_of_a_sweep_names_its_metric_and_its_baselines(capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(training={"task": "causal-lm", "max_steps": 120}, objectives={"accuracy": "perplexity"})
    baseline = make_record(-1, spec=make_spec(-1, baseline=Baseline.ZERO_SHOT, lora=None), accuracy=20.0)
    records = (make_record(0, accuracy=3.456), baseline)

    _tell(sweep.Sweep(folder=Path("out"), config=config, inspection=make_inspection(), records=records))

    front, beside, _ = capsys.readouterr().out.splitlines()
    assert front == "trial   0: perplexity 3.46, 10,000 parameters, 0.098 GiB"
    assert beside.startswith("baseline 1 (zero-shot): perplexity 20.0, ")


def test_run_resumes_nothing_over_an_existing_sweep(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = call(capsys, monkeypatch, "run", str(write_sweep(tmp_path)), "--out", str(swept))

    assert code == 2
    assert err.startswith("error: ")
    assert f"tuner resume {swept}" in err


def test_validate_says_what_a_file_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = call(capsys, monkeypatch, "validate", str(write_sweep(tmp_path)), "--set", "search.num_trials=7")

    assert code == 0
    assert "7 trials, evaluated at steps 2, 4, 8" in out


def test_a_wrong_file_is_one_message_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(tmp_path, {"training.max_steps": 0})

    code, out, err = call(capsys, monkeypatch, "run", str(file))

    assert (code, out) == (2, "")
    assert "training.max_steps: must be at least 1, got 0" in err
    assert "Traceback" not in err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run", interrupt)

    code, _, err = call(capsys, monkeypatch, "run", str(write_sweep(tmp_path)))

    assert code == 130
    assert "tuner resume" in err
