"""A trial's state on disk, so that it goes on elsewhere after a fault. Runs on the worker.

checkpoints/trial-0007/step-000060/state.pt         weights trained, optimizer, schedule, progress, the last report
                                   adapter/         PEFT's own format, after the last rung
                                   checksums.json   SHA-256 of each file of these

The state after the rung before stays too: where the newest turns out to be damaged, the trial goes back to that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuner.whole import remove_partial, whole

if TYPE_CHECKING:
    from tuner.worker.training import TrialRun

CHECKSUMS = "checksums.json"
NUM_KEPT = 2
LEAST_FREE_BYTES = 2**20
"""With less, a write that failed is taken to have failed for lack of room, whatever the library calls it."""


def save_checkpoint(run: TrialRun, folder: Path, *, with_adapter: bool) -> None:
    """Write a run's state; a kill at any moment leaves the older or the newer one whole.

    Args:
        run: Is between two steps.
        folder: The trial's own.
        with_adapter: Write the adapter in PEFT's format too.
    """
    final = folder / f"step-{run.steps:06d}"
    with whole(final) as partial:
        torch.save(run.state_dict(), partial / "state.pt")
        if with_adapter:
            run.adapted.save(partial / "adapter")
        (partial / CHECKSUMS).write_text(json.dumps(_digests(partial)), encoding="utf-8")
    for older in _saved(folder)[:-NUM_KEPT]:
        shutil.rmtree(older, ignore_errors=True)


def restore_checkpoint(run: TrialRun, folder: Path) -> tuple[str, ...]:
    """Bring a fresh run to the newest state on disk that is whole; it stays fresh where there is none.

    Returns:
        What people should know: states that were damaged. These are removed.
    """
    remove_partial(folder)
    remarks = []
    for saved in reversed(_saved(folder)):
        if (problem := damage(saved)) is None:
            run.load_state_dict(torch.load(saved / "state.pt", weights_only=True))
            break
        shutil.rmtree(saved)
        remarks.append(f"the checkpoint of {saved.name.replace('-', ' ')} was damaged ({problem})")
    return tuple(f"{remark}; went on from step {run.steps}" for remark in remarks)


def is_full(error: Exception, folder: Path) -> bool:
    """Whether something could not be written because the disk or a quota is full."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    return shutil.disk_usage(folder).free < LEAST_FREE_BYTES


def damage(saved: Path) -> str | None:
    """What is wrong with a checkpoint; None where it is what was written."""
    try:
        wanted = json.loads((saved / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{CHECKSUMS} can't be read"
    there = _digests(saved)
    differing = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    return f"{', '.join(differing)} not as written" if differing else None


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): _sha256(path) for path in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _saved(folder: Path) -> list[Path]:
    """Whole checkpoints, by rising steps."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name))
