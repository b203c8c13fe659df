"""The model card beside an exported adapter. Pure text; runs on the driver."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from tuner.sweep import Sweep
    from tuner.trial import TrialRecord


def model_card(sweep: Sweep, record: TrialRecord, pick: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        sweep: Where the adapter comes from.
        record: Its trial, finished.
        pick: The rule that chose it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tuner.exporting"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- Markdown, not HTML
    )
    metrics = record.last
    assert metrics is not None  # noqa: S101 -- trials on the front have reported
    return environment.get_template("card.md.j2").render(
        config=sweep.config,
        inspection=sweep.inspection,
        record=record,
        metrics=metrics,
        num_trials=len(sweep.records),
        pick=pick,
        version=metadata.version("tuner"),
    )
