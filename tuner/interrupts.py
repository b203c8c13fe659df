"""Ctrl-C and SIGTERM while a sweep runs: once to finish the step, save and report; again to stop at once. Runs on the driver."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SAID = b"\nfinishing the steps under way, then saving; Ctrl-C again stops at once\n"
STDERR = 2


@contextlib.contextmanager
def interruptible(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` at the first Ctrl-C or SIGTERM, and raise KeyboardInterrupt at the second.

    Outside of the main thread, where Python hands out no signals, and for signals that whoever started the process has it
    ignore, nothing changes.
    """
    num_caught = 0

    def caught(number: int, frame: FrameType | None) -> None:
        nonlocal num_caught
        del number, frame
        num_caught += 1
        if num_caught > 1:
            raise KeyboardInterrupt
        os.write(STDERR, SAID)  # print may be in the midst of something
        interrupt()

    former = {}
    if threading.current_thread() is threading.main_thread():
        heard = (one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN)
        former = {one: signal.signal(one, caught) for one in heard}
    try:
        yield
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
