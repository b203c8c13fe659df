"""What a process spends its time on: a line of JSON for each stretch, in a file of its own. Used by both programs."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = "BENCH_PHASES"
"""Environment variable that names the folder of the files."""


Instant = tuple[float, float]
"""(time of day, processor time of this process) in seconds."""


def now() -> Instant:
    """The clocks as they stand."""
    return time.time(), time.process_time()


def note(phase: str, begun: Instant) -> None:
    """A stretch that ends now.

    Args:
        phase: What it was spent on.
        begun: What `now` gave at its begin.
    """
    ended_s, cpu_s = now()
    line = {"phase": phase, "begun_s": begun[0], "ended_s": ended_s, "cpu_s": cpu_s - begun[1]}
    with (Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def timed(phase: str) -> Iterator[None]:
    """Note the time that is spent inside."""
    begun = now()
    yield
    note(phase, begun)
