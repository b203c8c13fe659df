"""The report: its data by value, its tables exactly, its page parsed, its picture by size."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import math
import random
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from plotly import graph_objects

from tests.builders import MIB, make_config, make_inspection, make_metrics, make_record, make_spec
from tuner import metric_text
from tuner.exporting import is_as_reported
from tuner.report import write_report
from tuner.report.answers import build_cards, export_command, headline
from tuner.report.data import ReportData, build_report_data
from tuner.report.figures import BACK_TO_FRONT, curve_figures, front_figures, hover, param_figures
from tuner.report.figures.axes import clipped, log_ticks, stretched
from tuner.report.figures.labels import Font, place_labels
from tuner.report.figures.views import STYLES, build_views, legend_of
from tuner.report.listing import trials_table
from tuner.report.page import report_html
from tuner.report.picture import front_pictures
from tuner.report.rows import Standing
from tuner.report.settings import settings
from tuner.report.stopping import audit_text, savings, stop_counts
from tuner.report.summary import summary_json
from tuner.report.tables import front_csv, trials_csv
from tuner.report.words import dimension_of, duration, short_count
from tuner.trial import Baseline, FailReason, HeldOut, MemoryKind, Metric, Outcome, StopReason, TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tuner.config import SweepConfig

FILES = ("trials.csv", "front.csv", "summary.json", "report.html", "report.md", "front.png", "front.svg")
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
PAUSED, INFEASIBLE = TrialState.PAUSED, TrialState.INFEASIBLE


def sampled(number: int, r: int = 8, learning_rate: float = 0.001) -> tuple[tuple[str, int | float], ...]:
    return (("r", r), ("learning_rate", learning_rate))


def finished(number: int, accuracy: float, params: int, mib: int = 100) -> TrialRecord:
    return make_record(
        number,
        spec=make_spec(number, params=sampled(number)),
        accuracy=accuracy,
        trainable_params=params,
        peak_memory_bytes=mib * MIB,
    )


def failed(number: int, detail: str = "boom") -> TrialRecord:
    outcome = Outcome(state=FAIL, reason=FailReason.OUT_OF_MEMORY, detail=detail)
    return make_record(number, FAIL, spec=make_spec(number, params=sampled(number)), curve=(), outcome=outcome)


def small_sweep() -> list[TrialRecord]:
    """Trials 0, 1 and 3 are on the front, 2 is dominated by 1, 4 was stopped at step 30, 5 failed."""
    return [
        finished(0, 0.70, 1_000),
        finished(1, 0.845, 10_000),
        finished(2, 0.80, 20_000),
        finished(3, 0.85, 40_000),
        make_record(4, PRUNED, spec=make_spec(4, params=sampled(4)), steps=30, accuracy=0.9, train_s=8.0),
        failed(5),
    ]


def stopped(number: int, reason: StopReason | None = StopReason.DOMINATED, detail: str = "") -> TrialRecord:
    """Stopped at step 30 with 50 %."""
    outcome = Outcome(state=PRUNED, stop=reason, detail=detail)
    spec = make_spec(number, params=sampled(number))
    return make_record(number, PRUNED, spec=spec, outcome=outcome, steps=30, accuracy=0.5, trainable_params=5_000)


def audit(number: int, of: TrialRecord, accuracy: float = 0.9) -> TrialRecord:
    """Finishes a stopped trial after all."""
    assert of.last
    spec = make_spec(number, params=of.spec.params, audits=of.number)
    curve = (of.last, replace(of.last, steps=120, accuracy=accuracy))
    return make_record(number, spec=spec, curve=curve)


def too_large(number: int, detail: str = "takes 9 GiB", reason: FailReason | None = None) -> TrialRecord:
    """Known not to fit before it began, or out of memory."""
    outcome = Outcome(state=INFEASIBLE, stop=StopReason.MEMORY, reason=reason, detail=detail)
    return make_record(number, INFEASIBLE, curve=(), outcome=outcome)


def audited_sweep() -> list[TrialRecord]:
    """The small sweep, with three more stopped trials; of them 6 would have reached the front and 7 would not."""
    more = [stopped(6), stopped(7, StopReason.BELOW_FLOOR, detail="x < y"), stopped(8, StopReason.BUDGET)]
    return [*small_sweep(), *more, audit(-1, more[0]), audit(-2, more[1], accuracy=0.6)]


def four_baselines() -> list[TrialRecord]:
    """Zero-shot far worse than any trial, full fine-tuning far dearer, the other two near the small sweep's front."""
    changes: dict[Baseline, dict[str, Any]] = {
        Baseline.ZERO_SHOT: {"accuracy": 0.05, "trainable_params": 0, "steps": 0},
        Baseline.HEAD_ONLY: {"accuracy": 0.75, "trainable_params": 500},
        Baseline.FULL: {"accuracy": 0.88, "trainable_params": 22_700_000, "peak_memory_bytes": 400 * MIB},
        Baseline.UNQUANTIZED_LORA: {"accuracy": 0.85, "trainable_params": 20_000},
    }
    return [
        make_record(-place, spec=make_spec(-place, baseline=kind, lora=None, params=()), **values)
        for place, (kind, values) in enumerate(changes.items(), start=1)
    ]


