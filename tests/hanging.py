"""A real worker whose trial 0 stops making steps in its second rung, as often as `hangs` beside the sweep's folder says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.worker import training
from tuner.worker.host import Worker

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.worker.stepping import Stepped


def hang_for_ever() -> None:
    """As a lock does that nobody gives back."""
    threading.Event().wait()


class HangingWorker(Worker):
    """Hangs, in a step."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        if folder is None:
            return
        marker, whole = folder.parent / "hangs", training.TrialRun.step

        def step(self: training.TrialRun) -> Stepped:
            left = int(marker.read_text())
            if self.spec.number == 0 and self.steps == 3 and left:
                marker.write_text(str(left - 1))
                hang_for_ever()
            return whole(self)

        training.TrialRun.step = step  # type: ignore[method-assign]
