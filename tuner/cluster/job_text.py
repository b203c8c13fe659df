"""What `tuner status` says. Pure; runs where the person is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuner.cluster.jobs import Job

NUM_LAST_LINES = 15
"""Of what a sweep printed."""


def jobs_text(jobs: Sequence[Job], now_s: float) -> str:
    """One line for each sweep."""
    if not jobs:
        return "no sweep was sent to this cluster"
    width = max(len(job.id) for job in jobs)
    return "\n".join(f"{job.id:{width}}  {job.status.lower():9}  {_time_text(job, now_s)}" for job in jobs)


def job_text(job: Job, log: str, now_s: float) -> str:
    """A sweep, and what it printed last."""
    said = f"; {job.message}" if job.message and not job.is_over else ""
    lines = [f"{job.id}: {job.status.lower()}{said}", f"time: {_time_text(job, now_s)}", f"folder there: {job.folder}"]
    return "\n".join([*lines, *log.splitlines()[-NUM_LAST_LINES:]])


def _time_text(job: Job, now_s: float) -> str:
    if job.begun_s is None:
        return "not begun"
    seconds = round((job.ended_s or now_s) - job.begun_s)
    hours, rest = divmod(max(0, seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
