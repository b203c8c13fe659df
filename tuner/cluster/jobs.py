"""Talks to a cluster through Ray Jobs: sends, lists, follows, stops, downloads. Runs where the person is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from tuner.cluster.parcel import Parcel, write_parcel
from tuner.cluster.request import FOLDER, SWEEP, JobRequest
from tuner.errors import ClusterError

CONNECT_TIMEOUT_S = 5.0
"""How long the head may take to answer."""
LOOK_EVERY_S = 0.5
"""While a job is awaited."""
_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers of Ray's that tell of each upload and each end of a connection."""
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Ray lets these win over an address that is given; here what is given wins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A sweep's job as the cluster tells it."""

    id: str
    """Ray's submission id."""
    sweep: str
    """The sweep's name."""
    folder: str
    """Its folder on the cluster, as a shell there reads it."""
    status: JobStatus
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """What Ray says of that."""
    begun_s: float | None
    """Seconds since 1970; None before it began."""
    ended_s: float | None
    """The same; None while it runs."""
    exit_code: int | None
    """Of the sweep's process; None while it runs, and where a signal ended it."""
    metadata: tuple[tuple[str, str], ...]
    """What was told when it was sent."""

    @property
    def is_over(self) -> bool:
        """Whether it will change no more."""
        return self.status.is_terminal()


class Cluster:
    """A cluster that answers at the address of its dashboard.

    Args:
        address: `http://host:8265`.

    Raises:
        ClusterError: It does not answer, or refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        _require_answer(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        with self._refusals(), _without(_OVERRIDES):
            self.client = JobSubmissionClient(address)

    def submit(self, request: JobRequest, parcel: Parcel | None = None) -> str:
        """Send a job, with what it needs of this machine.

        Returns:
            Its id.
        """
        name = request.metadata.get(SWEEP, "fetch")
        job_id = f"{name}-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory(prefix="tuner-") as place, self._refusals():
            environment = dict(request.environment)
            if parcel is not None:
                write_parcel(parcel, Path(place))
                environment["working_dir"] = place
            return str(
                self.client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=job_id,
                    runtime_env=environment,
                    metadata=dict(request.metadata),
                )
            )

    def jobs(self) -> tuple[Job, ...]:
        """All jobs that are sweeps, latest first."""
        with self._refusals():
            listed = [_job(details) for details in self.client.list_jobs() if SWEEP in (details.metadata or {})]
        return tuple(sorted(listed, key=lambda job: job.begun_s or float("inf"), reverse=True))

    def job(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            ClusterError: There is none, or it is no sweep.
        """
        found = next((job for job in self.jobs() if job.id == job_id), None)
        if found is None:
            raise ClusterError(
                f"{self.address} knows no sweep {job_id}; `tuner status --address {self.address}` lists them"
            )
        return found

    def log(self, job_id: str) -> str:
        """All that a job printed so far."""
        with self._refusals():
            return str(self.client.get_job_logs(job_id))

    def follow(self, job_id: str, show: Callable[[str], None]) -> None:
        """Show what a job prints, from its beginning to its end.

        Raises:
            ClusterError: The connection is lost; the job goes on.
        """
        with self._refusals():
            asyncio.run(self._follow(job_id, show))

    def stop(self, job_id: str) -> None:
        """Ask a job to end; it may take its time to save."""
        with self._refusals():
            self.client.stop_job(job_id)

    def watch(self, job_id: str, has_enough: Callable[[], bool] = lambda: False) -> JobStatus:
        """Look at a job until it is over, or the caller has enough."""
        while True:
            with self._refusals():
                status = self.client.get_job_status(job_id)
            if status.is_terminal() or has_enough():
                return status
            time.sleep(LOOK_EVERY_S)

    def download(self, node_id: str, filename: str, to: Path) -> None:
        """Bring a file of a node's log folder, however large."""
        query = urlencode({"node_id": node_id, "filename": filename, "lines": -1})
        with self._refusals(), to.open("wb") as file:
            answer = self.client._do_request("GET", f"/api/v0/logs/file?{query}", stream=True)  # noqa: SLF001 -- no public way
            if answer.status_code != HTTPStatus.OK:
                raise ClusterError(f"{self.address}: {answer.text}")
            for chunk in answer.iter_content(chunk_size=None):
                file.write(chunk)

    async def _follow(self, job_id: str, show: Callable[[str], None]) -> None:
        async for lines in self.client.tail_job_logs(job_id):
            show(lines)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Ray's errors as ours."""
        try:
            yield
        except AuthenticationError as error:
            msg = (
                f"{self.address} refuses the token that it was given, or was given none. Ray looks for it in RAY_AUTH_TOKEN, "
                "in the file that RAY_AUTH_TOKEN_PATH names, and in ~/.ray/auth_token"
            )
            raise ClusterError(msg) from error
        except (RuntimeError, OSError) as error:  # Ray raises RuntimeError for any answer that is not 200
            raise ClusterError(f"{self.address}: {_last_line(error)}") from error


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or "",
        sweep=metadata.get(SWEEP, ""),
        folder=metadata.get(FOLDER, ""),
        status=details.status,
        message=details.message or "",
        begun_s=details.start_time / 1000 if details.start_time else None,
        ended_s=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        metadata=tuple(metadata.items()),
    )


def _require_answer(address: str) -> None:
    """Ray's client waits without limit for a host that is silent."""
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ClusterError(f"--address must be that of a Ray dashboard, such as http://127.0.0.1:8265, got {address}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        why = error.strerror or "timed out"
        msg = f"no Ray dashboard answers at {address} ({why}); `ray dashboard cluster.yaml` forwards its port to this machine"
        raise ClusterError(msg) from error


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _last_line(error: Exception) -> str:
    """Ray sends tracebacks of its server as text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
