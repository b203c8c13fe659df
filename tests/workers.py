"""Workers that misbehave in one way each, for tests of what the driver makes of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.trial import Interruption, Result, folder_name
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuner.config import SweepConfig
    from tuner.trial import Result, TrialSpec


class UnbuildableWorker(SyntheticWorker):
    """Can look at model and data, and can't begin on a trial: say, its node does not see the sweep's folder."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        if folder is not None:
            message = f"this node does not see {folder}"
            raise OSError(message)


class DyingWorker(SyntheticWorker):
    """Its process ends without a word at the second rung of trial 1, as often as `deaths` beside the sweep's folder says."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._folder = folder
        self._number = -1
        self._rungs = 0

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._number, self._rungs = spec.number, 0

    def advance(self) -> Result:
        self._rungs += 1
        if self._number == 1 and self._rungs == 2:
            self._die()
        return super().advance()

    def _die(self) -> None:
        if self._folder is not None and (deaths := int((self._folder.parent / "deaths").read_text())) > 0:
            (self._folder.parent / "deaths").write_text(str(deaths - 1))
            os._exit(1)


class DyingAtTheStartWorker(DyingWorker):
    """The same, when trial 1 is handed to it."""

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        if spec.number == 1:
            self._die()

    def advance(self) -> Result:
        self._number = -1
        return super().advance()


class SteppingWorker(SyntheticWorker):
    """Takes its time for each step and leaves a checkpoint at each rung, as the real one does, but needs no torch.

    It notes each rung that it has kept in `reached` beside the sweep's folder: one line each, whichever process it is.
    """

    STEP_S = 0.03

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        super().__init__(config, folder)
        self._folder = folder
        self._is_interrupted: Callable[[], bool] = lambda: False
        self._is_begun = False

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        self._is_interrupted = is_interrupted

    def start(self, spec: TrialSpec) -> None:
        super().start(spec)
        self._is_begun = False

    def advance(self) -> Result:
        assert self._folder is not None
        assert self._spec is not None
        if self._spec.scores is not None:
            return super().advance()
        kept = self._folder / "checkpoints" / folder_name(self._spec.number) / "steps.json"
        if not self._is_begun and kept.is_file():
            last = json.loads(kept.read_text(encoding="utf-8"))
            self._steps = max(rung for rung in (0, *self._config.rungs) if rung < last)
            self._is_begun = True
            return super().advance()  # once more: the driver may not have heard it
        self._is_begun = True
        for done in range(self._steps, next(rung for rung in self._config.rungs if rung > self._steps)):
            if self._is_interrupted():
                return Interruption(steps=done)
            time.sleep(self.STEP_S)
        metrics = super().advance()
        self._keep(kept)
        return metrics

    def _keep(self, kept: Path) -> None:
        assert self._folder is not None
        assert self._spec is not None
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(json.dumps(self._steps), encoding="utf-8")
        partial.replace(kept)
        with (self._folder.parent / "reached").open("a", encoding="utf-8") as file:
            file.write(f"{self._spec.number} {self._steps}\n")


class SlowWorker(SyntheticWorker):
    """Takes its time for a rung, as one that trains would."""

    def advance(self) -> Result:
        time.sleep(0.5)
        return super().advance()
