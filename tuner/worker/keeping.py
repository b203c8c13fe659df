"""Where a worker has its trials' files: in the sweep's folder, or on its node and, as soon as they are whole, in a storage.

Runs on the worker. The folder on the node is TUNER_SCRATCH, or the place for temporary files; workers of a node share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import StorageError
from tuner.storage import ADAPTERS, CHECKPOINTS, LOGS, ObjectFiles
from tuner.trial import folder_name

if TYPE_CHECKING:
    from tuner.config import SweepConfig


class Keeper:
    """A worker's files.

    Args:
        config: The sweep.
        folder: The sweep's folder as the driver has it. None keeps nothing.
    """

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        self.folder = folder
        """Where files are on this node."""
        self._files: ObjectFiles | None = None
        if folder is not None and config.resources.storage is not None:
            self._files = ObjectFiles(config.resources.storage)
            self.folder = scratch_folder(config.name, config.resources.storage)
            self.folder.mkdir(parents=True, exist_ok=True)

    def checkpoints(self, number: int) -> Path | None:
        """Where a trial's checkpoints are on this node."""
        return self.folder / CHECKPOINTS / folder_name(number) if self.folder else None

    def bring(self, number: int) -> None:
        """Have the same checkpoints here as in the storage, whichever node wrote them."""
        if self._files is not None and self.folder is not None:
            key = f"{CHECKPOINTS}/{folder_name(number)}"
            self._files.download_all(key, self.folder / key)

    def keep(self, number: int) -> None:
        """Have the same checkpoints in the storage as here."""
        if self._files is not None and self.folder is not None:
            key = f"{CHECKPOINTS}/{folder_name(number)}"
            self._files.upload_all(self.folder / key, key)

    def adapter(self, number: int) -> Path:
        """A finished trial's adapter.

        Raises:
            FileNotFoundError: It was not kept.
        """
        if self.folder is None:
            raise FileNotFoundError("no adapter is kept without a sweep folder")
        key = f"{ADAPTERS}/{folder_name(number)}"
        if self._files is not None and not self._files.download(key, self.folder / key):
            raise FileNotFoundError(f"{self._files.address} has no {key}")
        return self.folder / key

    def keep_log(self, log: Path) -> None:
        """Put a log beside the sweep's; what can't be put there now comes with the next rung's."""
        if self._files is not None:
            with contextlib.suppress(StorageError):
                self._files.write(f"{LOGS}/{log.name}", log.read_bytes(), ())


def scratch_folder(name: str, storage: str) -> Path:
    """A sweep's folder on a node; sweeps in other places have others."""
    scratch = os.environ.get("TUNER_SCRATCH") or str(Path(tempfile.gettempdir()) / "tuner")
    return Path(scratch) / f"{name}-{hashlib.sha256(storage.encode()).hexdigest()[:12]}"
