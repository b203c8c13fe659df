"""What the cluster is told to do with a parcel, in Ray Jobs' words. Pure; runs where the person is."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tuner.cluster.parcel import SWEEP_FILE
from tuner.errors import ClusterError

REPORTS = "TUNER_REPORTS"
"""Variable of a cluster's nodes: the folder that sweeps go to."""
SWEEP, FOLDER, INSTALL = "tuner_sweep", "tuner_folder", "tuner_install"
"""Keys of a job's metadata."""
STOP_WAIT_S = 900
"""How long a stopped sweep may take to end its steps, save, and write its report, before it is killed."""
_FROM_THE_CLUSTER = ("ray",)
"""Never installed for a job: it must be what the cluster runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """A job as Ray takes it."""

    entrypoint: str
    """Shell command on the head node, in the parcel's folder."""
    environment: Mapping[str, object]
    """Ray's runtime environment, but for the parcel."""
    metadata: Mapping[str, str]
    """What `tuner status` and `tuner fetch` need to know of it."""


def sweep_request(name: str, *, folder: str | None, is_resumed: bool, is_installed: bool) -> JobRequest:
    """Run or resume a sweep on the cluster.

    Args:
        name: The sweep's.
        folder: Absolute path on the cluster that it writes to; by default `$TUNER_REPORTS/<name>`, else `~/reports/<name>`.
        is_resumed: Go on with the sweep that is in the folder.
        is_installed: Install tuner, and what it needs in the versions that are installed here, for this job alone.

    Raises:
        ClusterError: The folder is not absolute.
    """
    where = _quoted_folder(name, folder)
    run = f"exec python -m tuner run {SWEEP_FILE} --out {where}"
    resume = f"python -m tuner.cluster.moved {SWEEP_FILE} {where} && exec python -m tuner resume {where}"
    return JobRequest(
        entrypoint=resume if is_resumed else run,
        environment={"env_vars": _stop_gently(), **(_installation() if is_installed else {})},
        metadata={SWEEP: name, FOLDER: where, INSTALL: str(is_installed)},
    )


def pack_request(metadata: Mapping[str, str]) -> JobRequest:
    """Pack the folder of a sweep's job, so that it can be downloaded.

    Args:
        metadata: Of that job.
    """
    is_installed = metadata.get(INSTALL) == str(True)
    return JobRequest(
        entrypoint=f"exec python -m tuner.cluster.pack {metadata[FOLDER]}",
        environment=_own_code() if is_installed else {},
        metadata={},
    )


def _quoted_folder(name: str, folder: str | None) -> str:
    if folder is None:
        return f'"${{{REPORTS}:-$HOME/reports}}/{name}"'  # a sweep's name is letters, digits, dots and dashes
    if not PurePosixPath(folder).is_absolute():
        raise ClusterError(f"--out must be an absolute path on the cluster, got {folder}")
    return shlex.quote(folder)


def _stop_gently() -> dict[str, str]:
    """Ray's own default is SIGTERM, and three seconds later SIGKILL (ray 2.60).

    Not SIGINT, which is ignored in all that a script has begun in its background, a head and its jobs among it.
    """
    return {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}


def _own_code() -> dict[str, object]:
    return {"py_modules": [str(Path(__file__).parents[1])]}


def _installation() -> dict[str, object]:
    return {**_own_code(), "pip": {"packages": list(pinned_requirements()), "pip_check": False}}


def pinned_requirements() -> tuple[str, ...]:
    """What tuner requires, each in the version that is installed here; not what the cluster must bring itself."""
    names = {
        re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        for requirement in importlib.metadata.requires("tuner") or ()
        if "extra ==" not in requirement
    }
    return tuple(f"{name}=={_public_version(name)}" for name in sorted(names - {*_FROM_THE_CLUSTER}))


def _public_version(name: str) -> str:
    """Without `+cpu` and the like: the cluster takes the build that suits it."""
    return importlib.metadata.version(name).partition("+")[0]
