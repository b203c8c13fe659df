"""The journal's file: one JSON object a line, written whole and synced, read with care. Runs on the driver; talks to Optuna.

It takes the place of Optuna's JournalFileBackend (5.0), which glues the next line to one that a killed driver left
unfinished, so that both are lost and the file can't be opened again; and whose lock outlives a killed driver: the next
write waits half a minute for it, or for ever where the file was named by a relative path. Here the folder's own lock
keeps other drivers out, and ends with the process. Appended lines of `optuna-dashboard` are taken in like our own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tuner.errors import FolderError

if TYPE_CHECKING:
    from collections.abc import Generator

log = logging.getLogger(__name__)

MEND = "if there is no copy of the file, move the sweep's folder away and run the sweep anew"
"""What can be done about a damaged journal."""

_Id = Annotated[int, Field(ge=0)]
_One = Annotated[dict[str, Any], Field(min_length=1, max_length=1)]
_State = Annotated[int, Field(ge=0, le=4)]
_Distribution = Annotated[str, Field(min_length=2)]


_config = with_config(ConfigDict(strict=True, extra="allow"))
"""Later versions of Optuna may add to a line."""


class _Line(TypedDict):
    """What every line has."""

    worker_id: str


@_config
class _CreateStudy(_Line):
    op_code: Literal[0]
    study_name: str
    directions: list[Annotated[int, Field(ge=0, le=2)]]


@_config
class _DeleteStudy(_Line):
    op_code: Literal[1]
    study_id: _Id


@_config
class _StudyUserAttr(_Line):
    op_code: Literal[2]
    study_id: _Id
    user_attr: _One


@_config
class _StudySystemAttr(_Line):
    op_code: Literal[3]
    study_id: _Id
    system_attr: _One


@_config
class _CreateTrial(_Line):
    op_code: Literal[4]
    study_id: _Id
    datetime_start: str | None
    datetime_complete: NotRequired[str]
    state: NotRequired[_State]
    value: NotRequired[float | None]
    values: NotRequired[list[float] | None]
    distributions: NotRequired[dict[str, _Distribution]]
    params: NotRequired[dict[str, float]]
    user_attrs: NotRequired[dict[str, Any]]
    system_attrs: NotRequired[dict[str, Any]]
    intermediate_values: NotRequired[dict[str, float | None]]


@_config
class _TrialParam(_Line):
    op_code: Literal[5]
    trial_id: _Id
    param_name: str
    param_value_internal: float
    distribution: _Distribution


@_config
class _TrialState(_Line):
    op_code: Literal[6]
    trial_id: _Id
    state: _State
    values: list[float] | None
    datetime_start: NotRequired[str]
    datetime_complete: NotRequired[str]


@_config
class _TrialIntermediateValue(_Line):
    op_code: Literal[7]
    trial_id: _Id
    step: int
    intermediate_value: float | None


@_config
class _TrialUserAttr(_Line):
    op_code: Literal[8]
    trial_id: _Id
    user_attr: _One


@_config
class _TrialSystemAttr(_Line):
    op_code: Literal[9]
    trial_id: _Id
    system_attr: _One


_STATE = 6
_LEADING = frozenset({4, 5})
"""Operations that only lead up to a trial: one that is created, and its parameters. Nothing is acted on before the line of the
trial's spec is on the disk, and that takes all before it along."""

_LINE: TypeAdapter[_Line] = TypeAdapter(
    Annotated[
        _CreateStudy
        | _DeleteStudy
        | _StudyUserAttr
        | _StudySystemAttr
        | _CreateTrial
        | _TrialParam
        | _TrialState
        | _TrialIntermediateValue
        | _TrialUserAttr
        | _TrialSystemAttr,
        Field(discriminator="op_code"),
    ]
)
"""A line as Optuna 5 writes it."""


