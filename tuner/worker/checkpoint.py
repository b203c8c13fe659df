"""A trial's state on disk after each rung, so that it goes on elsewhere after a fault. Runs on the worker.

checkpoints/trial-0007/rung-000060/state.pt     weights trained, optimizer, schedule, metrics
                                   adapter/     PEFT's own format, after the last rung
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tuner.trial import Metrics
    from tuner.worker.training import TrialRun


def save_checkpoint(run: TrialRun, folder: Path, *, with_adapter: bool) -> None:
    """Write the state after the rung just reached; a kill at any moment leaves the older or the newer one whole.

    Args:
        run: Has reported at least once.
        folder: The trial's own.
        with_adapter: Write the adapter in PEFT's format too.
    """
    assert run.metrics is not None  # noqa: S101 -- saved after a rung only
    final = folder / f"rung-{run.metrics.steps:06d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    torch.save(run.state_dict(), partial / "state.pt")
    if with_adapter:
        run.adapted.save(partial / "adapter")
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for older in _rungs(folder)[:-1]:
        shutil.rmtree(older)


def restore_checkpoint(run: TrialRun, folder: Path) -> Metrics | None:
    """Bring a fresh run to the newest rung on disk; None where there is none."""
    rungs = _rungs(folder)
    if not rungs:
        return None
    return run.load_state_dict(torch.load(rungs[-1] / "state.pt", weights_only=True))


def _rungs(folder: Path) -> list[Path]:
    """Whole checkpoints, by rising steps."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"rung-\d{6,}", path.name))
