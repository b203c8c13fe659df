"""Brings a sweep's folder from the cluster. Runs where the person is.

A second job packs the folder into Ray's log folder, from where the dashboard gives it out: it works through one forwarded
port, and needs neither a shared file system nor a cloud's storage.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cluster.request import pack_request
from tuner.errors import ClusterError
from tuner.folder import require_empty

if TYPE_CHECKING:
    from tuner.cluster.jobs import Cluster, Job

PACKED = "tuner-packed: "
"""Before the line in which `pack` tells where the archive lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A packed folder on the cluster."""

    node_id: str
    """The node that has it."""
    filename: str
    """In that node's log folder."""
    sha256: str
    """Of its bytes."""
    size_bytes: int
    """How many."""


def fetch(cluster: Cluster, job: Job, to: Path) -> int:
    """Bring the folder of a sweep, finished or not: sweep file, journal, report, adapters of the front, logs.

    Args:
        cluster: Where it ran.
        job: The sweep's.
        to: A new folder.

    Returns:
        Bytes that were downloaded.

    Raises:
        FolderError: `to` is no empty folder.
        ClusterError: The cluster has no such folder, or what came is not what was sent.
    """
    require_empty(to)
    packing = cluster.submit(pack_request(dict(job.metadata)))
    try:
        archive = _packed(cluster, packing)
        with tempfile.TemporaryDirectory(prefix="tuner-") as place:
            file = Path(place) / "sweep.tar.gz"
            cluster.download(archive.node_id, archive.filename, file)
            _require_whole(file, archive)
            _unpack(file, to)
    finally:
        cluster.stop(packing)
    return archive.size_bytes


def archive_in(log: str) -> Archive | None:
    """What a packing job told; None before it has."""
    told = [line.removeprefix(PACKED) for line in log.splitlines() if line.startswith(PACKED)]
    return Archive(**json.loads(told[-1])) if told else None


def _packed(cluster: Cluster, job_id: str) -> Archive:
    cluster.watch(job_id, lambda: archive_in(cluster.log(job_id)) is not None)
    log = cluster.log(job_id)
    archive = archive_in(log)
    if archive is None:
        raise ClusterError(f"the sweep's folder could not be packed on the cluster: {_reason(log)}")
    return archive


def _reason(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "its job printed nothing"


def _require_whole(file: Path, archive: Archive) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != archive.sha256:
        msg = f"{file.stat().st_size:,} of {archive.size_bytes:,} bytes came, and they are not what was sent; try again"
        raise ClusterError(msg)


def _unpack(file: Path, to: Path) -> None:
    """Whole or not at all; an archive's names can't leave the folder."""
    to.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
    try:
        with tarfile.open(file) as tar:
            tar.extractall(place, filter="data")
        place.chmod(0o755)
        if to.exists():
            to.rmdir()
        place.rename(to)
    except tarfile.TarError as error:
        raise ClusterError(f"what the cluster sent can't be unpacked: {error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
