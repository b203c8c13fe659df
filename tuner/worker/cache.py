"""What is made once and used by every worker of a node: converted models, token ids. Runs on the worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tuner.whole import remove_partial, whole

VARIABLE = "TUNER_CACHE"
"""Environment variable that names the cache's folder; `~/.cache/tuner` by default."""


def cached(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """A folder with this content, filled by the first process that asks; others wait for it.

    Args:
        kind: What it holds: a folder of the cache.
        key: Names the content; another content must have another key.
        fill: Writes the content into an empty folder. A kill while it runs leaves nothing behind.

    Raises:
        OSError: The cache can't be written.
    """
    home = Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "tuner") / kind
    home.mkdir(parents=True, exist_ok=True)
    folder = home / key
    with FileLock(home / f"{key}.lock"):
        if not folder.is_dir():
            remove_partial(home, key)
            with whole(folder) as partial:
                fill(partial)
    return folder
