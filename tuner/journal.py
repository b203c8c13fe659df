"""A sweep's journal: two Optuna studies, the search and what stands beside it. Runs on the driver; talks to Optuna.

It is a file, or tables in a database. Everything is written here before it is acted on, so that a killed driver loses nothing.
`optuna-dashboard` opens both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.study import StudyDirection
from pydantic import TypeAdapter, ValidationError

from tuner.addresses import JOURNAL
from tuner.errors import FolderError, StorageError
from tuner.journal_file import MEND, JournalFile, attribute_line, make_file, mend, wrong
from tuner.journal_queue import JournalQueue
from tuner.optuna_quiet import experimental
from tuner.prediction import Prediction
from tuner.trial import Inspection, Metrics, Outcome, ParamValue, TrialRecord, TrialSpec, TrialState

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from tuner.config import SweepConfig
    from tuner.front import Objective
    from tuner.postgres import PostgresStorage

Place = Path | str
"""Where a journal is: a file, or a database's address."""

SPEC, METRICS, OUTCOME, INSPECTION, PAUSED, ELAPSED = "spec", "metrics", "outcome", "inspection", "paused", "elapsed_s"
PREDICTION = "prediction"
"""Keys of user attributes; `metrics` is followed by the rung's steps."""
MEMORY = "memory"
"""Name of the constraint that a trial which needs too much memory does not keep."""

SearchTrial = optuna.Trial
"""A trial of the search that was taken out of the journal and has no point yet."""

_SPEC = TypeAdapter(TrialSpec)
_METRICS = TypeAdapter(Metrics)
_OUTCOME = TypeAdapter(Outcome)
_INSPECTION = TypeAdapter(Inspection)
_PREDICTION = TypeAdapter(Prediction)
_SECONDS = TypeAdapter(float)

_Value = TypeVar("_Value")

_OPTUNA_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.INFEASIBLE: optuna.trial.TrialState.PRUNED,
    TrialState.FAIL: optuna.trial.TrialState.FAIL,
}


