"""A trial's pulse: it shows that steps are being made, and asks whether to go on. Runs on the worker.

A trial that makes no step for too long is ended by a thread of the interpreter's own, which writes down where each thread of
the process stands. That works while Python hangs in a lock or in a library's code, and needs neither driver nor network.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator
from pathlib import Path

HUNG = "hung.txt"
"""Where each thread was when a trial made no step for too long; empty or missing if that has not happened."""
HUNG_BEFORE = "hung-before.txt"
"""The same of the first time, once another process has taken the trial on."""


def second_hang(place: Path) -> str | None:
    """Where a trial hung, if it did so again after another process had taken it on; it is not to be tried a third time.

    Args:
        place: The folder of the trial's checkpoints.
    """
    if (place / HUNG_BEFORE).is_file() and (found := _written(place / HUNG)):
        return found
    return None


def hang_remarks(place: Path) -> tuple[str, ...]:
    """What people should know of a first hang: said once."""
    if not _written(place / HUNG):
        return ()
    (place / HUNG).rename(place / HUNG_BEFORE)
    return ("made no step within the limit, so its process was ended and another took it on",)


def _written(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def never() -> bool:
    """Nobody asks a trial to stop."""
    return False


class Pulse:
    """What beats at each step.

    Args:
        limit_s: Seconds without a beat after which the process is ended; None for never.
        is_interrupted: Whether trials are asked to save their state and stop.
    """

    def __init__(self, limit_s: float | None = None, is_interrupted: Callable[[], bool] = never) -> None:
        self._limit_s = limit_s
        self._file: int | None = None
        self.is_interrupted = is_interrupted

    def beat(self) -> None:
        """Something was done; counting begins anew."""
        if self._limit_s is not None and self._file is not None:
            faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._file)

    @contextlib.contextmanager
    def watching(self, file: Path | None) -> Iterator[None]:
        """End the process if nothing beats for too long.

        Args:
            file: Where to write what each thread is at then; nothing is ended without one.
        """
        if file is None or self._limit_s is None:
            yield
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            self._file = stream.fileno()
            self.beat()
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._file = None


UNWATCHED = Pulse()
"""Ends nothing, and asks for nothing."""
