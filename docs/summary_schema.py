"""Writes docs/summary.schema.json, the schema of a report's summary.json: `python docs/summary_schema.py`. Run by hand."""

from __future__ import annotations

import json
from pathlib import Path

from tuner.report.summary import schema

FILE = Path(__file__).with_name("summary.schema.json")


def text() -> str:
    """The schema as it is written."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"wrote {FILE}")
