"""Folders that are whole or not there. Runs on driver and worker."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".partial"
"""Of the name of a folder that is being filled; a kill may leave one behind."""


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` if nothing was raised, and else goes.

    A process that was given up and yet lives may be at the same: each fills a folder of its own, and whoever is first with
    the last step has put the content there.
    """
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{SUFFIX}")
    partial.mkdir(parents=True)
    try:
        yield partial
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # half of it is of no use, and may be what fills the disk


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:  # else the other was first
            raise


def remove_partial(parent: Path, name: str = "*") -> None:
    """Remove what kills have left in a folder.

    Args:
        parent: The folder.
        name: What was to be filled; anything by default.
    """
    for path in parent.glob(f"{name}.*{SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
