"""Who drives a sweep that is in an object storage: one driver, which says so again and again. Runs on the driver.

An object storage has no locks. A driver writes its name into `driver.json`, anew at each beat; whoever finds another's there
waits a few beats, and takes over only if nothing has changed. No clocks are compared, and a crash leaves nothing to remove.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from tuner.errors import FolderError, StorageError
from tuner.storage import ObjectFiles

log = logging.getLogger(__name__)

FILE = "driver.json"
BEAT_S = 5.0
MISSED_BEATS = 4
"""After so many a driver is taken for dead."""


class Lease:
    """A driver's hold on a sweep in a storage.

    Args:
        files: The storage.
        sleep: Waits.
    """

    def __init__(self, files: ObjectFiles, sleep: Callable[[float], None] = time.sleep) -> None:
        self._files = files
        self._sleep = sleep
        self._driver = f"{platform.node()} {os.getpid()} {secrets.token_hex(8)}"
        self._num_beats = 0
        self._is_over = threading.Event()
        self._lost: FolderError | None = None

    def require_held(self) -> None:
        """Make sure, before anything is written, that nobody has taken over, as after this process was suspended.

        Raises:
            FolderError: Another driver has.
        """
        if self._lost is not None:
            raise self._lost

    def take(self) -> None:
        """Become the one driver.

        Raises:
            FolderError: There is another.
            StorageError: The storage does not answer.
        """
        found = self._files.read(FILE)
        if found is not None:
            wait_s = MISSED_BEATS * BEAT_S
            log.warning("%s: looking for %.0f s whether %s still drives it", self._files.address, wait_s, _name(found))
            self._sleep(wait_s)
            if (now := self._files.read(FILE)) not in {None, found}:
                raise self._refusal(now)
        self._beat()
        self._sleep(
            BEAT_S / 5 if found is not None else 0.0
        )  # another may have waited beside us: the last to write has it
        self._require_own(self._files.read(FILE))

    def keep(self) -> None:
        """Say again and again that this driver works; ends with `stop`, or once another has taken over."""
        while not self._is_over.wait(BEAT_S):
            with contextlib.suppress(StorageError):  # told by whoever needs the storage
                try:
                    self._require_own(self._files.read(FILE))
                except FolderError as error:
                    self._lost = error
                    return
                self._beat()

    def stop(self) -> None:
        """Have `keep` end."""
        self._is_over.set()

    def give_back(self) -> None:
        """Say that nobody drives the sweep any more; `keep` has ended."""
        if self._lost is None:
            with contextlib.suppress(StorageError):
                self._files.delete(FILE)

    def _beat(self) -> None:
        self._num_beats += 1
        self._files.write(FILE, json.dumps({"driver": self._driver, "beat": self._num_beats}).encode())

    def _require_own(self, content: bytes | None) -> None:
        if content is not None and _name(content) != self._driver:
            raise self._refusal(content)

    def _refusal(self, content: bytes | None) -> FolderError:
        return FolderError(f"{self._files.address} is in use by another tuner process ({_name(content or b'')})")


@contextlib.contextmanager
def held(files: ObjectFiles | None) -> Iterator[Callable[[], None]]:
    """Hold a sweep in a storage; nothing is done without one.

    Yields:
        What makes sure that it is still held; see `Lease.require_held`.

    Raises:
        FolderError: Another driver holds it.
        StorageError: The storage does not answer.
    """
    if files is None:
        yield lambda: None
        return
    own = ObjectFiles(files.address)
    own.PAUSES_S = ()  # the next beat is the repetition
    lease = Lease(own)
    lease.take()
    keeper = threading.Thread(target=lease.keep, daemon=True)
    keeper.start()
    try:
        yield lease.require_held
    finally:
        lease.stop()
        keeper.join()
        lease.give_back()


def _name(content: bytes) -> str:
    try:
        return str(json.loads(content)["driver"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
