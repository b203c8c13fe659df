"""`tuner`'s own worker with a stopwatch around its parts, so that the benchmark sees what its time goes to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import phases

_BEGUN = phases.now()

from tuner.worker import host, lockstep, training  # noqa: E402

phases.note("imports", _BEGUN)


def _timed(owner: Any, name: str, phase: str) -> None:
    plain: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(plain)
    def wrapped(*args: Any, **keywords: Any) -> Any:
        with phases.timed(phase):
            return plain(*args, **keywords)

    setattr(owner, name, wrapped)


for place, function, spent_on in (
    (host, "load_splits", "tokenizing"),
    (host, "load_base", "loading"),
    (host, "prepare_data", "tokenizing"),
    (training.TrialRun, "__init__", "adapter"),
    (training.TrialRun, "step", "training"),
    (lockstep.Lockstep, "step", "training"),
    (training.TrialRun, "_evaluated", "evaluation"),
    (host, "restore_checkpoint", "checkpoint"),
    (host.Worker, "_saved", "checkpoint"),
):
    _timed(place, function, spent_on)

Worker = host.Worker
