"""The real worker, on a node that is lost once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.worker.host import Worker

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.trial import Result, TrialSpec


class LosingWorker(Worker):
    """Trains; its node's scratch folder is lost with its process after the first rung of trial 1, as often as `deaths` says."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._marker = folder.parent / "deaths" if folder else None

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._number, self._num_rungs = spec.number, 0

    def advance(self) -> Result:
        self._num_rungs += 1
        deaths = int(self._marker.read_text()) if self._marker else 0
        if self._number == 1 and self._num_rungs == 2 and deaths and self._marker:
            self._marker.write_text(str(deaths - 1))
            shutil.rmtree(os.environ["TUNER_SCRATCH"])
            os._exit(1)
        return super().advance()