class Journal:
    """The journal of one sweep.

    Args:
        search: The study of the search.
        beside: Baselines and audits: a study of their own, which no sampler sees.
        file: Where both lie, for what is said of damage; None where they lie in no file.
        let_go: Gives back what holds a database's study.
    """

    def __init__(
        self,
        search: optuna.Study,
        beside: optuna.Study,
        file: Path | None = None,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        self._search = search
        self._beside = beside
        self._file = file
        self.let_go = let_go
        self._trials: dict[int, tuple[optuna.Study, FrozenTrial]] = {}
        self._queue = JournalQueue(search, SPEC)

    def load_records(self) -> tuple[TrialRecord, ...]:
        """Every trial that was begun, by number within the search and beside it.

        Raises:
            FolderError: One can't be read.
        """
        records = []
        for study in (self._search, self._beside):
            trials = study.get_trials(deepcopy=False)
            if study is self._search:
                self._queue.pass_by(trials)
            for trial in trials:
                if SPEC in trial.user_attrs:
                    records.append(self._record(trial, is_searched=study is self._search))
                    self._trials[records[-1].number] = study, trial
        return tuple(records)

    @property
    def inspection(self) -> Inspection:
        """What was found out about model and data when the sweep began."""
        if INSPECTION not in self._search.user_attrs:
            raise FolderError(
                f"{self._file or 'the journal'} holds a sweep that was killed before it began; remove its folder and run it again"
            )
        return self._study_value(_INSPECTION, INSPECTION)

    @property
    def elapsed_s(self) -> float:
        """Wall time that earlier drivers spent, as far as written."""
        return self._study_value(_SECONDS, ELAPSED) if ELAPSED in self._search.user_attrs else 0.0

    def write_inspection(self, inspection: Inspection) -> None:
        """Keep what was found out about model and data."""
        self._search.set_user_attr(INSPECTION, _INSPECTION.dump_python(inspection, mode="json"))

    def write_elapsed(self, elapsed_s: float) -> None:
        """Keep the wall time spent so far."""
        self._search.set_user_attr(ELAPSED, elapsed_s)

    def next_number(self) -> tuple[int, bool]:
        """(number of the next trial, whether its point waits already): points that come first have their numbers."""
        is_given = self._queue.first() is not None
        return self._queue.num_past, is_given

    def enqueue(self, point: Mapping[str, ParamValue]) -> None:
        """Have a point wait for `begin`."""
        self._search.enqueue_trial(dict(point))

    def begin(self) -> SearchTrial:
        """Take out the point that waits; `write_spec` must follow.

        One that a killed driver had taken out and not yet written down comes first, so that a killed sweep goes on with the
        numbers and points of an unbroken one.
        """
        return self._queue.take()

    def write_spec(
        self, spec: TrialSpec, trial: SearchTrial | None = None, prediction: Prediction | None = None
    ) -> None:
        """Write down what is tried, with the memory that it is expected to need.

        The spec comes last: a trial without one was never begun, so that a driver killed in between loses no prediction.

        Args:
            spec: Of the trial.
            trial: Of the search; without one the trial stands beside it.
            prediction: Its peak, where it is known.
        """
        study = self._search if trial is not None else self._beside
        begun = trial if trial is not None else self._beside.ask()
        if prediction is not None:
            begun.set_user_attr(PREDICTION, _PREDICTION.dump_python(prediction, mode="json"))
        begun.set_user_attr(SPEC, _SPEC.dump_python(spec, mode="json"))
        frozen = study._storage.get_trial(begun._trial_id)  # noqa: SLF001 -- optuna has no public way by number
        self._trials[spec.number] = study, frozen

    def write_new(
        self, spec: TrialSpec, distributions: Mapping[str, BaseDistribution], prediction: Prediction | None = None
    ) -> None:
        """Write down a trial of the search whose point has not waited, whole in one line; its number is the next one."""
        attrs = {} if prediction is None else {PREDICTION: _PREDICTION.dump_python(prediction, mode="json")}
        attrs[SPEC] = _SPEC.dump_python(spec, mode="json")
        self._trials[spec.number] = self._search, self._queue.add(dict(spec.params), distributions, attrs)

    def write_metrics(self, number: int, metrics: Metrics) -> None:
        """Write down a report."""
        self._set(number, f"{METRICS}:{metrics.steps}", _METRICS.dump_python(metrics, mode="json"))

    def write_pause(self, number: int, *, is_paused: bool) -> None:
        """Write down that a trial waits, or goes on."""
        self._set(number, PAUSED, is_paused)

    def close(self, number: int, outcome: Outcome, values: Sequence[float] | None, excess_gib: float) -> None:
        """Write down how a trial ended.

        Args:
            number: Of the trial.
            outcome: How it ended.
            values: Of the objectives; None unless it is complete.
            excess_gib: With an infeasible trial: memory that it needs beyond the limit, above 0.
        """
        self._set(number, OUTCOME, _OUTCOME.dump_python(outcome, mode="json"))
        study, trial = self._trials[number]
        if outcome.state is TrialState.INFEASIBLE:
            optuna.trial.Trial(study, trial._trial_id).set_constraint(MEMORY, excess_gib)  # noqa: SLF001 -- as above
        study.tell(trial.number, values, state=_OPTUNA_STATES[outcome.state])

    def _record(self, trial: FrozenTrial, *, is_searched: bool) -> TrialRecord:
        attrs = trial.user_attrs
        spec = self._trial_value(_SPEC, trial, SPEC)
        if (spec.number != trial.number) if is_searched else (spec.number >= 0):
            raise self._damaged("trial_id", trial._trial_id, SPEC, f"number {spec.number} is not the trial's")  # noqa: SLF001 -- as above
        curve = [self._trial_value(_METRICS, trial, key) for key in attrs if key.startswith(f"{METRICS}:")]
        is_over = OUTCOME in attrs and trial.state.is_finished()
        outcome = self._trial_value(_OUTCOME, trial, OUTCOME) if is_over else None
        waits = TrialState.PAUSED if attrs.get(PAUSED, False) else TrialState.RUNNING
        return TrialRecord(
            spec=spec,
            state=outcome.state if outcome else waits,
            curve=tuple(sorted(curve, key=lambda metrics: metrics.steps)),
            outcome=outcome,
            prediction=self._trial_value(_PREDICTION, trial, PREDICTION) if PREDICTION in attrs else None,
        )

    def _trial_value(self, kind: TypeAdapter[_Value], trial: FrozenTrial, key: str) -> _Value:
        try:
            return kind.validate_python(trial.user_attrs[key], strict=False)
        except ValidationError as error:
            raise self._damaged("trial_id", trial._trial_id, key, wrong(error)) from error  # noqa: SLF001 -- as above

    def _study_value(self, kind: TypeAdapter[_Value], key: str) -> _Value:
        try:
            return kind.validate_python(self._search.user_attrs[key], strict=False)
        except ValidationError as error:
            raise self._damaged("study_id", self._search._study_id, key, wrong(error)) from error  # noqa: SLF001 -- as above

    def _damaged(self, scope: str, owner: int, key: str, why: str) -> FolderError:
        """What is wrong with an attribute, and where it was written."""
        line = attribute_line(self._file, scope, owner, key) if self._file else None
        place = f"{self._file or 'the journal'}{f':{line}' if line else ''}"
        return FolderError(f"{place}: {key} can't be used: {why}; {MEND}")

    def _set(self, number: int, key: str, value: object) -> None:
        study, trial = self._trials[number]
        study._storage.set_trial_user_attr(trial._trial_id, key, value)  # noqa: SLF001 -- after a restart there is no optuna.Trial


def place_of(file: Path, config: SweepConfig) -> Place:
    """Where a sweep's journal is.

    Args:
        file: The one in its folder, which `study.storage` may name no use for.
        config: The sweep.
    """
    return file if config.study.storage == JOURNAL else config.study.storage


def require_new(place: Place, name: str) -> None:
    """Make sure that a database answers and has no such study yet; of a file the folder knows.

    Raises:
        FolderError: There is a study of that name.
        StorageError: The database does not answer.
    """
    if isinstance(place, str):
        storage = _database(place)
        _clear(storage, place, name, is_dry=True)
        storage.close()


def create_journal(
    place: Place,
    name: str,
    objectives: Sequence[Objective],
    inspection: Inspection,
    points: Sequence[Mapping[str, ParamValue]] = (),
) -> Journal:
    """Begin a sweep's journal.

    Args:
        place: A new file, whose folder exists, or a database without such a study.
        name: The sweep's.
        objectives: The sweep's.
        inspection: What was found out about model and data.
        points: To be tried first.

    Raises:
        FolderError: The file can't be written, or another driver writes in the database.
        StorageError: The database does not answer.
    """
    if isinstance(place, Path):
        make_file(place)
        journal = Journal(*_created(_storage(JournalFile(place)), name, objectives), place)
        return _begun(journal, inspection, points)
    storage = _database(place, name)
    with _let_go_on_error(storage):
        _clear(storage, place, name, is_dry=False)
        return _begun(Journal(*_created(storage, name, objectives), None, storage.close), inspection, points)


def memory_journal(name: str, objectives: Sequence[Objective], inspection: Inspection) -> Journal:
    """A journal that ends with the process, for simulations: a file is synced to disk at each line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _begun(Journal(*_created(InMemoryStorage(), name, objectives)), inspection, ())


def open_journal(place: Place, name: str, *, is_read_only: bool = True) -> Journal:
    """Read a sweep's journal.

    Args:
        place: The file, or the database.
        name: The sweep's.
        is_read_only: Another driver may be writing. If not, hold the folder's lock: a line that was never finished is cut off,
            and a database's study is held.

    Raises:
        FolderError: There is no journal of this sweep, it is damaged, or another driver writes in the database.
        StorageError: The database does not answer.
    """
    if isinstance(place, str):
        database = _database(place, None if is_read_only else name)
        with _let_go_on_error(database):
            return Journal(*_loaded(database, place, name), None, database.close)
    if not is_read_only:
        mend(place)
    backend = JournalFile(place, is_read_only=is_read_only)
    with backend.replaying():
        storage = _storage(backend)
    return Journal(*_loaded(storage, place, name), place)


def _loaded(storage: BaseStorage, place: Place, name: str) -> tuple[optuna.Study, optuna.Study]:
    try:
        search, beside = (optuna.load_study(storage=storage, study_name=study) for study in _names(name))
    except KeyError as error:
        raise FolderError(
            f"{place} holds no study named {name!r}: it is of another sweep, or of one that was killed before it began; "
            "then remove its folder and run it again"
        ) from error
    return search, beside


@contextlib.contextmanager
def _let_go_on_error(storage: PostgresStorage) -> Iterator[None]:
    with contextlib.ExitStack() as on_error:
        on_error.callback(storage.close)
        yield
        on_error.pop_all()


def _database(address: str, holding: str | None = None) -> PostgresStorage:
    """Optuna's tables; with a name, that sweep is held until they are closed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        from tuner.postgres import open_storage  # noqa: PLC0415 -- its driver library is an extra
    except ModuleNotFoundError as error:
        raise StorageError(
            f"study.storage: {address} needs the package {error.name}: pip install 'tuner[postgres]'"
        ) from None
    return open_storage(address, holding)


def _clear(storage: BaseStorage, address: str, name: str, *, is_dry: bool) -> None:
    """Refuse a name that is taken; what a driver left that was killed before its sweep had begun goes."""
    for study in storage.get_all_studies():
        if study.study_name == name and INSPECTION in study.user_attrs:
            msg = (
                f"{address} holds a study named {name!r} already; go on with `tuner resume` and the folder of that sweep, or "
                "choose another `name`"
            )
            raise FolderError(msg)
        if study.study_name in _names(name) and not is_dry:
            storage.delete_study(study._study_id)  # noqa: SLF001 -- optuna's own delete_study opens the storage anew


def _begun(journal: Journal, inspection: Inspection, points: Sequence[Mapping[str, ParamValue]]) -> Journal:
    """The inspection comes last: a sweep without one was killed before all of its first points were written."""
    for point in points:
        journal.enqueue(point)
    journal.write_inspection(inspection)
    return journal


def _created(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> tuple[optuna.Study, optuna.Study]:
    search, beside = (_create(storage, study, objectives) for study in _names(name))
    return search, beside


def _names(name: str) -> tuple[str, str]:
    return name, f"{name} baselines"


def _create(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> optuna.Study:
    directions = [
        StudyDirection.MAXIMIZE if objective.is_maximized else StudyDirection.MINIMIZE for objective in objectives
    ]
    study = optuna.create_study(
        storage=storage, study_name=name, directions=directions, sampler=optuna.samplers.RandomSampler()
    )
    with experimental():
        study.set_metric_names([str(objective) for objective in objectives])
    return study


def _storage(backend: JournalFile) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(backend)
