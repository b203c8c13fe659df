"""A sweep's folder: what lies where, who may write, which adapters stay. Runs on the driver.

reports/quickstart/
    sweep.yaml          the sweep as resolved
    study.journal       every trial, unless `study.storage` names a database; optuna-dashboard opens it
    report.html, report.md, summary.json, trials.csv, front.csv, front.png, front.svg
    adapters/           trial-0007/ in PEFT's format, for the trials on the front
    checkpoints/        trial-0009/ while a trial runs or is paused, or may still be audited
    logs/               one file per worker process
    mlflow.db, wandb/, tensorboard/     what loggers write, where the sweep names them
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from tuner.errors import FolderError, PausedError
from tuner.front import Objective, front
from tuner.storage import ADAPTERS, CHECKPOINTS, Files, LocalFiles
from tuner.trial import TrialRecord, TrialState, folder_name

_IN_DATABASE = re.compile(r"^\s+storage: *['\"]?postgresql://", re.MULTILINE)
"""`study.storage` in a sweep.yaml, as `sweep_file` writes it."""
MOST_LOOKED_FOR = 10
"""Checkpoints that are looked for one by one rather than in a list of all."""


class SweepFolder:
    """Paths and housekeeping of one sweep.

    Args:
        path: The folder; need not exist yet.
        files: Where checkpoints and adapters are; in the folder by default.
    """

    def __init__(self, path: Path, files: Files | None = None) -> None:
        self.path = path
        self._files = files or LocalFiles(path)
        self.sweep_file = path / "sweep.yaml"
        self.journal = path / "study.journal"

    def adapter(self, number: int) -> Path:
        """Where a finished trial's adapter is kept."""
        return self.path / ADAPTERS / folder_name(number)

    def checkpoint(self, number: int) -> Path:
        """Where a running trial leaves its state."""
        return self.path / CHECKPOINTS / folder_name(number)

    def require_free(self) -> None:
        """Make sure that a new sweep can begin here; writes nothing that stays.

        Raises:
            FolderError: There is something here already, or nothing can be written here.
        """
        try:
            begun = self.sweep_file.exists(), self.journal.exists()
        except OSError as error:
            msg = f"{self.path} can't be read: {error.strerror}"
            raise FolderError(msg) from error
        is_begun = all(begun) or (begun[0] and not self._keeps_journal())
        if any(begun) and not is_begun:
            raise FolderError(f"{self.path} holds a sweep that was killed before its first trial; remove the folder")
        if is_begun:
            msg = f"{self.path} holds a sweep already; go on with `tuner resume {self.path}`, or choose another folder with --out"
            raise FolderError(msg)
        require_empty(self.path)
        self._probe()

    def require_sweep(self) -> None:
        """Make sure that a sweep was begun here.

        Raises:
            FolderError: There is none.
        """
        needed = (self.sweep_file, self.journal) if self._keeps_journal() else (self.sweep_file,)
        missing = [file.name for file in needed if not file.is_file()]
        if missing:
            msg = f"{self.path} holds no sweep: no {' and no '.join(missing)} in it"
            raise FolderError(msg)

    def _keeps_journal(self) -> bool:
        """Whether the sweep's trials stand in a file here; a glance, for who asks may not need to read the sweep."""
        if not self.sweep_file.is_file():
            return True
        return _IN_DATABASE.search(self.sweep_file.read_text(encoding="utf-8", errors="replace")) is None

    def identity(self) -> bytes:
        """What no other sweep has: its journal's first line, or its name in its database."""
        if self._keeps_journal():
            with self.journal.open("rb") as journal:
                return journal.readline()
        text = self.sweep_file.read_bytes()
        return b"".join(line for line in text.splitlines() if line.lstrip().startswith((b"name:", b"storage:")))

    def create(self) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: one driver at a time writes the journal. A killed driver's hold ends with it.

        Raises:
            FolderError: Another driver holds it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            msg = f"{self.path} is in use by another tuner process"
            raise FolderError(msg) from error
        except OSError as error:
            msg = f"{self.path} can't be written: {error.strerror}"
            raise FolderError(msg) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def way_on(self) -> str:
        """What a person does to go on with a sweep that has stopped."""
        return f"go on with `tuner resume {self.path}`"

    @contextlib.contextmanager
    def has_room(self) -> Iterator[None]:
        """Put around what writes into the folder.

        Raises:
            PausedError: The disk, or a quota, is full.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            msg = f"no space left for {self.path}; the sweep has stopped, all that was saved is kept: free some and {self.way_on}"
            raise PausedError(msg) from error

    def is_in_use(self) -> bool:
        """Whether a driver works on the sweep now."""
        try:
            with self.locked():
                return False
        except FolderError:
            return True

    def hand_over(self, from_number: int, to_number: int) -> None:
        """Give a trial's checkpoint to the one that goes on from it; nothing is done where there is none."""
        if folder_name(from_number) in self._files.names(CHECKPOINTS):
            self._files.move(f"{CHECKPOINTS}/{folder_name(from_number)}", f"{CHECKPOINTS}/{folder_name(to_number)}")

    def settle(
        self,
        records: Sequence[TrialRecord],
        objectives: Sequence[Objective],
        *,
        keep_stopped: bool = False,
        best: Sequence[TrialRecord] = (),
    ) -> tuple[TrialRecord, ...]:
        """Bring adapters and checkpoints in line with the study; may be repeated at any time.

        A finished trial that another one dominates can never return to the front, so its adapter goes.

        Args:
            records: All that the study knows; with `best`, those that have ended since that was returned.
            objectives: The sweep's.
            keep_stopped: Leave the checkpoints of stopped trials, for an audit to go on from.
            best: The front as it was before `records` ended.

        Returns:
            The front.
        """
        on_front = front((*best, *records), objectives)
        numbers = {record.number for record in on_front}
        begun, trained = self._begun(records), self._files.names(ADAPTERS)
        for record in (*best, *records):
            if record.state.is_open:
                continue
            name, is_kept = folder_name(record.number), record.number in numbers
            may_go_on = keep_stopped and record.state is TrialState.PRUNED and record.spec.is_searched
            if name in begun and not may_go_on:
                self._end(name, is_kept=is_kept)
            if name in trained and not is_kept:
                self._files.remove(f"{ADAPTERS}/{name}")
        return on_front

    def _begun(self, records: Sequence[TrialRecord]) -> Collection[str]:
        """Names of the trials that have checkpoints; thousands may wait with theirs, so a few are looked for one by one."""
        if len(records) > MOST_LOOKED_FOR:
            return set(self._files.names(CHECKPOINTS))
        names = (folder_name(record.number) for record in records)
        return {name for name in names if self._files.names(f"{CHECKPOINTS}/{name}")}

    def _end(self, name: str, *, is_kept: bool) -> None:
        """Keep a trial's adapter, if that is asked for, and remove its checkpoints."""
        place = f"{CHECKPOINTS}/{name}"
        if is_kept:
            steps = [step for step in self._files.names(place) if "adapter" in self._files.names(f"{place}/{step}")]
            for step in steps[-1:]:
                self._files.move(f"{place}/{step}/adapter", f"{ADAPTERS}/{name}")
        self._files.remove(place)

    def _probe(self) -> None:
        made = [parent for parent in (self.path, *self.path.parents) if not parent.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
            (self.path / ".lock").unlink()
        except OSError as error:
            msg = f"{self.path} can't be written: {error.strerror}"
            raise FolderError(msg) from error
        finally:
            for parent in made:
                with contextlib.suppress(OSError):
                    parent.rmdir()


def require_empty(path: Path, allowed: str = "") -> None:
    """Make sure that nothing would be overwritten: no such path yet, or an empty folder; `allowed` says what might be there.

    Raises:
        FolderError: There is something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        msg = f"{path} exists and is no empty folder{allowed}; choose another"
        raise FolderError(msg)