class JournalFile(BaseJournalBackend):
    """Optuna's log in a file of one writer; any number of processes may read it meanwhile.

    Args:
        path: The file; must exist. A last line without its end is not read: it is being written, or never was.
        is_read_only: Refuse to write.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False) -> None:
        self.path = path
        self._is_read_only = is_read_only
        self._starts = [0]
        """Where each line begins that was read; the last entry is where the next one will."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The whole lines from a number on, counted from 0.

        Raises:
            FolderError: The file can't be read, or a line is damaged.
        """
        number = min(log_number_from, len(self._starts) - 1)
        for line in _whole_lines(self.path, self._starts[number]):
            number += 1
            if number == len(self._starts):
                self._starts.append(self._starts[-1] + len(line))
            if number > log_number_from:
                yield self._parsed(line, number)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines and have them on the disk, but for those that only lead up to one; where that fails, nothing of them stays.

        Raises:
            OSError: The disk, or a quota, is full: the driver knows what to do.
            FolderError: The file can't be written for another reason.
        """
        assert not self._is_read_only, self.path  # noqa: S101 -- who only reads never gets here
        text = "".join(f"{json.dumps(entry, separators=(',', ':'))}\n" for entry in logs)
        try:
            _append(self.path, text.encode("ascii"), is_synced=not all(_is_leading(entry) for entry in logs))
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise
            msg = f"{self.path} can't be written: {error.strerror}; all before it is kept"
            raise FolderError(msg) from error

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Turn what Optuna makes of a line that it can't use into the line's place.

        Raises:
            FolderError: With file and line.
        """
        try:
            yield
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(self.path, len(self._starts) - 1, f"Optuna can't use it ({_in_short(error)})") from error

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        with contextlib.suppress(ValidationError):  # what is wrong, if anything is, is found out below
            return {**_LINE.validate_json(line)}
        try:
            parsed: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path, number, f"it is no JSON ({_in_short(error)})") from error
        try:
            _LINE.validate_python(parsed)
        except ValidationError as error:
            raise _damaged(
                self.path, number, f"it is no line of Optuna 5's journal: {wrong(error, skipped=1)}"
            ) from error
        return parsed


def mend(path: Path) -> None:
    """Cut off a last line that a killed driver left unfinished, and keep it in `<file>.torn`; hold the folder's lock.

    Raises:
        FolderError: The file can't be read or written.
    """
    try:
        torn = _torn(path)
        if not torn:
            return
        kept = path.with_name(f"{path.name}.torn")
        _append(kept, torn + b"\n")
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size - len(torn))
            os.fsync(stream.fileno())
    except OSError as error:
        msg = f"{path} can't be mended: {error.strerror}"
        raise FolderError(msg) from error
    log.warning("%s: the last line was never finished; its %d bytes are now in %s", path, len(torn), kept)


def make_file(path: Path) -> None:
    """Make the file where it is missing, so that it is still there after a power failure."""
    path.touch()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems can't sync a folder
            os.fsync(folder)
    finally:
        os.close(folder)


def attribute_line(path: Path, scope: str, owner: int, key: str) -> int | None:
    """The number of the last line, from 1, that sets a user attribute.

    Args:
        path: Of the file.
        scope: `trial_id` or `study_id`.
        owner: Optuna's id of it.
        key: Of the attribute.
    """
    found = None
    for number, line in enumerate(_whole_lines(path, 0), start=1):
        entry = json.loads(line)
        if entry.get(scope) == owner and key in {**entry.get("user_attr", {}), **entry.get("user_attrs", {})}:
            found = number
    return found


def _whole_lines(path: Path, start: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            data = stream.read()
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}"
        raise FolderError(msg) from error
    return (line + b"\n" for line in data.split(b"\n")[:-1])


def _is_leading(entry: dict[str, Any]) -> bool:
    """Whether a line means nothing without those after it: a trial on its way to its spec."""
    is_taken_out = entry["op_code"] == _STATE and entry["state"] == TrialState.RUNNING
    return is_taken_out or (entry["op_code"] in _LEADING and not entry.get("user_attrs"))


def _append(path: Path, data: bytes, *, is_synced: bool = True) -> None:
    """Write all or nothing, and have it on the disk if that is asked for."""
    with path.open("ab", buffering=0) as stream:
        before = os.fstat(stream.fileno()).st_size
        try:
            written = stream.write(data)
            while written < len(data):  # a disk that fills takes a part first, and says why at the next try
                written += stream.write(data[written:])
            if is_synced:
                os.fsync(stream.fileno())
        except OSError:
            stream.truncate(before)
            raise


def _torn(path: Path) -> bytes:
    """What stands behind the last end of a line."""
    data = path.read_bytes()
    return data[data.rfind(b"\n") + 1 :]


def _damaged(path: Path, number: int, why: str) -> FolderError:
    return FolderError(f"{path}:{number}: the line is damaged: {why}; {MEND}")


def _in_short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}" if text else type(error).__name__


def wrong(error: ValidationError, skipped: int = 0) -> str:
    """The first thing that pydantic found wrong, in one line.

    Args:
        error: What it found.
        skipped: Leading parts of the place that say nothing to people.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"][skipped:]) or "the whole"
    return f"{place}: {first['msg'][:100]}, got {repr(first['input'])[:60]}"
