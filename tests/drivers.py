"""Drivers in processes of their own, to be interrupted and killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from tuner.trial import TrialRecord

WAIT_S = 180.0
"""Longer than any driver here needs, with other work beside it."""


class Driver:
    """`tuner` in a process group of its own, as a terminal would start it.

    Args:
        words: What follows `tuner`.
        module: Run instead of `tuner`.
        environment: More variables.
    """

    def __init__(self, *words: str, module: str = "tuner", environment: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (environment or {}),
            start_new_session=True,
            preexec_fn=_listen_to_interrupts,  # noqa: PLW1509 -- one thread
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, at: str) -> None:
        """Wait until a line holds these words."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: any(at in line for line in self.lines) or not self._reader.is_alive(), WAIT_S
            )
        assert is_there, f"no {at!r} in time:\n{self.text}"
        assert any(at in line for line in self.lines), f"ended without {at!r}:\n{self.text}"

    def interrupt(self, sign: signal.Signals = signal.SIGINT) -> None:
        """To every process of the group, as Ctrl-C does; other signals to the driver alone, as `kill` does."""
        if sign is signal.SIGINT:
            os.killpg(self.pid, sign)
        else:
            self.send(sign)

    def send(self, sign: signal.Signals) -> None:
        """To the driver alone."""
        self._process.send_signal(sign)

    def kill(self) -> None:
        """The driver alone, without a word."""
        self._process.kill()

    def ended(self) -> int:
        """Its exit code; waits for it."""
        code = self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def ended_within(self, limit_s: float | None) -> int | None:
        """Its exit code; None if it has not ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
            return self.ended()
        return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()


@contextlib.contextmanager
def driving(*words: str, module: str = "tuner", environment: dict[str, str] | None = None) -> Iterator[Driver]:
    """A driver that is gone at the end, whatever became of it."""
    driver = Driver(*words, module=module, environment=environment)
    try:
        yield driver
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.ended()


def results(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Records without what a clock measured."""
    return [
        dataclasses.replace(
            record,
            curve=tuple(dataclasses.replace(metrics, train_s=0.0, span=None) for metrics in record.curve),
        )
        for record in records
    ]


def _listen_to_interrupts() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
