"""The report: its data by value, its tables exactly, its page parsed, its picture by size."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from plotly import graph_objects

from tests.builders import MIB, make_config, make_inspection, make_metrics, make_record, make_spec
from tuner.report import write_report
from tuner.report.data import ReportData, Standing, build_report_data
from tuner.report.figures import curve_figures, front_figures, param_figures
from tuner.report.labels import Font, place_labels
from tuner.report.page import build_cards, export_command, report_html
from tuner.report.picture import front_png
from tuner.report.tables import front_csv, summary_json, trials_csv
from tuner.report.views import build_views, log_ticks
from tuner.report.words import dimension_of, duration, headline, short_count
from tuner.trial import FailReason, MemoryKind, Outcome, TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tuner.config import SweepConfig

FILES = ("trials.csv", "front.csv", "summary.json", "report.html", "front.png")
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


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


def build(
    records: Sequence[TrialRecord], config: SweepConfig | None = None, folder: str = "reports/small"
) -> ReportData:
    return build_report_data(config or make_config(), make_inspection(), records, folder=folder, version="1.2.3")


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

    assert picks == {"knee": 1, "most-accurate": 3, "cheapest-within:0.01": 1}


def test_states_are_counted_with_zeros() -> None:
    assert build(small_sweep()).num_by_state == {RUNNING: 0, COMPLETE: 4, PRUNED: 1, FAIL: 1}


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


# Tables


def test_trials_csv_is_exactly_this() -> None:
    records = [finished(0, 0.845, 1_000), failed(1)]

    assert trials_csv(build(records)) == (
        "number,state,steps,accuracy,loss,trainable_params,peak_memory_gib,memory_kind,train_s,seed,"
        "r,learning_rate,reason\n"
        "0,COMPLETE,120,0.845,0.6,1000,0.097656,measured: CPU allocated,30.0,0,8,0.001,\n"
        "1,FAIL,,,,,,,,0,8,0.001,out of memory\n"
    )


def test_front_csv_has_no_reason_and_is_sorted_by_cost() -> None:
    lines = front_csv(build([finished(0, 0.9, 2_000), finished(1, 0.8, 1_000)])).splitlines()

    assert lines[0].endswith("seed,r,learning_rate")
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "0"]


def test_a_parameter_that_was_not_sampled_is_an_empty_cell() -> None:
    spec = make_spec(0, params=(("learning_rate", 0.002),))

    (_, line) = front_csv(build([make_record(0, spec=spec)])).splitlines()

    assert line.endswith(",0,,0.002")


def test_accuracy_survives_the_csv_unrounded() -> None:
    (_, line) = front_csv(build([finished(0, 1 / 3, 10)])).splitlines()

    assert float(line.split(",")[3]) == 1 / 3


def test_summary_json_holds_the_sweep_in_numbers() -> None:
    assert json.loads(summary_json(build(small_sweep()))) == {
        "name": "small",
        "tuner_version": "1.2.3",
        "objectives": ["accuracy", "trainable_params", "peak_memory_gib"],
        "states": {"RUNNING": 0, "COMPLETE": 4, "PRUNED": 1, "FAIL": 1},
        "front": [0, 1, 3],
        "picks": {"knee": 1, "most-accurate": 3, "cheapest-within:0.01": 1},
        "steps": {"spent": 510, "without_pruning": 600},
        "memory_kind": "measured: CPU allocated",
        "num_validation": 400,
        "majority_share": 0.55,
    }


# Words


def test_the_headline_weighs_the_best_against_the_cheapest_near_it() -> None:
    assert headline(build(small_sweep())).replace("\N{NO-BREAK SPACE}", " ") == (
        "Trial 3 is the most accurate: 85.0% ± 1.8. "
        "Trial 1 reaches 84.5% with 4.0 times fewer trainable parameters and the same peak memory. "
        "The 0.5 points between the two are within the noise of 400 validation examples."
    )


def test_the_headline_of_a_sweep_without_a_finished_trial_says_so() -> None:
    assert (
        headline(build([failed(0), make_record(1, PRUNED)])) == "No trial has finished yet (1 stopped early, 1 failed)."
    )
    assert headline(build([])) == "No trial has finished yet."


def test_a_front_of_one_is_called_the_whole_front() -> None:
    assert headline(build([finished(7, 0.8, 10)])).startswith("Trial 7 is the whole front")


def test_the_headline_tells_what_the_cheap_trial_saves_and_what_it_costs() -> None:
    text = headline(build([finished(0, 0.845, 7_000, mib=110), finished(1, 0.85, 10_000, mib=100)]))

    assert "with 30% fewer trainable parameters and 10% more peak memory." in text


def test_the_headline_names_no_second_trial_where_none_is_close() -> None:
    text = headline(build([finished(0, 0.5, 1_000), finished(1, 0.85, 10_000)]))

    assert text.endswith("No cheaper trial on the front comes within 1 point of it.")


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "60 s"), (600, "10 min"), (9_000, "2.5 h")])
def test_durations_are_told_in_a_fitting_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0.5, "0.5"), (12_340, "12.34k"), (2_000_000, "2M")])
def test_large_counts_are_shortened(number: float, text: str) -> None:
    assert short_count(number) == text


def test_a_fixed_setting_is_no_dimension() -> None:
    with pytest.raises(ValueError, match="lora_dropout is not searched"):
        dimension_of(make_config().search.space, "lora_dropout")


# Views


def test_the_stepped_line_is_the_best_accuracy_within_a_cost() -> None:
    view, _ = build_views(build([finished(0, 0.5, 10), finished(1, 0.75, 100), finished(2, 0.25, 1_000)]))

    assert view.line[:-1] == ((10, 50), (100, 50), (100, 75))
    assert view.line[-1] == (view.x_span[1], 75)


def test_a_cost_that_is_no_objective_gets_points_but_no_line() -> None:
    config = make_config(objectives={"memory": False})

    _, memory = build_views(build([finished(0, 0.5, 10)], config))

    assert memory.line == ()
    assert len(memory.points) == 1
    assert memory.title.endswith("(not an objective of this sweep)")


def test_error_bars_are_one_binomial_standard_error() -> None:
    view, _ = build_views(build([finished(0, 0.8, 10)]))

    assert view.points[0].error == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 400))


def test_a_trial_far_below_the_front_is_counted_instead_of_squeezing_it() -> None:
    collapsed = make_record(9, PRUNED, accuracy=0.1)

    view, _ = build_views(build([finished(0, 0.80, 10), finished(1, 0.85, 100), collapsed]))

    assert view.y_span[0] > 70
    assert view.num_below == 1


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


# Page


def test_plotly_accepts_every_figure() -> None:
    data = build([*small_sweep(), make_record(6, RUNNING, steps=30), make_record(7, FAIL, loss=math.nan)])

    for figure in (*front_figures(data), *curve_figures(data), *param_figures(data)):
        graph_objects.Figure(figure.plotly)


def test_a_trial_chosen_by_two_rules_gets_one_card() -> None:
    cards = build_cards(build(small_sweep()))

    assert [(card.row.number, len(card.rules)) for card in cards] == [(1, 2), (3, 1)]


def test_the_export_command_quotes_a_folder_with_a_space() -> None:
    data = build(small_sweep(), folder="my reports/small")

    assert export_command(data, 3) == "tuner export 'my reports/small' --to small-trial-3 --pick trial:3"


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = Page(report_html(build(small_sweep())))

    assert page.loads == []
    assert not {"link", "img", "iframe"} & set(page.tags)


def test_the_page_names_every_trial_its_state_and_the_export_command() -> None:
    html = report_html(build(small_sweep()))

    for number in range(6):
        assert f'data-key="{number}">{number}</th>' in html
    assert "tuner export reports/small --to small-trial-1 --pick trial:1" in html
    assert "out of memory" in html


def test_markup_in_a_failure_is_shown_not_run() -> None:
    html = report_html(build([failed(0, detail="</pre><script>alert(1)</script>")]))

    assert "<script>alert(1)" not in html
    assert "</pre><script>alert(1)</script>" in Page(html).text


def test_markup_in_a_name_can_not_leave_the_figures() -> None:
    config = make_config()
    space = config.search.space.model_dump() | {"target_modules": {"choices": {"</script><b>": ["query"]}}}
    config = make_config(search={"num_trials": 1, "space": space})
    spec = make_spec(0, params=(("target_modules", "</script><b>"),))

    assert "</script><b>" not in report_html(build([make_record(0, spec=spec)], config))


def test_a_head_without_adapter_is_named_as_such() -> None:
    assert "the classification head alone" in report_html(
        build([make_record(0, spec=make_spec(0, lora=None, params=()))])
    )


def test_a_loss_that_is_not_finite_leaves_valid_json_for_the_plots() -> None:
    html = report_html(build([make_record(0, FAIL, loss=math.nan)]))

    figures = html.split('id="figures">')[1].split("</script>")[0]
    assert json.loads(figures, parse_constant=pytest.fail)["curves"]


# Picture


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def test_the_picture_has_its_size_and_is_the_same_each_time() -> None:
    first, second = front_png(build(small_sweep())), front_png(build(small_sweep()))

    assert size_of(first) == (1600, 700)
    assert first == second


# Files


@pytest.mark.parametrize(
    "records",
    [[], [failed(0)], [make_record(0, RUNNING, curve=())], [make_record(0, PRUNED)], small_sweep()],
    ids=["none", "failed", "running", "pruned", "small sweep"],
)
def test_all_files_are_written_whatever_the_trials_came_to(tmp_path: Path, records: list[TrialRecord]) -> None:
    paths = write_report(tmp_path, make_config(), make_inspection(), records)

    assert paths == tuple(tmp_path / name for name in FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert all(path.stat().st_size > 0 for path in paths)


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

    assert (accuracy.plotly["data"][0]["x"], accuracy.plotly["data"][0]["y"]) == ([30, 120], [50, 75])


PROBE = """
import sys
from pathlib import Path
from tests.builders import make_config, make_inspection, make_record
from tuner.report import write_report
write_report(Path(sys.argv[1]), make_config(), make_inspection(), [make_record(0)])
print(*sorted({"torch", "ray", "transformers", "pandas"} & set(sys.modules)))
"""


def test_a_report_needs_neither_torch_nor_ray_nor_transformers_nor_pandas(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, str(tmp_path)], capture_output=True, text=True, check=False
    )

    assert (result.stdout.strip(), result.stderr) == ("", "")
    assert (tmp_path / "report.html").exists()
