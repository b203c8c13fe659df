"""Time and size of the report on 10,000 trials: `.venv/bin/python benchmarks/report/large.py`. Run by hand.

Each repeat is a process of its own, as `tuner report` is, from a journal that is written first. The page is opened in Chromium.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import sync_playwright  # noqa: E402 -- after the path

from tests.browser.conftest import FLAGS  # noqa: E402 -- as above
from tests.synthetic import (  # noqa: E402 -- as above
    synthetic_config,
    synthetic_inspection,
    synthetic_records,
    with_scores,
    write_journal,
)
from tuner.front import front, objectives_of  # noqa: E402 -- as above

NUM_TRIALS, NUM_REPEATS = 10_000, 5
PARTS = """
import sys, time
from pathlib import Path
begun = time.perf_counter()
from tuner import sweep
from tuner.report import write_report
imported = time.perf_counter()
loaded = sweep.load(Path(sys.argv[1]))
read = time.perf_counter()
write_report(loaded.folder, loaded.config, loaded.inspection, loaded.records)
print(imported - begun, read - imported, time.perf_counter() - read)
"""


def main() -> None:
    """Print medians, and the size of each file."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "large"
        config, records = synthetic_config(NUM_TRIALS), synthetic_records(NUM_TRIALS)
        best = [record.number for record in front(records, objectives_of(config))]
        write_journal(folder, config, synthetic_inspection(), with_scores(records, best))
        print(json.dumps(measured(folder), indent=1))


def measured(folder: Path) -> dict[str, object]:
    """Seconds of each part, of the whole command and of opening the page; bytes of each file."""
    parts = [
        [float(word) for word in run([sys.executable, "-c", PARTS, str(folder)]).split()] for _ in range(NUM_REPEATS)
    ]
    whole = []
    for _ in range(NUM_REPEATS):
        begun = time.perf_counter()
        run([str(ROOT / ".venv/bin/tuner"), "report", str(folder)])
        whole.append(time.perf_counter() - begun)
    names = ("import_s", "load_s", "write_report_s")
    return {
        **{name: summary(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)},
        "tuner_report_s": summary(whole),
        "page": opened(folder / "report.html"),
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.suffix},
    }


def opened(page_file: Path) -> dict[str, object]:
    """Seconds until the table, the first plot and all plots are there."""
    marks = {
        "table_s": "#trials-table tbody tr",
        "first_plot_s": ".plot[data-drawn]",
        "all_plots_s": "body[data-ready=yes]",
    }
    found: dict[str, list[float]] = {name: [] for name in marks}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for _ in range(NUM_REPEATS):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            begun = time.perf_counter()
            page.goto(page_file.as_uri(), wait_until="commit")
            for name, selector in marks.items():
                page.wait_for_selector(selector)
                found[name].append(time.perf_counter() - begun)
            page.close()
        browser.close()
    return {name: summary(values) for name, values in found.items()}


def run(command: list[str]) -> str:
    """A command's output."""
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def summary(values: list[float] | tuple[float, ...]) -> dict[str, float]:
    """Median and ends."""
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


if __name__ == "__main__":
    main()
