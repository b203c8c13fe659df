"""The driver's part of a sweep in a storage: journal, sweep file and report are there too, and can be brought back.

Runs on the driver.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.addresses import files_address, without_secrets
from tuner.errors import FolderError
from tuner.folder import SweepFolder, require_empty
from tuner.storage import ADAPTERS, ObjectFiles
from tuner.sweep_file import load_sweep_file, sweep_text
from tuner.trial import folder_name

if TYPE_CHECKING:
    from tuner.config import SweepConfig

EVERY_S = 10.0
"""Least seconds between two copies of the journal while a sweep runs."""
SWEEP_FILE, JOURNAL_FILE = "sweep.yaml", "study.journal"


class Mirror:
    """Copies what the driver writes; does nothing for a sweep without a storage.

    Args:
        folder: The driver's.
        files: The storage.
        require_held: Raises where another driver has taken the sweep over.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        folder: SweepFolder,
        files: ObjectFiles | None,
        require_held: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._files = files
        self._require_held = require_held
        self._clock = clock
        self._due_s = clock()

    def begin(self, config: SweepConfig) -> None:
        """A sweep begins or goes on: from now on the storage holds one. Its paths are absolute, for it may go on elsewhere.

        Raises:
            FolderError: The sweep has gone on from another folder since this one was written.
        """
        if self._files is not None:
            self._require_newest(self._files)
            self._copy_journal(self._files)
            self._files.write(SWEEP_FILE, sweep_text(config, lambda path: path).encode())

    def note(self) -> None:
        """Something was reported.

        Raises:
            FolderError: Another driver has taken the sweep over.
        """
        self._require_held()
        if self._files is not None and self._clock() >= self._due_s:
            self._copy_journal(self._files)
            self._due_s = self._clock() + EVERY_S

    def end(self) -> None:
        """The report is written."""
        self._require_held()
        if self._files is not None:
            self._copy_journal(self._files)
            for file in sorted(self._folder.path.iterdir()):
                if file.is_file() and file.name not in {SWEEP_FILE, JOURNAL_FILE} and not file.name.startswith("."):
                    self._files.write(file.name, file.read_bytes())

    def _require_newest(self, files: ObjectFiles) -> None:
        """Lines are only ever added to a journal."""
        there = files.read(JOURNAL_FILE)
        if there and self._folder.journal.is_file() and not self._folder.journal.read_bytes().startswith(there):
            msg = (
                f"{self._folder.path} is older than {files.address}: the sweep went on elsewhere; go on with "
                f"`tuner resume {files.address} --out` and a new folder"
            )
            raise FolderError(msg)

    def _copy_journal(self, files: ObjectFiles) -> None:
        if self._folder.journal.is_file():
            files.write(JOURNAL_FILE, self._folder.journal.read_bytes())


def files_of(config: SweepConfig) -> ObjectFiles | None:
    """The storage that a sweep names.

    Raises:
        StorageError: It can't be opened.
    """
    return ObjectFiles(config.resources.storage) if config.resources.storage is not None else None


def require_answer(files: ObjectFiles | None) -> None:
    """Make sure at once that a sweep can go on in a storage.

    Raises:
        StorageError: It does not answer, or can't be written.
    """
    if files is not None:
        files.require_answer()


def require_unused(files: ObjectFiles | None) -> None:
    """Make sure that a new sweep can begin in a storage.

    Raises:
        FolderError: There is something already.
        StorageError: It does not answer, or can't be written.
    """
    if files is None:
        return
    files.require_answer()
    names = files.names("")
    if SWEEP_FILE in names:
        raise FolderError(
            f"{files.address} holds a sweep already; go on with `tuner resume {files.address}`, or name another folder"
        )
    if names:
        raise FolderError(f"{files.address} is no empty folder ({names[0]} is in it); name another")


def bring_sweep(address: str, out: Path | None) -> Path:
    """Bring a sweep here, so that it can go on.

    Args:
        address: Its storage.
        out: A new folder; `reports/<name>` by default.

    Returns:
        The folder.

    Raises:
        FolderError: There is no sweep there, or something in the folder.
        StorageError: The storage does not answer.
    """
    try:
        files = ObjectFiles(files_address(address))
    except ValueError as error:
        raise FolderError(f"{without_secrets(address)}: {error}") from None
    text = files.read(SWEEP_FILE)
    if text is None:
        raise FolderError(f"{files.address} holds no sweep: no {SWEEP_FILE} in it")
    folder = SweepFolder(out or Path("reports") / _name(text))
    require_empty(folder.path)
    folder.create()
    journal = files.read(JOURNAL_FILE)  # none where trials are in a database
    if journal is not None:
        folder.journal.write_bytes(journal)
    folder.sweep_file.write_bytes(text)
    return folder.path


def bring_adapter(folder: SweepFolder, number: int) -> None:
    """Have a trial's adapter in the driver's folder, where it is in a storage.

    Raises:
        StorageError: The storage does not answer.
    """
    files = files_of(load_sweep_file(folder.sweep_file))
    if files is not None and not folder.adapter(number).is_dir():
        folder.adapter(number).parent.mkdir(exist_ok=True)
        files.download(f"{ADAPTERS}/{folder_name(number)}", folder.adapter(number))


def _name(text: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SWEEP_FILE
        file.write_bytes(text)
        return load_sweep_file(file).name
