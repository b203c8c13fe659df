"""A sweep's files where nodes share no file system: whole folders in an object storage. Runs on driver and workers.

<resources.storage>/
    sweep.yaml, study.journal, report.html ...    as in the driver's folder
    checkpoints/trial-0009/step-000060/           as in the folder that a worker keeps on its node
    adapters/trial-0007/
    logs/

An object storage has no rename: a folder there is whole once it holds a list of its files, which is written last.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

from tuner.errors import StorageError
from tuner.whole import SUFFIX, whole

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

CHECKPOINTS, ADAPTERS, LOGS = "checkpoints", "adapters", "logs"
"""Folders in a sweep's."""
WHOLE = ".whole.json"
"""The list of a folder's files: name -> SHA-256."""

Result = TypeVar("Result")


class Files(Protocol):
    """Where a sweep's checkpoints and adapters are, by keys such as `checkpoints/trial-0007`."""

    def names(self, key: str) -> list[str]:
        """What lies directly in a folder, sorted, but for what is being filled; nothing where there is none."""

    def move(self, key: str, to: str) -> None:
        """Move a folder to where none is."""

    def remove(self, key: str) -> None:
        """Remove a folder; nothing is done where there is none."""


class LocalFiles:
    """A folder that driver and workers see alike.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, key: str) -> list[str]:
        """What lies directly in a folder."""
        folder = self._path / key
        return sorted(path.name for path in folder.iterdir() if path.suffix != SUFFIX) if folder.is_dir() else []

    def move(self, key: str, to: str) -> None:
        """Rename a folder."""
        target = self._path / to
        target.parent.mkdir(parents=True, exist_ok=True)
        (self._path / key).rename(target)

    def remove(self, key: str) -> None:
        """Remove a folder."""
        if (self._path / key).exists():
            shutil.rmtree(self._path / key)


class _GoneError(Exception):
    """A folder is being removed while it is read."""


class ObjectFiles:
    """A folder in an object storage.

    Args:
        address: As `resources.storage` has it.
        sleep: Waits.
    """

    PAUSES_S: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Waits before a call is repeated; pyarrow's own repetitions, of a second or so, come before each."""

    def __init__(self, address: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self.address = address
        self._sleep = sleep
        self._is_away = False
        """Whether the last call has failed in the end: the next one is not repeated."""
        self._fs, self._root = self._insisting(lambda: _opened(address), ())

    def require_answer(self) -> None:
        """Make sure at once that something can be written and read here.

        Raises:
            StorageError: It can't.
        """
        self._insisting(lambda: self._write(".probe", b"tuner"), ())
        self._insisting(lambda: self._delete_file(".probe"), ())

    def read(self, key: str) -> bytes | None:
        """A file; None where there is none."""

        def call() -> bytes | None:
            with contextlib.suppress(FileNotFoundError), self._fs.open_input_stream(self._place(key)) as stream:
                content: bytes = stream.read()
                return content
            return None

        return self._insisting(call)

    def write(self, key: str, content: bytes, pauses_s: tuple[float, ...] | None = None) -> None:
        """Put a file in the place of what is there."""
        self._insisting(lambda: self._write(key, content), pauses_s)

    def delete(self, key: str) -> None:
        """Remove a file; nothing is done where there is none."""
        self._insisting(lambda: self._delete_file(key))

    def upload(self, folder: Path, key: str) -> None:
        """Put a folder in the place of what is there; until that is done there is none. One that is there already stays."""
        files = _digests(folder)
        if self._listed(key) == files:
            return
        if self._infos(key):
            self.remove(key)
        for name in files:
            self._insisting(functools.partial(self._send, folder / name, f"{key}/{name}"))
        self.write(f"{key}/{WHOLE}", json.dumps(files).encode())

    def download(self, key: str, folder: Path) -> bool:
        """Bring a folder here.

        Returns:
            Whether there is one that is whole.
        """
        files = self._listed(key)
        if files is None:
            return False
        if folder.is_dir() and _digests(folder) == files:
            return True
        with contextlib.suppress(_GoneError), whole(folder) as partial:
            for name in files:
                self._bring(f"{key}/{name}", partial / name)
            return True
        return False

    def upload_all(self, folder: Path, key: str) -> None:
        """Have the folders in a folder here also there, and no others."""
        here = [path.name for path in _folders(folder)]
        for name in here:
            self.upload(folder / name, f"{key}/{name}")
        for name in set(self.names(key)).difference(here):
            self.remove(f"{key}/{name}")

    def download_all(self, key: str, folder: Path) -> None:
        """Have the whole folders of a folder there also here, and no others."""
        there = [name for name in self.names(key) if self.download(f"{key}/{name}", folder / name)]
        for path in _folders(folder):
            if path.name not in there:
                shutil.rmtree(path)

    def names(self, key: str) -> list[str]:
        """What lies directly in a folder, half folders among it."""
        return sorted(PurePosixPath(info.path).name for info in self._infos(key))

    def move(self, key: str, to: str) -> None:
        """Copy a folder, lists of files last, and remove the first one. One without a list gets one."""
        infos = self._infos(key, is_deep=True)
        names = [info.path.removeprefix(f"{self._place(key)}/") for info in infos if info.is_file]
        for name in sorted(names, key=lambda name: name.endswith(WHOLE)):
            self._insisting(functools.partial(self._copy, f"{key}/{name}", f"{to}/{name}"))
        if not any(name.endswith(WHOLE) for name in names):
            self.write(f"{to}/{WHOLE}", json.dumps(self._digests_of(key, names)).encode())
        self.remove(key)

    def remove(self, key: str) -> None:
        """Remove a folder, lists of files first, so that what is left of it after a crash is none."""
        for info in self._infos(key, is_deep=True):
            if info.path.endswith(f"/{WHOLE}"):
                self._insisting(functools.partial(self._fs.delete_file, info.path))
        self._insisting(lambda: self._delete(key))

    def _bring(self, key: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self._insisting(functools.partial(self._fetch, key, target)):
            raise _GoneError

    def _digests_of(self, key: str, names: list[str]) -> dict[str, str]:
        """SHA-256 of files of a folder that is part of a whole one."""
        parent, _, part = key.rpartition("/")
        listed = self._listed(parent) or {}
        return {name: listed.get(f"{part}/{name}", "") for name in names}

    def _listed(self, key: str) -> dict[str, str] | None:
        content = self.read(f"{key}/{WHOLE}")
        try:
            return None if content is None else dict(json.loads(content))
        except ValueError:
            return None  # half a list

    def _infos(self, key: str, *, is_deep: bool = False) -> list[FileInfo]:
        from pyarrow.fs import FileSelector  # noqa: PLC0415 -- only sweeps with such a storage need it

        selector = FileSelector(self._place(key), recursive=is_deep, allow_not_found=True)
        infos: list[FileInfo] = self._insisting(lambda: self._fs.get_file_info(selector))
        return infos

    def _place(self, key: str) -> str:
        return f"{self._root}/{key}".rstrip("/")

    def _write(self, key: str, content: bytes) -> None:
        self._make_parent(key)
        with self._fs.open_output_stream(self._place(key)) as stream:
            stream.write(content)

    def _send(self, file: Path, key: str) -> None:
        self._make_parent(key)
        with file.open("rb") as source, self._fs.open_output_stream(self._place(key)) as stream:
            shutil.copyfileobj(source, stream, 2**20)

    def _fetch(self, key: str, file: Path) -> bool:
        """Bring a file here; whether there is one."""
        with contextlib.suppress(FileNotFoundError), self._fs.open_input_stream(self._place(key)) as source:
            with file.open("wb") as stream:
                shutil.copyfileobj(source, stream, 2**20)
            return True
        return False

    def _copy(self, key: str, to: str) -> None:
        self._make_parent(to)
        self._fs.copy_file(self._place(key), self._place(to))

    def _delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._place(key))

    def _delete_file(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._place(key))

    def _make_parent(self, key: str) -> None:
        """An object storage has no folders; a disk has."""
        if self._fs.type_name == "local":
            self._fs.create_dir(str(PurePosixPath(self._place(key)).parent), recursive=True)

    def _insisting(self, call: Callable[[], Result], pauses_s: tuple[float, ...] | None = None) -> Result:
        """Repeat a call that fails, with longer and longer pauses.

        Raises:
            StorageError: It fails each time.
        """
        waits = iter(() if self._is_away else self.PAUSES_S if pauses_s is None else pauses_s)
        while True:
            try:
                result = call()
            except (OSError, ValueError) as error:  # what pyarrow raises, whatever goes wrong
                pause_s = next(waits, None)
                if pause_s is None:
                    self._is_away = True
                    msg = f"resources.storage: {self.address}: {' '.join(str(error).split())}"
                    raise StorageError(msg) from error
                self._sleep(pause_s)
            else:
                self._is_away = False
                return result


def _opened(address: str) -> tuple[FileSystem, str]:
    """Pyarrow's file system, and the folder in it.

    Keys are found by the cloud's own rules: environment, profile, instance. The endpoint of a storage that only speaks S3 is an
    option of the address, or AWS_ENDPOINT_URL.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, FileSystem, S3FileSystem  # noqa: PLC0415 -- as above

    if not address.startswith("s3://"):
        fs, root = FileSystem.from_uri(address)
        return fs, root
    parts = urlsplit(address)
    named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"endpoint_override": named} if named else {}
    options |= parse_qsl(parts.query)
    retry = AwsStandardS3RetryStrategy(max_attempts=3)
    fs = S3FileSystem(retry_strategy=retry, connect_timeout=5, request_timeout=60, **options)
    return fs, f"{parts.netloc}{parts.path}".rstrip("/")


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder that are no part of something under way."""
    if not folder.is_dir():
        return []
    found = (path for path in sorted(folder.iterdir()) if path.is_dir())
    return [path for path in found if not path.name.startswith(".") and not path.name.endswith(SUFFIX)]


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
