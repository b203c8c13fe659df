"""A real browser, and pages of sweeps small and large."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.synthetic import synthetic_config, synthetic_inspection, synthetic_records, with_scores
from tuner.front import front, objectives_of
from tuner.report import write_report
from tuner.trial import FailReason, Outcome, TrialRecord, TrialState

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WIDE, PHONE = (1440, 900), (390, 844)


@dataclass
class Opened:
    """A page that was opened, with all that the browser complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None and not os.environ.get("TUNER_REQUIRE_BROWSER"):
        pytest.skip("no Chromium on this machine")
    assert found, "TUNER_REQUIRE_BROWSER is set, and there is no Chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file at a size, waits until everything is drawn, and collects what the browser complains of."""
    contexts = []

    def opened(file: Path, size: tuple[int, int] = WIDE, *, scheme: str = "light", timeout_s: float = 60) -> Opened:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True)  # type: ignore[arg-type]
        contexts.append(context)
        result = Opened(page=context.new_page())
        result.page.on(
            "console", lambda message: result.complaints.append(message.text) if message.type == "error" else None
        )
        result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
        result.page.goto(file.as_uri())
        result.page.wait_for_selector("body[data-ready=yes]", timeout=1000 * timeout_s)
        return result

    yield opened
    for context in contexts:
        context.close()


def failed(record: TrialRecord) -> TrialRecord:
    outcome = Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail="training loss nan at step 3")
    return TrialRecord(spec=record.spec, state=TrialState.FAIL, outcome=outcome)


def sweep_of(kind: str) -> list[TrialRecord]:
    match kind:
        case "empty":
            return []
        case "one-trial":
            return next([record] for record in synthetic_records(50) if record.state is TrialState.COMPLETE)
        case "all-failed":
            return [failed(record) for record in synthetic_records(12)]
        case _:
            records = synthetic_records(10_000 if kind == "large" else 30)
            best = front(records, objectives_of(synthetic_config(1)))
            return with_scores(records, [record.number for record in best])


KINDS = ("small", "empty", "one-trial", "all-failed", "large")


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of sweep -> its page."""
    pages = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        records = sweep_of(kind)
        config = synthetic_config(max(1, len(records)), name=kind)
        write_report(folder, config, synthetic_inspection(), records)
        pages[kind] = folder / "report.html"
    return pages
