"""The driver: joins study, backend, folder and view; runs, resumes, loads. Runs on the driver."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.backends import WORKER, Backend, build_backend
from tuner.errors import ConfigError, PausedError, Problem, TooManyFailuresError
from tuner.folder import SweepFolder
from tuner.front import Objective, front, objectives_of
from tuner.interrupts import interruptible
from tuner.journal import open_journal, place_of, require_new
from tuner.lease import held
from tuner.live import NoView, View
from tuner.mirror import Mirror, bring_sweep, files_of, require_answer, require_unused
from tuner.predictor import predicting
from tuner.redaction import keepable
from tuner.report import write_report
from tuner.space import space_problems
from tuner.study import Study, create_study, open_study
from tuner.sweep_file import find_line, load_sweep_file, write_sweep_file
from tuner.trial import Decision, Inspection, Metrics, Outcome, TrialRecord, TrialSpec
from tuner.without_gc import without_gc

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A sweep as its folder tells it."""

    folder: Path
    """Where it lies."""
    config: SweepConfig
    """What was asked for."""
    inspection: Inspection
    """What was found out about model and data."""
    records: tuple[TrialRecord, ...]
    """All trials by number, then what stands beside the search."""

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """Those of the search alone."""
        return tuple(record for record in self.records if record.spec.is_searched)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the front weighs."""
        return objectives_of(self.config)

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """Finished trials that no other dominates, cheapest first."""
        return front(self.records, self.objectives)


def run(  # noqa: PLR0913 -- each is a choice of the caller
    sweep_file: Path | str,
    *,
    out: Path | str | None = None,
    backend: str | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    view: View | None = None,
    worker: str = WORKER,
) -> Sweep:
    """Run a sweep from its file to its report.

    Args:
        sweep_file: The YAML file.
        out: The sweep's folder, new; `reports/<name>` by default.
        backend: `ray` or `local`; as the file says by default.
        overrides: `key.key=value` each, put over what the file says.
        address: A Ray cluster: `auto` on one of its nodes, or host:port of its head; else RAY_ADDRESS, else one on this machine.
        view: Shows progress; silent by default.
        worker: Dotted path of what trains; only tests name another.

    Raises:
        ConfigError: The file, the model or the data is wrong; nothing was written.
        FolderError: The folder is taken or can't be written, or the sweep's name is taken in the database.
        StorageError: The database or the object storage does not answer.
        ResourcesError: No node has what a trial asks for.
        ClusterError: No cluster answers at the address, or it refuses the token.
        TooManyFailuresError: Trials failed one after another; `resume` goes on from there.
        PausedError: The disk is full; `resume` goes on once there is room.
        KeyboardInterrupt: Ctrl-C or SIGTERM: after the steps under way at the first, at once at the second.
    """
    if backend is not None:
        overrides = (*overrides, f"resources.backend={backend}")
    config = load_sweep_file(Path(sweep_file), overrides)
    files = files_of(config)
    folder = SweepFolder(Path(out) if out is not None else Path("reports") / config.name, files)
    folder.require_free()
    require_new(place_of(folder.journal, config), config.name)
    require_unused(files)
    with (
        contextlib.closing(build_backend(config.resources.backend, worker, address)) as trainer,
        predicting(config) as predictor,
    ):
        inspection = _inspected(trainer, config, Path(sweep_file))
        folder.create()
        with folder.locked(), held(files) as require_held:
            with folder.has_room():
                write_sweep_file(config, folder.sweep_file)
                study = create_study(folder.journal, config, inspection)
            with contextlib.closing(study):
                study.predict = predictor.of_sweep(config, inspection)
                return _carry_out(study, trainer, config, folder, Mirror(folder, files, require_held), view or NoView())


def resume(
    folder: Path | str,
    *,
    out: Path | str | None = None,
    backend: str | None = None,
    address: str | None = None,
    view: View | None = None,
    worker: str = WORKER,
) -> Sweep:
    """Go on with a sweep that was interrupted: finished trials stay, unfinished ones go on from their last rung.

    Args:
        folder: The sweep's folder, or its `resources.storage` to go on with it on another machine.
        out: With a storage: a new folder; `reports/<name>` by default.
        backend: `ray` or `local`; as before by default.
        address: A Ray cluster, as in `run`.
        view: Shows progress; silent by default.
        worker: Dotted path of what trains; only tests name another.

    Raises:
        ConfigError: Model or data can no longer be used, or the data is not what the sweep began with.
        FolderError: There is no sweep in the folder, or another process works on it.
        StorageError: The database or the object storage does not answer.
        ResourcesError: No node has what a trial asks for.
        ClusterError: No cluster answers at the address, or it refuses the token.
        TooManyFailuresError: Trials failed one after another.
        PausedError: The disk is full; `resume` goes on once there is room.
        KeyboardInterrupt: As with `run`.
    """
    path = bring_sweep(str(folder), Path(out) if out is not None else None) if "://" in str(folder) else Path(folder)
    SweepFolder(path).require_sweep()
    overrides = [f"resources.backend={backend}"] if backend else []
    config = load_sweep_file(SweepFolder(path).sweep_file, overrides)
    files = files_of(config)
    require_answer(files)
    sweep_folder = SweepFolder(path, files)
    with (
        sweep_folder.locked(),
        held(files) as require_held,
        contextlib.closing(open_study(sweep_folder.journal, config)) as study,
        contextlib.closing(build_backend(config.resources.backend, worker, address)) as trainer,
        predicting(config) as predictor,
    ):
        inspection = _inspected(trainer, config, sweep_folder.sweep_file)
        _require_same_data(study.inspection, inspection, config, sweep_folder.sweep_file)
        study.predict = predictor.of_sweep(config, study.inspection)
        mirror = Mirror(sweep_folder, files, require_held)
        return _carry_out(study, trainer, config, sweep_folder, mirror, view or NoView())


def load(folder: Path | str) -> Sweep:
    """Read a sweep from its folder, finished or not; needs neither torch nor ray.

    Raises:
        FolderError: There is no sweep in it.
        StorageError: The database that holds its trials does not answer.
    """
    sweep_folder = SweepFolder(Path(folder))
    sweep_folder.require_sweep()
    config = load_sweep_file(sweep_folder.sweep_file)
    place = place_of(sweep_folder.journal, config)
    with without_gc(), contextlib.ExitStack() as at_end:
        journal = open_journal(place, config.name)  # a study would also work out who is next
        at_end.callback(journal.let_go)
        records = sorted(journal.load_records(), key=lambda record: record.place)
        inspection = journal.inspection
    return Sweep(folder=sweep_folder.path, config=config, inspection=inspection, records=tuple(records))


class Driver:
    """The study's three verbs, with what must happen around them."""

    def __init__(self, study: Study, config: SweepConfig, folder: SweepFolder, mirror: Mirror, view: View) -> None:
        self._study = study
        self._mirror = mirror
        self._config = config
        self._folder = folder
        self._view = view
        self._best = folder.settle(study.records, objectives_of(config), keep_stopped=self._may_audit)
        self._failures_in_a_row = 0

    @property
    def is_over(self) -> bool:
        """Whether `ask` will never give out a trial again."""
        return self._study.is_over

    @property
    def is_interrupted(self) -> bool:
        """Whether trials at work are to save their state and stop."""
        return self._study.is_interrupted

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials as the journal has them."""
        return self._study.records

    def interrupt(self, problem: str) -> None:
        """Stop so that the sweep can be resumed."""
        self._study.interrupt(problem)

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        """A trial's peak memory on a card."""
        return self._study.predict(spec, gpu)

    def ask(self) -> TrialSpec | None:
        """The next trial."""
        with self._folder.has_room():
            spec = self._study.ask()
        if spec is not None:
            if spec.audits is not None:
                self._folder.hand_over(spec.audits, spec.number)
            self._view.update(self._study.records)
        return spec

    def report(self, number: int, metrics: Metrics) -> Decision:
        """Results at a rung."""
        with self._folder.has_room():
            decision = self._study.report(number, metrics)
        self._mirror.note()
        self._view.update(self._study.records)
        return decision

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """A trial's end; what Ray or a library says of it may hold secrets."""
        outcome = replace(outcome, detail=keepable(outcome.detail, os.environ))
        with self._folder.has_room():
            record = self._study.tell(number, outcome)
        self._mirror.note()
        self._best = self._folder.settle(
            self._study.take_ended(), objectives_of(self._config), keep_stopped=self._may_audit, best=self._best
        )
        self._view.update(self._study.records)
        self._count_failures(record)
        return record

    @property
    def _may_audit(self) -> bool:
        return self._config.pruning.audit > 0

    def _count_failures(self, record: TrialRecord) -> None:
        has_failed = record.outcome is not None and record.outcome.reason is not None  # out of memory counts too
        self._failures_in_a_row = self._failures_in_a_row + 1 if has_failed else 0
        if self._failures_in_a_row >= self._config.resources.max_failures_in_a_row and record.outcome:
            msg = (
                f"{self._failures_in_a_row} trials failed one after another, so the sweep ended; mend the cause and go on "
                f"with `tuner resume {self._folder.path}`. Last: {record.spec.label}, {record.outcome.reason}:\n"
                f"{record.outcome.detail}"
            )
            raise TooManyFailuresError(msg)


