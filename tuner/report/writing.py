"""Writes the report's files, each whole or not at all. Runs on the driver."""

from __future__ import annotations

import importlib.metadata
import os
from typing import TYPE_CHECKING

from tuner.report.data import ReportData, build_report_data
from tuner.report.markdown import report_md
from tuner.report.page import report_html
from tuner.report.summary import summary_json
from tuner.report.tables import front_csv, trials_csv
from tuner.without_gc import without_gc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tuner.config import SweepConfig
    from tuner.trial import Inspection, TrialRecord


def report_data(
    folder: Path, config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord]
) -> ReportData:
    """All that a report shows, as values; see `write_report`."""
    version = importlib.metadata.version("tuner")
    return build_report_data(config, inspection, records, folder=str(folder), version=version)


def write_report(
    folder: Path,
    config: SweepConfig,
    inspection: Inspection,
    records: Sequence[TrialRecord],
    *,
    refresh_s: int | None = None,
) -> tuple[Path, ...]:
    """Write trials.csv, front.csv, summary.json, report.html, report.md, front.png and front.svg.

    The same arguments give the same bytes: no clock and nothing of this machine is in them.

    Args:
        folder: The sweep's folder, there already. The page shows it in its commands as it is given here.
        config: The sweep.
        inspection: What a worker found in the data.
        records: Every trial of the study, in any order; none need have finished.
        refresh_s: Seconds after which a browser loads the page anew, while a sweep runs; never by default.

    Returns:
        The files written.

    Raises:
        ValueError: Trials had their memory measured in different ways, so that they can't be compared.
        OSError: A file can't be written; files of an earlier report are then still whole.
    """
    with without_gc():
        contents = _contents(report_data(folder, config, inspection, records), refresh_s)
    return tuple(replace_file(folder / name, content) for name, content in contents.items())


def _contents(data: ReportData, refresh_s: int | None) -> dict[str, bytes]:
    from tuner.report.picture import front_pictures  # noqa: PLC0415 -- matplotlib, which those who only want values need not

    return {
        "trials.csv": trials_csv(data).encode(),
        "front.csv": front_csv(data).encode(),
        "summary.json": summary_json(data).encode(),
        "report.html": report_html(data, refresh_s=refresh_s).encode(),
        "report.md": report_md(data).encode(),
        **{f"front.{ending}": picture for ending, picture in front_pictures(data).items()},
    }


def replace_file(path: Path, content: bytes) -> Path:
    """Write beside the file and put it in its place in one step, so that a kill leaves no half file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
