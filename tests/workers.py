"""Workers that misbehave in one way each, for tests of what the driver makes of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.trial import Metrics, Outcome, TrialSpec


class UnbuildableWorker(SyntheticWorker):
    """Can look at model and data, and can't begin on a trial: say, its node does not see the sweep's folder."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        if folder is not None:
            message = f"this node does not see {folder}"
            raise OSError(message)


class DyingWorker(SyntheticWorker):
    """Its process ends without a word at the second rung of trial 1, as often as `deaths` in the sweep's folder says."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._folder = folder
        self._number = -1
        self._rungs = 0

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._number, self._rungs = spec.number, 0

    def advance(self) -> Metrics | Outcome:
        self._rungs += 1
        if self._number == 1 and self._rungs == 2 and self._folder is not None:
            marker = self._folder.parent / "deaths"
            deaths = int(marker.read_text())
            if deaths > 0:
                marker.write_text(str(deaths - 1))
                os._exit(1)
        return super().advance()