def _carry_out(
    study: Study, trainer: Backend, config: SweepConfig, folder: SweepFolder, mirror: Mirror, view: View
) -> Sweep:
    objectives = objectives_of(config)
    mirror.begin(config)
    driver = Driver(study, config, folder, mirror, view)
    try:
        with view.watching(config, study.inspection, study.records), interruptible(study.interrupt):
            trainer.run(config, folder.path.absolute(), driver)
        if not study.is_interrupted:
            folder.settle(study.records, objectives)  # nothing is left to audit
    finally:
        with folder.has_room():
            write_report(folder.path, config, study.inspection, study.records)
        mirror.end()
    _require_uninterrupted(study, folder)
    return _sweep(study, config, folder)


def _require_uninterrupted(study: Study, folder: SweepFolder) -> None:
    if study.problem:
        raise PausedError(f"{study.problem}; the sweep has stopped, all that was saved is kept: {folder.way_on}")
    if study.is_interrupted:
        raise KeyboardInterrupt


def _sweep(study: Study, config: SweepConfig, folder: SweepFolder) -> Sweep:
    return Sweep(folder=folder.path, config=config, inspection=study.inspection, records=study.records)


def _inspected(trainer: Backend, config: SweepConfig, file: Path) -> Inspection:
    inspection = trainer.inspect(config)
    problems = [*inspection.problems]
    if inspection.model.layers:
        problems += space_problems(config.search.space, inspection.model)
    if problems:
        raise ConfigError(str(file), tuple(_problem(file, key, message) for key, message in problems))
    return inspection


def _require_same_data(before: Inspection, now: Inspection, config: SweepConfig, file: Path) -> None:
    if before.data_fingerprint != now.data_fingerprint:
        message = f"{config.data.path or config.data.name} is not what this sweep began with; its trials could not be compared"
        raise ConfigError(str(file), (_problem(file, "data.path", message),))


def _problem(file: Path, key: str, message: str) -> Problem:
    return Problem(key=key, message=message, line=find_line(file, key))