def lm_config(metric: str = "exact_match", **sections: object) -> SweepConfig:
    """A small sweep of a causal language model."""
    training = {"task": "causal-lm", "max_steps": 120}
    return make_config(**{"objectives": {"accuracy": metric}, "training": training} | sections)


def scored(number: int, perplexity: float, params: int, state: TrialState = COMPLETE) -> TrialRecord:
    """A trial of a sweep for perplexity."""
    spec = make_spec(number, params=sampled(number))
    return make_record(number, state, spec=spec, accuracy=perplexity, standard_error=0.1, trainable_params=params)


def build(
    records: Sequence[TrialRecord], config: SweepConfig | None = None, folder: str = "reports/small"
) -> ReportData:
    return build_report_data(config or make_config(), make_inspection(), records, folder=folder, version="1.2.3")


def read(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table)))


def spaces(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


class Page(HTMLParser):
    """Collects what a browser would load, the tags met, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in {"script", "style"}:
            self.text += data


# ReportData


def test_rows_are_ordered_by_number_and_know_their_standing() -> None:
    data = build(list(reversed(small_sweep())))

    front, finished_off, stopped, lost = Standing.FRONT, Standing.FINISHED, Standing.STOPPED, Standing.FAILED
    assert [row.number for row in data.rows] == [0, 1, 2, 3, 4, 5]
    assert [row.standing for row in data.rows] == [front, front, finished_off, front, stopped, lost]


def test_a_pruned_trial_never_stands_on_the_front_however_accurate() -> None:
    data = build(small_sweep())

    assert [row.number for row in data.front] == [0, 1, 3]


def test_the_three_picks_follow_their_rules() -> None:
    picks = {pick.rule: pick.row.number for pick in build(small_sweep()).picks}

    assert picks == {"knee": 1, "most-accurate": 3, "cheapest-within:1se": 1}


def test_states_are_counted_with_zeros() -> None:
    counts = build(small_sweep()).num_by_state

    assert counts == {RUNNING: 0, PAUSED: 0, COMPLETE: 4, PRUNED: 1, INFEASIBLE: 0, FAIL: 1}


def test_stopping_early_saves_the_steps_that_were_left() -> None:
    budget = build(small_sweep()).budget

    assert budget.steps == 4 * 120 + 30
    assert budget.steps_without_pruning == 5 * 120
    assert budget.saved_share == pytest.approx(90 / 600)
    assert budget.train_s == 4 * 30.0 + 8.0


def test_two_kinds_of_memory_are_refused() -> None:
    records = [finished(0, 0.8, 10), make_record(1, memory_kind=MemoryKind.CUDA_ALLOCATED)]

    with pytest.raises(ValueError, match="two kinds of memory"):
        build(records)


def test_another_kind_of_memory_in_a_pruned_trial_is_refused_too() -> None:
    records = [finished(0, 0.8, 10), make_record(1, PRUNED, memory_kind=MemoryKind.CUDA_ALLOCATED)]

    with pytest.raises(ValueError, match="two kinds of memory"):
        build(records)


def test_a_baseline_is_neither_on_the_front_nor_counted_among_the_trials() -> None:
    data = build([*four_baselines(), *small_sweep()])

    assert [row.number for row in data.front] == [0, 1, 3]
    assert [row.mark for row in data.rows] == ["0", "1", "2", "3", "4", "5", "B1", "B2", "B3", "B4"]
    assert {row.standing for row in data.baselines} == {Standing.BASELINE}
    assert sum(data.num_by_state.values()) == 6


def test_an_audit_is_neither_on_the_front_nor_counted_among_the_trials() -> None:
    data = build(audited_sweep())

    assert [row.number for row in data.front] == [0, 1, 3]
    assert [(row.mark, row.standing) for row in data.audits] == [("A6", Standing.AUDIT), ("A7", Standing.AUDIT)]
    assert (data.num_by_state[COMPLETE], data.num_by_state[PRUNED]) == (4, 4)
    assert data.budget.steps == 4 * 120 + 4 * 30


def test_a_trial_that_waits_and_one_that_does_not_fit_have_standings_of_their_own() -> None:
    data = build([make_record(0, PAUSED, outcome=None), too_large(1), failed(2)])

    assert [row.standing for row in data.rows] == [Standing.PAUSED, Standing.INFEASIBLE, Standing.FAILED]
    assert data.num_begun == 2


def test_baselines_stay_out_of_the_steps_saved_and_have_a_budget_of_their_own() -> None:
    alone, beside = build(small_sweep()), build([*small_sweep(), *four_baselines()])

    assert beside.budget == alone.budget
    assert beside.baseline_budget.steps == 3 * 120


@pytest.mark.parametrize(
    ("metric", "best"),
    [("exact_match", "Highest validation exact match"), ("perplexity", "Lowest validation perplexity")],
)
def test_the_picks_are_called_after_the_metric(metric: str, best: str) -> None:
    picks = build([scored(0, 1.0, 10)], lm_config(metric)).picks

    assert [pick.words for pick in picks] == [
        "Recommended: the knee of the front",
        best,
        "Cheapest within one standard error of that",
    ]


# Tables


def test_trials_csv_is_exactly_this() -> None:
    records = [finished(0, 0.845, 1_000), failed(1)]

    assert trials_csv(build(records)) == (
        "number,state,baseline,steps,accuracy,standard_error,loss,trainable_params,peak_memory_gib,memory_kind,train_s,"
        "seed,r,learning_rate,reason,stop,audits\n"
        "0,COMPLETE,,120,0.845,0.018095,0.6,1000,0.097656,measured: CPU allocated,30.0,0,8,0.001,,,\n"
        "1,FAIL,,,,,,,,,,0,8,0.001,out of memory,,\n"
    )


def test_trials_csv_says_why_trials_were_stopped_and_what_was_audited() -> None:
    rows = read(trials_csv(build([*audited_sweep(), too_large(9)])))

    assert [row["stop"] for row in rows[4:8]] == ["", "", "dominated at its rung", "no better than the floor"]
    assert rows[9]["stop"] == "more memory than the limit"
    assert [(row["number"], row["audits"]) for row in rows[10:]] == [("-1", "6"), ("-2", "7")]


def test_front_csv_has_no_reason_and_is_sorted_by_cost() -> None:
    lines = front_csv(build([finished(0, 0.9, 2_000), finished(1, 0.8, 1_000)])).splitlines()

    assert lines[0].endswith("seed,r,learning_rate")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "0"]


def test_a_parameter_that_was_not_sampled_is_an_empty_cell() -> None:
    spec = make_spec(0, params=(("learning_rate", 0.002),))

    (_, line) = front_csv(build([make_record(0, spec=spec)])).splitlines()

    assert line.endswith(",0,,0.002")


def test_accuracy_survives_the_csv_unrounded() -> None:
    (row,) = read(front_csv(build([finished(0, 1 / 3, 10)])))

    assert float(row["accuracy"]) == 1 / 3


def test_summary_json_holds_the_sweep_in_numbers() -> None:
    summary = json.loads(summary_json(build(small_sweep())))

    expected = {
        "name": "small",
        "tuner_version": "1.2.3",
        "metric": "accuracy",
        "objectives": ["accuracy", "trainable_params", "peak_memory_gib"],
        "states": {"RUNNING": 0, "PAUSED": 0, "COMPLETE": 4, "PRUNED": 1, "INFEASIBLE": 0, "FAIL": 1},
        "front": [0, 1, 3],
        "picks": {"knee": 1, "most-accurate": 3, "cheapest-within:1se": 1},
        "stops": dict.fromkeys(StopReason, 0),
        "audit": None,
        "steps": {"spent": 510, "without_pruning": 600},
        "memory_kind": "measured: CPU allocated",
        "prediction_errors": [],
    }
    assert {key: summary[key] for key in expected} == expected
    assert (summary["data"]["num_validation"], summary["data"]["majority_share"]) == (400, 0.55)
    assert [trial["number"] for trial in summary["trials"]] == [0, 1, 2, 3, 4, 5]


def test_the_tables_name_the_metric_and_the_tasks_others() -> None:
    others = (("token_accuracy", 0.9), ("perplexity", 3.5))

    (row,) = read(trials_csv(build([make_record(0, accuracy=0.5, others=others)], lm_config())))

    assert "accuracy" not in row
    assert (row["exact_match"], row["token_accuracy"], row["perplexity"]) == ("0.5", "0.9", "3.5")


def test_a_metric_that_one_trial_did_not_report_is_an_empty_cell() -> None:
    records = [make_record(0, others=(("macro_f1", 0.5),)), make_record(1), failed(2)]

    assert [row["macro_f1"] for row in read(trials_csv(build(records)))] == ["0.5", "", ""]


def test_trials_csv_names_the_baselines_after_the_trials() -> None:
    rows = read(trials_csv(build([*four_baselines(), finished(0, 0.8, 10)])))

    assert [row["number"] for row in rows] == ["0", "-1", "-2", "-3", "-4"]
    assert [row["baseline"] for row in rows] == ["", *Baseline]


def test_summary_json_lists_the_baselines_with_their_results() -> None:
    trials = json.loads(summary_json(build([*small_sweep(), *four_baselines()])))["trials"]

    zero_shot, _, full, _ = (trial for trial in trials if trial["baseline"])
    assert (zero_shot["baseline"], zero_shot["curve"][0]["steps"], zero_shot["learning_rate"]) == ("zero-shot", 0, None)
    assert (full["number"], full["curve"][-1]["value"], full["trainable_params"]) == (-3, 0.88, 22_700_000)


def test_summary_json_tells_what_the_audit_found() -> None:
    summary = json.loads(summary_json(build(audited_sweep())))

    assert summary["stops"]["dominated at its rung"] == summary["stops"]["not worth the rest of the budget"] == 1
    assert {name: summary["audit"][name] for name in ("num_stopped", "num_audited", "on_front", "steps")} == {
        "num_stopped": 4,
        "num_audited": 2,
        "on_front": [6],
        "steps": 180,
    }
    assert summary["audit"]["share_on_front_interval"] == pytest.approx([0.0126, 0.9874], abs=1e-4)


# Words


def test_the_headline_ranks_no_trials_that_can_not_be_told_apart() -> None:
    assert spaces(headline(build(small_sweep()))) == (
        "Trial 3 (85.0% ± 1.8 on 400 validation examples) can't be told apart from trial 1 there. "
        "The cheapest of these, trial 1, has 4.0 times fewer trainable parameters and the same peak memory."
    )


def held_out(number: int, of: int, accuracy: float, seed: int) -> TrialRecord:
    """Scores a trial on 1,000 test examples."""
    common, own = random.Random(0), random.Random(seed)
    resampled = tuple(accuracy + common.gauss(0, 0.01) + own.gauss(0, 0.003) for _ in range(300))
    found = HeldOut(accuracy=accuracy, standard_error=0.01, loss=0.5, num_test=1000, resampled=resampled)
    return make_record(number, spec=make_spec(number, scores=of), accuracy=0.8, held_out=found)


@pytest.mark.parametrize(
    ("cheap", "words"),
    [
        (0.80, "On test data that no decision has seen trial 0 scores lower, beyond the noise."),
        (0.90, "On test data that no decision has seen trial 0 scores higher, beyond the noise."),
        (0.851, "Test data that no decision has seen does not set them apart either."),
    ],
)
def test_the_headline_tells_what_the_test_data_adds_and_chooses_nothing_by_it(cheap: float, words: str) -> None:
    trials = [finished(0, 0.84, 1_000), finished(1, 0.85, 10_000)]

    text = spaces(headline(build([*trials, held_out(-1, 0, cheap, 1), held_out(-2, 1, 0.85, 2)])))

    assert text.startswith("Trial 1 (85.0% ± 1.8 on 400 validation examples) can't be told apart from trial 0 there.")
    assert text.endswith(words)


def test_the_headline_of_a_sweep_without_a_finished_trial_says_so() -> None:
    assert (
        headline(build([failed(0), make_record(1, PRUNED)])) == "No trial has finished yet (1 stopped early, 1 failed)."
    )
    assert (
        headline(build([make_record(0, PAUSED), too_large(1)])) == "No trial has finished yet (1 paused, 1 too large)."
    )
    assert headline(build([])) == "No trial has finished yet."


def test_a_front_of_one_is_called_the_whole_front() -> None:
    assert headline(build([finished(7, 0.8, 10)])).startswith("Trial 7 is the whole front")


def test_the_headline_tells_what_the_cheap_trial_saves_and_what_it_costs() -> None:
    text = headline(build([finished(0, 0.845, 7_000, mib=110), finished(1, 0.85, 10_000, mib=100)]))

    assert "30% fewer trainable parameters and 10% more peak memory" in text


def test_the_headline_names_one_trial_where_it_is_best_beyond_the_noise() -> None:
    text = headline(build([finished(0, 0.5, 1_000), finished(1, 0.85, 10_000)]))

    assert spaces(text) == (
        "Trial 1 scores higher than all others on the front, beyond the noise: 85.0% ± 1.8 on 400 validation examples."
    )


def test_the_headline_of_a_perplexity_sweep_knows_no_points() -> None:
    trials = [scored(0, 3.45, 1_000), scored(1, 3.4, 4_000), scored(2, 9.0, 500)]

    text = spaces(headline(build(trials, lm_config("perplexity"))))

    assert text.startswith("Trial 1 (3.40 ± 0.10 on 400 validation examples) can't be told apart from trial 0 there.")


@pytest.mark.parametrize(
    ("metric", "value", "error", "text"),
    [
        (Metric.EXACT_MATCH, 0.845, 0.018, "84.5% ± 1.8"),
        (Metric.PERPLEXITY, 3.4159, 0.134, "3.42 ± 0.13"),
        (Metric.PERPLEXITY, 9.999, 0.0041, "10.0 ± 0.0041"),
        (Metric.PERPLEXITY, 1_234.5, 88.8, "1,234 ± 89"),
        (Metric.PERPLEXITY, math.inf, math.nan, "inf ± nan"),
    ],
)
def test_a_result_is_told_by_its_metrics_kind(metric: Metric, value: float, error: float, text: str) -> None:
    assert spaces(metric_text.text_with_error(metric, value, error)) == text


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "60 s"), (600, "10 min"), (9_000, "2.5 h")])
def test_durations_are_told_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0.5, "0.5"), (12_340, "12.34k"), (2_000_000, "2M")])
def test_large_counts_are_shortened(number: float, text: str) -> None:
    assert short_count(number) == text


def test_the_savings_are_told_of_the_trials_that_were_begun() -> None:
    assert savings(build([*small_sweep(), too_large(6)])) == (
        "1 of 6 trials was stopped before the last rung. That saved 90 of 600 steps (15.0%)."
    )


def test_stopped_trials_are_counted_by_reason_and_old_journals_have_none() -> None:
    counts = {text: number for number, text in stop_counts(build([*audited_sweep(), too_large(9)]))}

    assert counts == {
        "dominated by another trial at the same rung": 1,
        "no better than the floor after half of the steps": 1,
        "not worth the rest of the budget": 1,
        "too large for the memory, not counted above": 1,
        "for a reason that this journal does not hold": 1,
    }


def test_an_audit_is_told_with_what_it_says_of_all_stopped_trials() -> None:
    text = audit_text(build(audited_sweep()))

    assert text.startswith("The audit finished 2 of 4 stopped trials after all, drawn at random. ")
    assert "1 would have stood on the front" in text
    assert "That is 50.0% (95% interval 1.3% to 98.7%), or about 2.0 (95% interval 1.0 to 3.0) of all" in text
    assert text.endswith("The audit took 180 steps of its own.")


def test_an_audit_of_all_stopped_trials_is_told_as_no_estimate() -> None:
    one = stopped(6)

    text = audit_text(build([finished(0, 0.8, 10), one, audit(-1, one)]))

    assert "finished every stopped trial after all (1), so that nothing here is an estimate" in text
    assert "interval" not in text


def test_where_there_is_no_audit_the_report_says_how_to_ask_for_one() -> None:
    asked = make_config(pruning={"min_steps": 30, "audit": 3})
    lost = replace(audit(-1, stopped(6)), state=FAIL, outcome=Outcome(state=FAIL, reason=FailReason.EXCEPTION))

    assert "set pruning.audit" in audit_text(build(small_sweep()))
    assert "(pruning.audit: 3) has ended yet" in audit_text(build(small_sweep(), asked))
    assert audit_text(build([stopped(6), lost])) == "The audit finished none of the stopped trials: 1 failed."


def test_a_fixed_setting_is_no_dimension() -> None:
    with pytest.raises(ValueError, match="lora_dropout is not searched"):
        dimension_of(make_config().search.space, "lora_dropout")


# Views


def test_the_stepped_line_is_the_best_accuracy_within_a_cost() -> None:
    view, _ = build_views(build([finished(0, 0.5, 10), finished(1, 0.75, 100), finished(2, 0.25, 1_000)]))

    assert view.line[:-1] == ((10, 50), (100, 50), (100, 75))
    assert view.line[-1] == (view.x_span[1], 75)


def test_the_stepped_line_of_perplexity_is_the_lowest_within_a_cost() -> None:
    records = [scored(0, 5.0, 10), scored(1, 3.0, 100), scored(2, 4.0, 1_000)]

    view, _ = build_views(build(records, lm_config("perplexity")))

    assert view.corners[0] == (-1, -1)
    assert view.line[:-1] == ((10, 5), (100, 5), (100, 3))
    assert view.line[-1] == (view.x_span[1], 3)


def test_a_perplexity_far_above_the_front_is_counted_instead_of_squeezing_it() -> None:
    records = [scored(0, 3.5, 10), scored(1, 3.0, 100), scored(2, 900.0, 10, PRUNED), scored(3, math.inf, 10, PRUNED)]

    view, _ = build_views(build(records, lm_config("perplexity")))

    assert view.y_span[1] < 5
    assert view.beyond == "1 more above this axis"


def test_a_baseline_far_from_the_front_is_drawn_at_the_edge_and_told_in_words() -> None:
    alone, _ = build_views(build(small_sweep()))
    view, _ = build_views(build([*small_sweep(), *four_baselines()]))

    zero_shot, _, full, _ = view.of(Standing.BASELINE)
    assert view.x_span[0] < zero_shot.x < alone.x_span[0] * 1.3
    assert alone.x_span[1] * 0.7 < full.x < view.x_span[1]
    assert spaces(view.at_edge) == "Drawn at the edge: B1 (0 parameters, 5.0%), B3 (22.7M parameters, 88.0%)"


def test_a_baseline_near_the_front_makes_the_axis_a_little_longer() -> None:
    alone, _ = build_views(build(small_sweep()))
    view, _ = build_views(build([*small_sweep(), *four_baselines()]))

    head_only = view.of(Standing.BASELINE)[1]
    assert (head_only.x, head_only.note) == (500, "")
    assert view.x_span[0] < 500 < alone.x_span[0]


def test_baselines_alone_get_axes_of_their_own() -> None:
    view, _ = build_views(build(four_baselines()))

    assert view.x_span[0] < 500
    assert view.x_span[1] > 22_700_000
    assert view.line == ()


def test_an_axis_grows_for_near_values_only() -> None:
    assert stretched((0.0, 100.0), [50.0, 110.0, 1_000.0]) == (0.0, 113.0)
    assert stretched((10.0, 1_000.0), [0.0], is_log=True) == (10.0, 1_000.0)
    assert clipped(1_000.0, (0.0, 100.0)) == 97.0


def test_a_cost_that_is_no_objective_gets_points_but_no_line() -> None:
    config = make_config(objectives={"memory": False})

    _, memory = build_views(build([finished(0, 0.5, 10)], config))

    assert memory.line == ()
    assert len(memory.points) == 1
    assert memory.title.endswith("(not an objective of this sweep)")


def test_error_bars_are_one_standard_error_in_points() -> None:
    view, _ = build_views(build([make_record(0, standard_error=0.02)]))

    assert view.points[0].error == pytest.approx(2.0)


def test_a_trial_far_below_the_front_is_counted_instead_of_squeezing_it() -> None:
    collapsed = make_record(9, PRUNED, accuracy=0.1)

    view, _ = build_views(build([finished(0, 0.80, 10), finished(1, 0.85, 100), collapsed]))

    assert view.y_span[0] > 70
    assert view.beyond == "1 more below this axis"


@pytest.mark.parametrize(
    ("span", "ticks"),
    [
        ((0.9, 1_100), (1, 10, 100, 1_000)),
        ((4, 60), (5, 10, 20, 50)),
        ((9_100, 11_600), (9_500, 10_000, 10_500, 11_000, 11_500)),
        ((0.0009, 0.011), (0.001, 0.002, 0.005, 0.01)),
    ],
)
def test_log_ticks_are_round_and_few(span: tuple[float, float], ticks: tuple[float, ...]) -> None:
    assert log_ticks(span) == ticks


def test_labels_of_close_points_do_not_cover_each_other() -> None:
    font = Font(digit=8, height=12, gaps=(6, 12))
    anchors = [(100.0, 100.0), (105.0, 102.0), (110.0, 98.0)]

    places = place_labels(anchors, ["10", "11", "12"], font)

    boxes = [place.box(at, 16, 12) for place, at in zip(places, anchors, strict=True) if place]
    apart = [a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a in boxes for b in boxes if a is not b]
    assert len(boxes) == 3
    assert all(apart)


def test_a_label_without_room_is_left_out() -> None:
    crowd = [(float(x), float(y)) for x in range(-40, 50, 10) for y in range(-40, 50, 10)]

    assert place_labels([(0.0, 0.0)], ["1"], Font(digit=8, height=12, gaps=(6,)), others=crowd) == (None,)


def test_audits_are_drawn_beside_the_front_and_take_no_part_in_its_line() -> None:
    alone, _ = build_views(build(small_sweep()))
    view, _ = build_views(build(audited_sweep()))

    assert [point.y for point in view.of(Standing.AUDIT)] == [90, 60]
    assert view.line == alone.line
    assert Standing.AUDIT in legend_of(build(audited_sweep()))
    assert Standing.AUDIT not in legend_of(build(small_sweep()))


@pytest.mark.parametrize("standing", Standing)
def test_every_standing_has_a_style_of_its_own_and_a_place_among_the_curves(standing: Standing) -> None:
    assert [other for other in Standing if STYLES[other] == STYLES[standing]] == [standing]
    assert standing in BACK_TO_FRONT


# Page


def test_plotly_accepts_every_figure() -> None:
    data = build([*small_sweep(), make_record(6, RUNNING, steps=30), make_record(7, FAIL, loss=math.nan)])

    for figure in (*front_figures(data), *curve_figures(data), *param_figures(data)):
        graph_objects.Figure(figure.plotly)


def test_plotly_accepts_every_figure_with_baselines_and_perplexity() -> None:
    records = [scored(0, 3.5, 10), scored(1, 3.0, 100), *(replace(record, curve=()) for record in four_baselines()[:1])]
    data = build([*records, *four_baselines()[1:], scored(2, math.inf, 10, PRUNED)], lm_config("perplexity"))

    for figure in (*front_figures(data), *curve_figures(data), *param_figures(data)):
        graph_objects.Figure(figure.plotly)
        json.dumps(figure.plotly, allow_nan=False)


@pytest.mark.parametrize(
    ("metric", "axis"),
    [("exact_match", "Validation exact match (%)"), ("perplexity", "Validation perplexity (lower is better)")],
)
def test_every_figure_names_the_metric(metric: str, axis: str) -> None:
    data = build([scored(0, 1.0, 10)], lm_config(metric))

    curve, _ = curve_figures(data)

    assert {figure.plotly["layout"]["yaxis"]["title"]["text"] for figure in front_figures(data)} == {axis}
    assert curve.plotly["layout"]["yaxis"]["title"]["text"] == axis
    assert param_figures(data)[0].plotly["layout"]["yaxis"]["title"]["text"] == axis


def test_hovering_tells_the_metric_and_the_tasks_others() -> None:
    record = make_record(0, accuracy=0.5, others=(("perplexity", 3.456),))

    text = spaces(hover(data := build([record], lm_config()), data.rows[0]))

    assert "exact match 50.0% ± 2.5" in text
    assert "perplexity 3.46" in text


def test_baselines_are_diamonds_in_the_front_figures_and_left_out_of_the_settings_figures() -> None:
    data = build([*small_sweep(), *four_baselines()])

    front, _ = front_figures(data)
    (diamonds,) = [trace for trace in front.plotly["data"] if trace.get("name") == "baseline"]
    assert (diamonds["marker"]["symbol"], len(diamonds["x"])) == ("diamond-open", 4)
    for figure in param_figures(data):
        assert sum(len(trace["x"]) for trace in figure.plotly["data"]) == 5


def test_the_page_of_four_baselines_has_a_table_of_them_and_marks_them_among_the_trials() -> None:
    page = Page(report_html(build([*small_sweep(), *four_baselines()])))

    text = " ".join(page.text.split())
    assert "Baselines What else these data and steps give" in text
    assert "B1 zero-shot · B2 head only · B3 full fine-tuning · B4 LoRA without quantization" in text
    assert "They took 360 steps and 2 min of their own." in text
    assert page.tags.count("table") == 3


def test_a_report_without_baselines_says_nothing_of_them() -> None:
    text = Page(report_html(build(small_sweep()))).text

    assert "Baselines What else" not in " ".join(text.split())
    assert "baseline" not in text.partition("To run it again")[0]


def test_a_baseline_that_failed_is_among_the_failed_ones() -> None:
    spec = make_spec(-1, baseline=Baseline.FULL, lora=None, params=())

    data = build([finished(0, 0.8, 10), replace(failed(-1, detail="too large"), spec=spec)])

    assert "Baseline 1 (full fine-tuning) out of memory, before its first evaluation" in Page(report_html(data)).text
    assert build_views(data)[0].of(Standing.BASELINE) == ()


def test_the_page_tells_what_stopping_early_cost_with_a_table_of_the_audit() -> None:
    page = Page(report_html(build(audited_sweep())))

    text = " ".join(page.text.split())
    assert "What stopping early cost 4 of 9 trials were stopped" in text
    assert "A6 COMPLETE audit 30 dominated at its rung 50.0 ± 2.5 90.0 ± 2.5 yes" in spaces(text)
    assert "Trial 7 at step 30, no better than the floor: x < y" in text
    assert page.tags.count("table") == 3


def test_a_page_where_nothing_was_stopped_says_nothing_of_it() -> None:
    text = Page(report_html(build([finished(0, 0.8, 10), failed(1)]))).text

    assert "stopping early cost" not in text
    assert "audited" not in text


def test_the_table_of_trials_says_why_one_was_stopped_or_does_not_fit() -> None:
    table = trials_table(build([stopped(0, detail="trial 3 leads"), too_large(1), failed(2), finished(3, 0.8, 10)]))

    assert table.head[-1] == ("Ended early", "")
    assert [cells[-1].text for _, cells in table.rows] == [
        "dominated at its rung",
        "more memory than the limit",
        "out of memory",
        "",
    ]
    assert [cells[-1].title for _, cells in table.rows] == ["trial 3 leads", "takes 9 GiB", "", ""]


def test_a_trial_that_ran_out_of_memory_is_told_among_the_failed_ones_with_its_text() -> None:
    text = Page(report_html(build([too_large(0, "Traceback ...", FailReason.OUT_OF_MEMORY)]))).text

    assert "Trial 0 out of memory, before its first evaluation" in text
    assert "Traceback ..." in text


def test_the_page_of_a_language_model_names_its_metric_and_no_classes() -> None:
    data = build([make_record(0, accuracy=0.612)], lm_config())

    text = Page(report_html(data)).text.partition("To run it again")[0]
    assert "validation exact match" in text
    assert "Exact match (%)" in text
    assert "ccuracy" not in text
    assert "Most frequent completion" in dict(settings(data))
    assert not [name for name, _ in settings(data) if name.startswith("Classes")]


@pytest.mark.parametrize(
    ("quantization", "words"),
    [("nf4", "NF4 (QLoRA)"), ("fp4", "FP4 (QLoRA)"), ("int8", "8-bit integers"), ("none", "not quantized (LoRA)")],
)
def test_the_settings_say_how_the_base_is_stored(quantization: str, words: str) -> None:
    config = make_config(model={"name": "org/tiny", "quantization": quantization})

    assert words in dict(settings(build([], config)))["Base model"]


def test_the_settings_tell_how_examples_are_batched_and_which_were_left_out() -> None:
    training = {
        "task": "causal-lm",
        "max_steps": 120,
        "batch_size": 4,
        "gradient_accumulation_steps": 8,
        "packing": True,
    }
    config = lm_config(training=training, data={"name": "org/intents", "subset": "en", "validation": 400})
    inspection = make_inspection(num_duplicates=1_024, num_too_long=3)

    told = dict(settings(build_report_data(config, inspection, [], folder="x", version="1")))

    assert told["Training"] == "120 steps of 8 x 4 examples (gradient accumulation), short ones packed into rows"
    assert told["Examples left out"] == "1,024 whose input came before, 3 longer than 128 tokens"
    assert told["Data"] == "org/intents, subset en (hub)"
    assert told["Optimizer"] == "AdamW"


def test_a_searched_switch_gets_a_figure_with_both_its_values() -> None:
    space = make_config().search.space.model_dump() | {"use_rslora": {"choices": [False, True]}}
    config = make_config(search={"num_trials": 1, "space": space})
    spec = make_spec(0, params=(("use_rslora", True),))

    figures = {figure.title: figure for figure in param_figures(build([make_record(0, spec=spec)], config))}

    assert figures["Accuracy against use_rslora"].plotly["layout"]["xaxis"]["ticktext"] == ["false", "true"]


def test_a_trial_chosen_by_two_rules_gets_one_card() -> None:
    cards = build_cards(build(small_sweep()))

    assert [(card.row.number, len(card.rules)) for card in cards] == [(1, 2), (3, 1)]


def test_the_export_command_quotes_a_folder_with_a_space() -> None:
    data = build(small_sweep(), folder="my reports/small")

    assert export_command(data, 3) == "tuner export 'my reports/small' --to small-trial-3 --pick trial:3"


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = Page(report_html(build(small_sweep())))

    assert [load for load in page.loads if not load.startswith("#")] == ["data:,"]
    assert not {"img", "iframe"} & set(page.tags)


def test_the_page_names_every_trial_its_state_and_the_export_command() -> None:
    html = report_html(build(small_sweep()))

    rows = unpacked(html)["trials"]
    assert [(number, state) for number, _, state, *_ in rows] == [
        *((number, "COMPLETE") for number in range(4)),
        (4, "PRUNED"),
        (5, "FAIL"),
    ]
    assert "tuner export reports/small --to small-trial-1 --pick trial:1" in html
    assert "out of memory" in html


def test_markup_in_a_failure_is_shown_not_run() -> None:
    html = report_html(build([failed(0, detail="</pre><script>alert(1)</script>")]))

    assert "<script>alert(1)" not in html
    assert "</pre><script>alert(1)</script>" in Page(html).text


def test_markup_in_the_evidence_for_a_stop_is_shown_not_run() -> None:
    html = report_html(build([stopped(0, detail='"><script>alert(1)</script>')]))

    assert "<script>alert(1)" not in html
    assert '"><script>alert(1)</script>' in Page(html).text


def test_markup_in_a_name_can_not_leave_the_figures() -> None:
    config = make_config()
    space = config.search.space.model_dump() | {"target_modules": {"choices": {"</script><b>": ["query"]}}}
    config = make_config(search={"num_trials": 1, "space": space})
    spec = make_spec(0, params=(("target_modules", "</script><b>"),))

    assert "</script><b>" not in report_html(build([make_record(0, spec=spec)], config))


def unpacked(html: str) -> Any:
    """What the page's script finds."""
    coded = html.split('id="packed">')[1].split("</script>", maxsplit=1)[0]
    return json.loads(gzip.decompress(base64.b64decode(coded)), parse_constant=pytest.fail)


def test_a_loss_that_is_not_finite_leaves_valid_json_for_the_plots() -> None:
    html = report_html(build([make_record(0, FAIL, loss=math.nan)]))

    assert unpacked(html)["figures"]["curves"]


# Picture


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_picture_has_its_size_and_is_the_same_each_time() -> None:
    first, second = (front_pictures(build(small_sweep()))["png"] for _ in range(2))

    assert size_of(first) == (1600, 700)
    assert first == second


def test_the_picture_for_slides_is_an_svg_and_the_same_each_time() -> None:
    first, second = (front_pictures(build(small_sweep()))["svg"] for _ in range(2))

    assert b"<svg" in first
    assert first == second


def test_the_picture_is_drawn_with_baselines_and_for_perplexity() -> None:
    assert size_of(front_pictures(build([*small_sweep(), *four_baselines()]))["png"]) == (1600, 700)
    perplexity = build([scored(0, 3.5, 10), scored(1, 3.0, 99)], lm_config("perplexity"))
    assert size_of(front_pictures(perplexity)["png"]) == (1600, 700)


# Files


@pytest.mark.parametrize(
    "records",
    [
        [],
        [failed(0)],
        [make_record(0, RUNNING, curve=())],
        [make_record(0, PRUNED)],
        small_sweep(),
        four_baselines(),
        four_baselines()[:1],
        [*small_sweep(), *four_baselines()],
        [make_record(0, PAUSED), too_large(1)],
        [stopped(6), audit(-1, stopped(6))],
        audited_sweep(),
    ],
    ids=[
        "none",
        "failed",
        "running",
        "pruned",
        "small sweep",
        "baselines",
        "zero-shot",
        "baselines and small sweep",
        "paused and too large",
        "audit without finished trials",
        "audited",
    ],
)
def test_all_files_are_written_whatever_the_trials_came_to(tmp_path: Path, records: list[TrialRecord]) -> None:
    paths = write_report(tmp_path, make_config(), make_inspection(), records)

    assert paths == tuple(tmp_path / name for name in FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert all(path.stat().st_size > 0 for path in paths)


@pytest.mark.parametrize(
    ("metric", "scored", "reported", "is_near"),
    [
        (Metric.EXACT_MATCH, 0.61, 0.605, True),
        (Metric.EXACT_MATCH, 0.62, 0.605, False),
        (Metric.PERPLEXITY, 30.2, 30.0, True),
        (Metric.PERPLEXITY, 1.05, 1.03, False),
        (Metric.PERPLEXITY, math.nan, 3.0, False),
    ],
)
def test_an_export_may_score_a_point_or_a_hundredth_of_a_perplexity_otherwise(
    metric: Metric, scored: float, reported: float, is_near: bool
) -> None:
    assert is_as_reported(metric, scored, reported) is is_near


def test_a_report_that_can_not_be_built_leaves_the_old_one_whole(tmp_path: Path) -> None:
    write_report(tmp_path, make_config(), make_inspection(), small_sweep())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    mixed = [*small_sweep(), make_record(6, memory_kind=MemoryKind.CUDA_ALLOCATED)]

    with pytest.raises(ValueError, match="two kinds of memory"):
        write_report(tmp_path, make_config(), make_inspection(), mixed)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_report_does_not_depend_on_the_order_of_the_records(tmp_path: Path) -> None:
    write_report(tmp_path, make_config(), make_inspection(), small_sweep())
    before = [(tmp_path / name).read_bytes() for name in FILES]

    write_report(tmp_path, make_config(), make_inspection(), small_sweep()[::-1])

    assert [(tmp_path / name).read_bytes() for name in FILES] == before


def test_curves_of_several_rungs_keep_their_points() -> None:
    curve = tuple(make_metrics(steps=steps, accuracy=accuracy) for steps, accuracy in ((30, 0.5), (120, 0.75)))
    record = replace(finished(0, 0.75, 10), curve=curve)

    accuracy, _ = curve_figures(build([record]))

    assert (accuracy.plotly["data"][0]["x"], accuracy.plotly["data"][0]["y"]) == ([30, 120, None], [50, 75, None])


PROBE = """
import sys
from pathlib import Path
from tests.builders import make_config, make_inspection, make_record
from tuner.report import write_report
write_report(Path(sys.argv[1]), make_config(), make_inspection(), [make_record(0)])
print(*sorted({"torch", "ray", "transformers", "sklearn"} & set(sys.modules)))
"""


def test_a_report_of_few_trials_needs_neither_torch_nor_ray_nor_transformers_nor_scikit_learn(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (result.stdout.strip(), result.stderr) == ("", "")
    assert (tmp_path / "report.html").exists()
