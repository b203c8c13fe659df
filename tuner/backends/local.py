"""Trials one after another in this process: for a laptop, a debugger, and to check what Ray gives."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.backends import StudyVerbs, TrialWorker, hand_in, worker_environment
from tuner.trial import Decision, Inspection, TrialSpec

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
        worker = self._build(config, folder)
        worker.listen(lambda: study.is_interrupted)
        while (spec := study.ask()) is not None:
            _run_trial(worker, study, spec)
        worker.close()

    def close(self) -> None:
        """Nothing to give back."""

    def _build(self, config: SweepConfig, folder: Path | None) -> TrialWorker:
        os.environ.update(worker_environment(config))
        worker: TrialWorker = pkgutil.resolve_name(self._worker)(config, folder)
        return worker


def _run_trial(worker: TrialWorker, study: StudyVerbs, spec: TrialSpec) -> None:
    worker.start(spec)
    while hand_in(study, spec.number, worker.advance()) is Decision.CONTINUE:
        pass
