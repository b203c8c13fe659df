"""Writes a sweep's report anew whenever its journal grows, while another process runs the sweep. Runs on the driver."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tuner.folder import SweepFolder
from tuner.report import write_report
from tuner.sweep import Sweep, load

EVERY_S = 10.0


def watch(folder: Path | str, *, every_s: float = EVERY_S, sleep: Callable[[float], None] = time.sleep) -> Sweep:
    """Keep a report up to date until nobody works on the sweep any more; browsers load the page anew by themselves.

    Args:
        folder: The sweep's folder.
        every_s: Seconds between two looks at the journal.
        sleep: Waits.

    Returns:
        The sweep as it is at the end; its page no longer reloads.

    Raises:
        FolderError: There is no sweep in the folder.
    """
    place = SweepFolder(Path(folder))
    seen: int | None = -1
    place.require_sweep()
    try:
        while place.is_in_use():
            size = place.journal.stat().st_size if place.journal.exists() else None
            if size is None or size != seen:  # a database does not tell whether there is more
                seen = size
                _write(load(folder), refresh_s=max(1, round(every_s)))
            sleep(every_s)
    finally:  # after Ctrl-C too, or the page would go on looking for a newer one
        swept = load(folder)
        _write(swept, refresh_s=None)
    return swept


def _write(swept: Sweep, *, refresh_s: int | None) -> None:
    write_report(swept.folder, swept.config, swept.inspection, swept.records, refresh_s=refresh_s)
