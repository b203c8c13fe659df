"""The report in a real browser: nothing complains, and selection, hover, filter, sorting and the keyboard work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import KINDS, PHONE, WIDE, Open
from tests.builders import make_inspection, make_record, make_spec
from tests.synthetic import synthetic_config, synthetic_inspection, synthetic_records
from tuner.report import write_report
from tuner.report.compare import compare
from tuner.report.compare_page import write_comparison
from tuner.report.writing import report_data
from tuner.trial import FailReason, Outcome, StopReason, TrialState

HOSTILE = '</script><img src=x onerror="window.hacked = true"><b>\'`&amp;${1}'


def point_of(page: Page, section: str, name: str) -> dict[str, float]:
    """Where the first point of a series is on the screen, and which trial it is."""
    found: dict[str, float] = page.evaluate(
        """([section, name]) => {
            const plot = document.querySelector(`.plot[data-section=${section}]`);
            const trace = plot.data.find((trace) => trace.name === name && trace.x.length > 0);
            plot.scrollIntoView({ block: "center" });
            const box = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            return {
                x: box.x + xaxis._offset + xaxis.d2p(trace.x[0]),
                y: box.y + yaxis._offset + yaxis.d2p(trace.y[0]),
                number: trace.customdata[0],
            };
        }""",
        [section, name],
    )
    return found


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_page_makes_the_browser_complain_or_reaches_beyond_the_screen(
    reports: dict[str, Path], open_page: Open, kind: str, size: tuple[int, int]
) -> None:
    opened = open_page(reports[kind], size)

    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert opened.page.locator("h1").inner_text() == kind


@pytest.mark.parametrize("kind", ["small", "large"])
def test_a_click_on_a_point_selects_its_trial_everywhere_and_escape_lets_go(
    reports: dict[str, Path], open_page: Open, kind: str
) -> None:
    page = open_page(reports[kind]).page
    point = point_of(page, "front", "on the front")

    page.mouse.move(point["x"], point["y"])
    page.mouse.click(point["x"], point["y"])

    expect(page.locator("#selected")).to_have_text("1 trial selected")
    expect(page.locator("#trials-table tbody tr")).to_have_count(1)
    expect(page.locator("#trials-table tbody .pick")).to_have_text(f"{int(point['number'])}")
    expect(page.locator("#spec")).to_contain_text("learning_rate")
    selected = page.evaluate(
        """() => [...document.querySelectorAll(".plot[data-drawn]")]
            .filter((plot) => plot.data.some((trace) => trace.selectedpoints?.length)).length"""
    )
    assert selected > 1
    page.keyboard.press("Escape")
    expect(page.locator("#selection")).to_be_hidden()
    assert page.locator("#trials-table tbody tr").count() > 1


@pytest.mark.parametrize("kind", ["small", "large"])
def test_hovering_tells_the_whole_spec(reports: dict[str, Path], open_page: Open, kind: str) -> None:
    page = open_page(reports[kind]).page
    point = point_of(page, "front", "on the front")

    page.mouse.move(point["x"] - 30, point["y"] - 30)
    page.mouse.move(point["x"], point["y"], steps=5)

    label = page.locator(".plot[data-section=front] .hoverlayer .hovertext").first
    expect(label).to_contain_text(f"Trial {int(point['number'])}")
    expect(label).to_contain_text("lora_dropout")


@pytest.mark.parametrize("kind", ["small", "large"])
def test_the_filter_leaves_the_rows_that_hold_every_word(reports: dict[str, Path], open_page: Open, kind: str) -> None:
    page = open_page(reports[kind]).page
    summary = json.loads(reports[kind].with_name("summary.json").read_text())

    page.locator("#filter").fill("front complete")

    expect(page.locator("#trials-table tbody tr")).to_have_count(len(summary["front"]))
    page.locator("#filter").fill("r:8 pruned")
    page.wait_for_function("document.querySelectorAll('#trials-table tbody tr').length > 0")
    cells = page.locator("#trials-table tbody tr td .badge").all_inner_texts()
    assert set(cells) == {"PRUNED"}
    page.locator("#filter").fill("no such word")
    expect(page.locator("#trials-table tbody tr")).to_have_count(0)


def test_a_large_table_is_shown_piece_by_piece(reports: dict[str, Path], open_page: Open) -> None:
    page = open_page(reports["large"]).page

    expect(page.locator("#shown")).to_contain_text("100 of 10,004 shown")
    page.locator("#more").click()
    expect(page.locator("#trials-table tbody tr")).to_have_count(1100)


def test_a_heading_sorts_by_number_and_back(reports: dict[str, Path], open_page: Open) -> None:
    page = open_page(reports["small"]).page
    heading = page.locator("#trials-table thead button", has_text="Accuracy (%)").first
    column = heading.evaluate("(button) => button.parentNode.cellIndex")

    def values() -> list[float]:
        texts = page.locator(f"#trials-table tbody tr td:nth-child({column + 1})").all_inner_texts()
        return [float(text.split("\N{NO-BREAK SPACE}")[0]) for text in texts if text]

    heading.click()
    assert values() == sorted(values())
    heading.click()
    assert values() == sorted(values(), reverse=True)


def test_the_keyboard_alone_sorts_and_selects(reports: dict[str, Path], open_page: Open) -> None:
    page = open_page(reports["small"]).page

    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.locator("#trials-table thead button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#trials-table thead th").first).to_have_attribute("aria-sort", "ascending")
    page.locator("#trials-table tbody .pick").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#selected")).to_have_text("1 trial selected")
    expect(page.locator("#trials-table tbody .pick").first).to_have_attribute("aria-pressed", "true")


def test_one_selected_trial_shows_its_own_ranks(reports: dict[str, Path], open_page: Open) -> None:
    page = open_page(reports["small"]).page

    page.locator("table.selectable .pick").first.click()

    number = page.locator("table.selectable .pick").first.inner_text()
    note = page.locator("figure", has_text="Ranks on the front").locator(".note")
    expect(note).to_have_text(f"0: not adapted. Trial {number}.")


def test_every_plot_has_a_name_for_screen_readers(reports: dict[str, Path], open_page: Open) -> None:
    page = open_page(reports["small"]).page

    names = page.eval_on_selector_all(".plot", "(plots) => plots.map((plot) => plot.getAttribute('aria-label'))")
    assert len(names) > 10
    assert all(names)


def test_dark_is_dark_and_light_is_light(reports: dict[str, Path], open_page: Open) -> None:
    def brightness(scheme: str) -> int:
        page = open_page(reports["small"], scheme=scheme).page
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(","))

    assert brightness("dark") < 150
    assert brightness("light") > 600


def test_text_from_users_is_text(tmp_path: Path, open_page: Open) -> None:
    space = {
        "r": 8,
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "target_modules": {"choices": {HOSTILE: ["query"], "plain": ["value"]}},
    }
    config = synthetic_config(4).model_copy()
    config = type(config).model_validate(
        config.model_dump()
        | {
            "model": {"name": f"/models/{HOSTILE}"},
            "data": {"path": f"/data/{HOSTILE}.jsonl", "validation": 40, "text": HOSTILE},
            "search": {"num_trials": 4, "space": space},
        }
    )
    params = (("learning_rate", 1e-3), ("target_modules", HOSTILE))
    stopped = Outcome(state=TrialState.PRUNED, stop=StopReason.DOMINATED, detail=HOSTILE)
    failed = Outcome(state=TrialState.FAIL, reason=FailReason.EXCEPTION, detail=HOSTILE)
    records = [
        make_record(0, spec=make_spec(0, params=params)),
        make_record(1, accuracy=0.9, trainable_params=20_000, spec=make_spec(1, params=params)),
        make_record(2, TrialState.PRUNED, spec=make_spec(2, params=params), outcome=stopped),
        make_record(3, TrialState.FAIL, spec=make_spec(3, params=params), outcome=failed),
    ]
    inspection = make_inspection(labels=(HOSTILE, "b"), hardware=HOSTILE, versions=((HOSTILE, HOSTILE),))
    write_report(tmp_path, config, inspection, records)

    opened = open_page(tmp_path / "report.html")
    page = opened.page
    page.locator("#trials-table tbody .pick").first.click()
    point = point_of(page, "front", "on the front")
    page.mouse.move(point["x"], point["y"], steps=3)

    assert opened.complaints == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert HOSTILE in page.locator("#trials-table").inner_text()
    assert HOSTILE in page.locator("#spec").inner_text()


def test_several_sweeps_share_a_page(tmp_path: Path, open_page: Open) -> None:
    config, inspection = synthetic_config(40), synthetic_inspection()
    reports = [
        report_data(tmp_path / f"sweep-{seed}", config, inspection, synthetic_records(40, seed)) for seed in (1, 2, 3)
    ]
    page_file, _ = write_comparison(compare(reports), tmp_path)

    for size in (WIDE, PHONE):
        opened = open_page(page_file, size)
        assert opened.complaints == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert opened.page.locator("tbody tr").count() == 3
        assert opened.page.locator(".plot[data-drawn]").count() == 2
