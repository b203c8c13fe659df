"""Takes the pictures of docs/report.md from reports/example: `python docs/screenshots.py`. Run by hand; needs Chromium."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "reports" / "example" / "report.html"
PICTURES = {
    "docs/report.png": (1440, 1370, "light"),
    "docs/report/quickstart-1440.png": (1440, 2600, "light"),
    "docs/report/quickstart-dark.png": (1440, 2600, "dark"),
    "docs/report/quickstart-390.png": (390, 3600, "light"),
}
"""File -> width of the window, height of the picture from the page's top, both in pixels, and colour scheme."""
NUM_COLOURS = 128
"""Enough for a page of few colours, and a third of the size."""


def take(browser: Browser, file: Path, width: int, height: int, scheme: str) -> None:
    """Write one picture."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(PAGE.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    whole = Image.open(io.BytesIO(page.screenshot(full_page=True)))
    top = whole.crop((0, 0, whole.width, min(whole.height, height)))
    file.parent.mkdir(exist_ok=True)
    top.convert("RGB").quantize(NUM_COLOURS).save(file, optimize=True)
    page.close()


def main() -> None:
    """Write all pictures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for file, (width, height, scheme) in PICTURES.items():
            take(browser, ROOT / file, width, height, scheme)
        browser.close()


if __name__ == "__main__":
    main()
