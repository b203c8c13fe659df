"""A worker process as a backend sees it: it has one trial at work, or several at a time. Runs where the worker runs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tuner.backends import WORKER, TrialWorker, WorkerFactory
from tuner.trial import Inspection, Round, TrialSpec

if TYPE_CHECKING:
    from tuner.config import SweepConfig

TEAM = "tuner.worker.team:Team"
"""Trains several trials together; a dotted path, so that the driver never imports its room."""


class Crew(Protocol):
    """See `tuner.worker.team.Team`."""

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """From now on ask this between steps."""

    def take_on(self, spec: TrialSpec) -> None:
        """Have a trial at work beside the others."""

    def drop(self, number: int) -> None:
        """Have it at work no longer."""

    def advance(self) -> Round:
        """Work until at least one trial has something to tell."""

    def close(self) -> None:
        """Drop all."""


class InTurn:
    """Workers that take turns; one by default.

    Args:
        build: Makes a worker.
        config: The sweep.
        folder: Its folder.
        size: Most trials at a time.
    """

    def __init__(self, build: WorkerFactory, config: SweepConfig, folder: Path | None, size: int) -> None:
        self._workers = [build(config, folder) for _ in range(size)]
        self._free = list(self._workers)
        self._busy: dict[int, TrialWorker] = {}

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""
        return self._workers[0].inspect()

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """From now on ask this between steps."""
        for worker in self._workers:
            worker.listen(is_interrupted)

    def take_on(self, spec: TrialSpec) -> None:
        """Have a trial at work beside the others."""
        self._busy[spec.number] = self._free.pop(0)
        self._busy[spec.number].start(spec)

    def drop(self, number: int) -> None:
        """Have it at work no longer."""
        self._free.append(self._busy.pop(number))

    def advance(self) -> Round:
        """Each trial's next result."""
        results = tuple((number, worker.advance()) for number, worker in self._busy.items())
        return Round(results=results, room=len(self._free))

    def close(self) -> None:
        """Drop all."""
        for worker in self._workers:
            worker.close()
        self._free, self._busy = list(self._workers), {}


def build_crew(worker: str, config: SweepConfig, folder: Path | None) -> Crew:
    """A process's crew.

    Args:
        worker: Dotted path of a `WorkerFactory`.
        config: The sweep.
        folder: Its folder; None keeps nothing on disk.
    """
    size = config.resources.trials_per_worker
    if worker == WORKER and size != 1:
        team: Crew = pkgutil.resolve_name(TEAM)(config, folder)
        return team
    return InTurn(pkgutil.resolve_name(worker), config, folder, 1 if size == "auto" else size)


def first_room(config: SweepConfig) -> int:
    """Trials that a fresh crew takes on; one that measures its size tells later how many more."""
    size = config.resources.trials_per_worker
    return 1 if size == "auto" else size
