"""Packs a sweep's folder where Ray's dashboard can be asked for it, and holds it until it was taken. Runs on the cluster.

Ray's dashboard gives out the files in its log folder, through the same port and with the same token as all else. The archive
lies there until the job is stopped, which is how the one that fetches says that it has it.

    python -m tuner.cluster.pack FOLDER
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray

HELD_S = 3600.0
"""An archive that nobody takes goes after so long."""
STAYS = ("checkpoints", ".ray_tune", ".lock")
"""Parts of a sweep's folder that only a driver on the cluster needs."""
PACKED = "tuner-packed: "
"""Before the line that tells where the archive lies."""


def pack(folder: Path, archive: Path) -> None:
    """Write all that a person wants of a sweep's folder into an archive."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for part in sorted(folder.iterdir()):
            if part.name not in STAYS:
                tar.add(part, arcname=part.name, recursive=True)


def told(archive: Path, logs: Path, node: str) -> str:
    """What the one that fetches must know, as one line."""
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {"node_id": node, "filename": str(archive.relative_to(logs)), "sha256": digest}
    return PACKED + json.dumps({**facts, "size_bytes": archive.stat().st_size})


def _global_node() -> Any:  # noqa: ANN401 -- Ray's own
    return ray._private.worker._global_node  # noqa: SLF001 -- there is no public way to the log folder (ray 2.60)


def main() -> None:
    """Pack, tell, and wait to be stopped."""
    folder = Path(sys.argv[1])
    if not (folder / "sweep.yaml").is_file():
        sys.exit(f"error: there is no sweep in {folder} on the cluster (yet)")
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    is_taken = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: is_taken.set())  # in place of Ray's own
    logs = Path(_global_node().get_logs_dir_path())
    with tempfile.TemporaryDirectory(prefix="tuner-fetch-", dir=logs) as place:
        archive = Path(place) / "sweep.tar.gz"
        pack(folder, archive)
        print(told(archive, logs, ray.get_runtime_context().get_node_id()), flush=True)  # noqa: T201 -- it is a program
        is_taken.wait(HELD_S)


if __name__ == "__main__":
    main()
