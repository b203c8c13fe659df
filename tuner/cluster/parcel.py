"""What a sweep needs of this machine, as one small folder that can travel. Runs where the person is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.config import is_folder_name
from tuner.errors import ClusterError
from tuner.sweep_file import load_sweep_file, sweep_text

if TYPE_CHECKING:
    from tuner.config import SweepConfig

SWEEP_FILE = "sweep.yaml"
LIMIT_BYTES = 400 * 2**20
"""Ray takes packages of 500 MiB and keeps them in the head's memory."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A file or folder that a sweep names."""

    key: str
    """Where the sweep file names it."""
    path: Path
    """Where it lies here."""
    place: str
    """Where it will lie in the parcel."""
    size_bytes: int
    """Of all its files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A sweep that is ready to travel."""

    config: SweepConfig
    """The sweep, with paths as they are here."""
    pieces: tuple[Piece, ...]
    """What travels with it."""


def plan_parcel(sweep_file: Path, overrides: Sequence[str] = (), shared: Sequence[Path] = ()) -> Parcel:
    """Find out what must travel; nothing is copied.

    Args:
        sweep_file: The YAML file.
        overrides: `key.key=value` each, put over what the file says.
        shared: Folders that the cluster sees under the same path; what lies in them stays where it is.

    Raises:
        ConfigError: The sweep file is wrong.
        ClusterError: What it names is not here, or too large to travel.
    """
    config = load_sweep_file(sweep_file, overrides)
    pieces = tuple(
        _piece(key, Path(name), number)
        for number, (key, name) in enumerate(_named_paths(config))
        if not _is_shared(name, shared)
    )
    _require_small(pieces)
    return Parcel(config=config, pieces=pieces)


def write_parcel(parcel: Parcel, folder: Path) -> None:
    """Lay a parcel out in an empty folder: the sweep file as resolved, beside it what it names."""
    places = {str(piece.path): f"./{piece.place}" for piece in parcel.pieces}
    text = sweep_text(parcel.config, lambda name: places.get(name, name))
    (folder / SWEEP_FILE).write_text(text, encoding="utf-8")
    for piece in parcel.pieces:
        target = folder / piece.place
        target.parent.mkdir(exist_ok=True)
        if piece.path.is_dir():
            shutil.copytree(piece.path, target, copy_function=_link_or_copy)
        else:
            _link_or_copy(piece.path, target)


def _named_paths(config: SweepConfig) -> Iterator[tuple[str, str]]:
    names = {"model.name": config.model.name, "model.config": config.model.config}
    yield from ((key, name) for key, name in names.items() if name is not None and is_folder_name(name))
    if config.data.path is not None:
        yield "data.path", config.data.path


def _is_shared(name: str, shared: Sequence[Path]) -> bool:
    return any(Path(name).is_relative_to(folder) for folder in shared)


def _piece(key: str, path: Path, number: int) -> Piece:
    if not path.exists():
        msg = f"{key}: {path} is not on this machine; where the cluster has it, name its folder with --shared"
        raise ClusterError(msg)
    return Piece(key=key, path=path, place=f"inputs/{number}-{path.name}", size_bytes=_size_of(path))


def _size_of(path: Path) -> int:
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def _require_small(pieces: Sequence[Piece]) -> None:
    total = sum(piece.size_bytes for piece in pieces)
    if total <= LIMIT_BYTES:
        return
    listed = ", ".join(f"{piece.key} {piece.size_bytes / MIB:,.0f} MiB" for piece in pieces)
    msg = (
        f"what the sweep names is too large to travel with a job: {listed}; at most {LIMIT_BYTES / MIB:,.0f} MiB may. Put it on "
        "a hub, or where all nodes see it and name that folder with --shared"
    )
    raise ClusterError(msg)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for the same file costs nothing; another disk needs a copy."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
