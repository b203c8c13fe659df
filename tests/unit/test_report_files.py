"""What a report writes besides its page: summary, Markdown; and pages of several sweeps and of running ones."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.builders import make_config, make_inspection, make_record, make_spec
from tests.sweeps import ROOT, write_sweep
from tests.synthetic import synthetic_config, synthetic_inspection, synthetic_records, with_scores
from tuner import sweep
from tuner.errors import CompareError
from tuner.folder import SweepFolder
from tuner.front import front, objectives_of
from tuner.gpus import Gpu
from tuner.report.answers import (
    build_cards,
    failed_scores_text,
    flattery_text,
    gpu_name,
    growth_text,
    headline,
    rank_text,
    ringed,
)
from tuner.report.compare import compare, compared_json
from tuner.report.compare_page import comparison_html
from tuner.report.data import ReportData
from tuner.report.markdown import escaped, report_md
from tuner.report.page import report_html
from tuner.report.reproduce import sweep_yaml
from tuner.report.summary import summary_json
from tuner.report.writing import report_data
from tuner.trial import FailReason, HeldOut, MemoryKind, Outcome, TrialRecord, TrialState
from tuner.watching import watch

GENERATOR = runpy.run_path(str(ROOT / "docs" / "summary_schema.py"))
WRITTEN = (ROOT / "docs" / "summary.schema.json").read_text(encoding="utf-8")
SCHEMA = json.loads(WRITTEN)
SYNTHETIC = "tuner.worker.synthetic:SyntheticWorker"


def synthetic(num: int = 40, seed: int = 0) -> ReportData:
    asked = synthetic_config(max(1, num))
    records = synthetic_records(num, seed)
    best = front(records, objectives_of(asked))
    return data_of(with_scores(records, [record.number for record in best]), asked)


def data_of(records: list[TrialRecord], config: Any = None, folder: str = "reports/x", **inspection: Any) -> ReportData:
    found = synthetic_inspection() if not inspection else make_inspection(**inspection)
    return report_data(Path(folder), config or make_config(), found, records)


def test_the_committed_schema_is_what_the_summary_says() -> None:
    assert GENERATOR["text"]() == WRITTEN, "run `python docs/summary_schema.py`"


@pytest.mark.parametrize("num", [0, 1, 40, 300])
def test_every_summary_keeps_to_the_schema(num: int) -> None:
    summary = json.loads(summary_json(synthetic(num)), parse_constant=pytest.fail)

    jsonschema.validate(summary, SCHEMA)


def test_the_schema_refuses_what_is_no_summary() -> None:
    summary = json.loads(summary_json(synthetic(5)))

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(summary | {"steps": "many"}, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: value for key, value in summary.items() if key != "front"}, SCHEMA)


def test_the_summary_holds_what_the_page_says() -> None:
    data = synthetic()
    summary = json.loads(summary_json(data))

    assert summary["headline"] == headline(data)
    assert [answer["number"] for answer in summary["answers"]] == [card.row.number for card in build_cards(data)]
    assert [answer["command"] for answer in summary["answers"]] == [card.command for card in build_cards(data)]
    assert summary["importances"]["steps"] in data.config.rungs
    assert len(summary["growth"]["volumes"]) == summary["states"]["COMPLETE"]
    assert {found["kind"] for found in summary["diagnoses"]} == {found.kind.value for found in data.diagnoses}
    assert summary["flattery"]["best"]["value"] == pytest.approx(0.01, abs=1e-3)
    assert len(summary["confirmations"]) == 2
    assert [trial["number"] for trial in summary["trials"] if trial["test"]] != []


def test_markdown_tells_the_answer_and_has_whole_tables() -> None:
    text = report_md(synthetic())

    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert text.startswith("# synthetic: which LoRA to ship\n")
    assert "## Which one to ship" in text
    assert "## The front" in text
    assert {line.count(" | ") for line in tables[:4]} == {4}
    assert "beyond the noise" in text or "can't be told apart" in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", "a\\|b"),
        ("<b>*x*_y_`z`", "\\<b\\>\\*x\\*\\_y\\_\\`z\\`"),
        ("a\nb", "a b"),
        ("a&lt;@b $x$", "a&amp;lt;&#64;b \\$x\\$"),
        ("# a", "\\# a"),
    ],
)
def test_markup_in_markdown_is_text(text: str, written: str) -> None:
    assert escaped(text) == written


def test_markdown_of_an_empty_sweep_says_so() -> None:
    assert "No trial has finished yet." in report_md(synthetic(0))


def test_cards_lead_with_the_test_score_where_there_is_one() -> None:
    with_test, without = build_cards(synthetic())[0], build_cards(data_of([make_record(0)]))[0]

    assert "test accuracy" in with_test.big[1]
    assert "validation accuracy" in with_test.second
    assert "validation accuracy" in without.big[1]
    assert without.second == ""
    assert dict(with_test.facts)["Trainable parameters"].endswith("% of the model)")


def test_words_are_careful_where_nothing_is_known() -> None:
    data = data_of([make_record(0)])

    assert flattery_text(data) == rank_text(data) == ""
    assert growth_text(data) == "Too few trials have finished to tell whether more would help."
    assert ringed(data) == ringed(synthetic(0)) == ()


def test_the_sweep_file_in_a_report_names_no_folder() -> None:
    config = make_config(
        model={"name": "/home/someone/models/tiny"}, data={"path": "/home/someone/rows.jsonl", "validation": 40}
    )

    text = sweep_yaml(data_of([], config))

    assert "/home" not in text
    assert ".../rows.jsonl" in text


def sweeps(*seeds: int) -> list[ReportData]:
    return [
        report_data(
            Path(f"reports/sweep-{seed}"), synthetic_config(60), synthetic_inspection(), synthetic_records(60, seed)
        )
        for seed in seeds
    ]


def test_sweeps_share_a_box_and_a_common_front() -> None:
    found = compare(sweeps(1, 2, 3))

    assert [entry.label for entry in found.entries] == ["sweep-1", "sweep-2", "sweep-3"]
    assert all(0 < entry.hypervolume < 1 for entry in found.entries)
    assert sum(len(entry.on_common_front) for entry in found.entries) >= 1
    for entry in found.entries:
        assert {row.number for row in entry.on_common_front} <= {row.number for row in entry.data.front}
    assert len(found.versus) == 3
    json.dumps(compared_json(found), allow_nan=False)


def test_a_sweep_against_itself_is_level() -> None:
    found = compare([*sweeps(1), *sweeps(1)])

    assert [entry.label for entry in found.entries] == ["sweep-1 (1)", "sweep-1 (2)"]
    assert found.entries[0].hypervolume == found.entries[1].hypervolume
    assert found.versus[0].gap.value == 0
    assert not found.versus[0].gap.is_clear


def test_sweeps_of_other_data_are_refused_with_every_reason() -> None:
    first = data_of([make_record(0)], data_fingerprint="a" * 64)
    macro_f1 = make_config(objectives={"accuracy": "macro_f1"})
    other = data_of([make_record(0)], macro_f1, "reports/y", data_fingerprint="b" * 64, num_validation=399)

    with pytest.raises(CompareError) as caught:
        compare([first, other])

    assert str(caught.value).splitlines() == [
        "these sweeps can't be compared:",
        "  metric: macro_f1 in y, accuracy in x",
        "  data: bbbbbbbbbbbb in y, aaaaaaaaaaaa in x",
        "  validation examples: 399 in y, 400 in x",
    ]


def test_one_sweep_is_no_comparison() -> None:
    with pytest.raises(CompareError, match="takes at least 2 sweeps, got 1"):
        compare(sweeps(1))


def test_memory_found_in_two_ways_is_left_out_and_said_so() -> None:
    here = data_of([make_record(0)])
    there = data_of([make_record(0, memory_kind=MemoryKind.CUDA_ALLOCATED)], folder="reports/y")

    found = compare([here, there])

    assert [objective.value for objective in found.objectives] == ["accuracy", "trainable_params"]
    assert found.left_out == (
        "Not compared: peak memory, for it is measured: CPU allocated here and measured: CUDA allocated there."
    )
    assert "Not compared: peak memory" in comparison_html(found)


def test_a_cost_that_only_one_sweep_weighs_is_left_out_and_said_so() -> None:
    other = data_of([make_record(0)], make_config(objectives={"trainable_params": False}), "reports/y")

    found = compare([data_of([make_record(0)]), other])

    assert found.left_out == "Not compared: trainable parameters, which not every sweep weighs."


def of_perplexity(model: str, folder: str) -> ReportData:
    config = make_config(
        model={"name": f"/models/{model}"},
        objectives={"accuracy": "perplexity"},
        training={"task": "causal-lm", "max_steps": 120},
    )
    return data_of([make_record(0, accuracy=3.0)], config, folder)


def test_metrics_over_tokens_are_not_compared_between_models() -> None:
    llama, qwen = of_perplexity("llama", "reports/x"), of_perplexity("qwen", "reports/y")

    with pytest.raises(CompareError, match=r"perplexity is a mean over tokens.*qwen in y, llama in x"):
        compare([llama, qwen])
    assert compare([llama, of_perplexity("llama", "reports/y")]).left_out == ""


def test_sweeps_without_a_finished_trial_are_shown_too() -> None:
    found = compare([data_of([]), data_of([make_record(0)], folder="reports/y")])

    assert found.entries[0].best is None
    assert found.versus == ()
    assert "<td></td>" in comparison_html(found)


def test_a_running_sweep_is_written_anew_when_its_journal_grows_and_stays_still_at_the_end(tmp_path: Path) -> None:
    sweep.run(write_sweep(tmp_path), out=tmp_path / "out", worker=SYNTHETIC)
    page, journal = tmp_path / "out" / "report.html", tmp_path / "out" / "study.journal"
    looks: list[bool] = []
    holding = SweepFolder(tmp_path / "out").locked()

    def sleep(seconds: float) -> None:
        assert seconds == 7
        looks.append('data-refresh-s="7"' in page.read_text())
        page.write_text("old")
        if len(looks) == 2:
            journal.write_bytes(journal.read_bytes() + b" ")
        if len(looks) == 3:
            holding.__exit__(None, None, None)

    holding.__enter__()
    swept = watch(tmp_path / "out", every_s=7, sleep=sleep)

    assert looks == [True, False, True]
    assert "data-refresh-s=" not in page.read_text()
    assert len(swept.trials) == 4


def test_trials_that_are_trained_anew_have_a_mark_of_their_own_and_scores_are_no_rows() -> None:
    data = synthetic()

    numbers = {row.record.spec.confirms for row in data.confirmed}
    assert {row.mark for row in data.confirmed} == {f"{number}s{seed}" for number in numbers for seed in (1, 2)}
    assert all(row.record.spec.scores is None for row in data.rows)


def test_a_scoring_that_failed_is_told_and_one_that_worked_out_later_is_not() -> None:
    outcome = Outcome(state=TrialState.FAIL, reason=FailReason.EXCEPTION, detail="Traceback\nFileNotFoundError: gone")
    failed = make_record(-1, TrialState.FAIL, spec=make_spec(-1, scores=0), curve=(), outcome=outcome)
    held_out = HeldOut(accuracy=0.8, standard_error=0.01, loss=0.5, num_test=1000)
    scored = make_record(-2, spec=make_spec(-2, scores=0), held_out=held_out)

    lost, mended = data_of([make_record(0), failed]), data_of([make_record(0), failed, scored])

    told = "Trial 0 could not be scored on the test data: FileNotFoundError: gone"
    assert failed_scores_text(lost) == (told,)
    assert told in report_html(lost)
    assert failed_scores_text(mended) == ()


@pytest.mark.parametrize(
    ("kind", "card"),
    [(MemoryKind.CUDA_ALLOCATED, "H100"), (MemoryKind.PREDICTED, "L4-24GB"), (MemoryKind.CPU_ALLOCATED, "")],
)
def test_memory_is_that_of_the_card_that_it_was_found_for(kind: MemoryKind, card: str) -> None:
    config = make_config(objectives={"memory": {"gpu": "L4-24GB"}})
    gpu = Gpu(name="H100", memory_mib=80_000, capability=(9, 0))

    data = data_of([make_record(0, memory_kind=kind)], config, gpu=gpu)

    assert gpu_name(data) == card
