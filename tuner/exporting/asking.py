"""Asks a worker's module one thing, in a process of its own: JSON in, JSON out. Runs on the driver."""

from __future__ import annotations

import subprocess
import sys

from tuner.errors import ExportError


def answer_of(module: str, asked: str) -> str:
    """What the module says to one line.

    Raises:
        ExportError: The process has died; with the last that it said.
    """
    done = subprocess.run(  # noqa: S603 -- a module of our own
        [sys.executable, "-m", module], input=asked, capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        msg = f"the process of {module} has died: {said[0]}"
        raise ExportError(msg)
    return done.stdout
