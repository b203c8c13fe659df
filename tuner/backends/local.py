"""Trials one after another in this process: for a laptop, a debugger, and to check what Ray gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.backends import StudyVerbs, hand_in, worker_environment
from tuner.backends.crew import Crew, build_crew, first_room
from tuner.trial import Decision, Inspection

if TYPE_CHECKING:
    from tuner.config import SweepConfig


class LocalBackend:
    """Carries out trials in this process.

    Args:
        worker: Dotted path of a `WorkerFactory`.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker

    def inspect(self, config: SweepConfig) -> Inspection:
        """Look at model and data."""
        return self._build(config, None).inspect()

    def run(self, config: SweepConfig, folder: Path, study: StudyVerbs) -> None:
        """Work until the study gives out no more trials."""
        crew, room = self._build(config, folder), first_room(config)
        crew.listen(lambda: study.is_interrupted)
        num_at_work = 0
        while True:
            while room > 0 and (spec := study.ask()) is not None:
                crew.take_on(spec)
                num_at_work, room = num_at_work + 1, room - 1
            if not num_at_work:
                break
            told = crew.advance()
            gone = [
                number for number, result in told.results if hand_in(study, number, result) is not Decision.CONTINUE
            ]
            for number in gone:
                crew.drop(number)
            num_at_work, room = num_at_work - len(gone), told.room + len(gone)
        crew.close()

    def close(self) -> None:
        """Nothing to give back."""

    def _build(self, config: SweepConfig, folder: Path | None) -> Crew:
        os.environ.update(worker_environment(config))
        return build_crew(self._worker, config, folder)
