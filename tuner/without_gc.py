"""Python's search for cycles, put off while many values are made that are in none. Runs on the driver."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """A journal or a report of ten thousand trials is a million small values; to look for cycles takes up to half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
