"""A worker without torch that keeps trials' states as the real one does, through a storage too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.errors import StorageError
from tuner.trial import Interruption, Metrics, Result
from tuner.worker.keeping import Keeper
from tuner.worker.synthetic import SyntheticWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuner.config import SweepConfig
    from tuner.trial import Inspection, TrialSpec


class KeepingWorker:
    """Keeps its steps as the real one keeps a trial's state, and adds a line to TUNER_TEST_WORKED for each rung worked on."""

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        self._worker = SyntheticWorker(config, folder)
        self._config = config
        self._keeper = Keeper(config, folder)
        self._is_begun = False

    def inspect(self) -> Inspection:
        return self._worker.inspect()

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """Its rungs take no time."""

    def start(self, spec: TrialSpec) -> None:
        self._worker.start(spec)
        self._spec = spec
        self._is_begun = False

    def close(self) -> None:
        self._worker.close()

    def advance(self) -> Result:
        try:
            return self._advance(self._spec)
        except StorageError as error:
            return Interruption(steps=self._worker._steps, problem=str(error))

    def _advance(self, spec: TrialSpec) -> Result:
        place = self._keeper.checkpoints(spec.number)
        assert place is not None
        if spec.scores is not None:
            assert (self._keeper.adapter(spec.scores) / "adapter.txt").read_text() == str(spec.scores)
        if not self._is_begun:
            self._is_begun = True
            self._keeper.bring(spec.number)
            if saved := sorted(place.glob("step-*/state.txt")):
                rungs = (0, *self._config.rungs)
                self._worker._steps = rungs[rungs.index(int(saved[-1].read_text())) - 1]
                return self._worker.advance()  # its last report once more
        result = self._worker.advance()
        if isinstance(result, Metrics) and spec.baseline is None and spec.scores is None:
            self._save(place, spec)
            self._keeper.keep(spec.number)
        return result

    def _save(self, place: Path, spec: TrialSpec) -> None:
        saved = place / f"step-{self._worker._steps:06d}"
        saved.mkdir(parents=True, exist_ok=True)
        (saved / "state.txt").write_text(str(self._worker._steps))
        if self._worker._steps == self._config.training.max_steps:
            (saved / "adapter").mkdir(exist_ok=True)
            (saved / "adapter" / "adapter.txt").write_text(str(spec.number if spec.audits is None else spec.audits))
        with Path(os.environ["TUNER_TEST_WORKED"]).open("a", encoding="utf-8") as stream:
            stream.write(f"{spec.number} {self._worker._steps}\n")
