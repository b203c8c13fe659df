"""A sweep's journal file: two Optuna studies, the search and what stands beside it. Runs on the driver; talks to Optuna.

Everything is written here before it is acted on, so that a killed driver loses nothing. `optuna-dashboard` opens the file.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from pydantic import TypeAdapter

from tuner.errors import FolderError
from tuner.prediction import Prediction
from tuner.trial import Inspection, Metrics, Outcome, ParamValue, TrialRecord, TrialSpec, TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from tuner.front import Objective

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

_OPTUNA_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.INFEASIBLE: optuna.trial.TrialState.PRUNED,
    TrialState.FAIL: optuna.trial.TrialState.FAIL,
}

_WAITING, _RUNNING = optuna.trial.TrialState.WAITING, optuna.trial.TrialState.RUNNING


class Journal:
    """The journal of one sweep.

    Args:
        search: The study of the search.
        beside: Baselines and audits: a study of their own, which no sampler sees.
    """

    def __init__(self, search: optuna.Study, beside: optuna.Study) -> None:
        self._search = search
        self._beside = beside
        self._trials: dict[int, tuple[optuna.Study, FrozenTrial]] = {}

    def load_records(self) -> tuple[TrialRecord, ...]:
        """Every trial that was begun, by number within the search and beside it."""
        records = []
        for study in (self._search, self._beside):
            for trial in study.get_trials(deepcopy=False):
                if SPEC in trial.user_attrs:
                    records.append(_record(trial))
                    self._trials[records[-1].number] = study, trial
        return tuple(records)

    @property
    def inspection(self) -> Inspection:
        """What was found out about model and data when the sweep began."""
        return _INSPECTION.validate_python(self._search.user_attrs[INSPECTION], strict=False)

    @property
    def elapsed_s(self) -> float:
        """Wall time that earlier drivers spent, as far as written."""
        return float(self._search.user_attrs.get(ELAPSED, 0.0))

    def write_elapsed(self, elapsed_s: float) -> None:
        """Keep the wall time spent so far."""
        self._search.set_user_attr(ELAPSED, elapsed_s)

    def ask_again(self) -> None:
        """Give back points that a killed driver had taken out and not yet written down."""
        for trial in self._search.get_trials(deepcopy=False, states=(_RUNNING,)):
            if SPEC not in trial.user_attrs:
                self._search.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                if point := trial.system_attrs.get("fixed_params"):
                    self._search.enqueue_trial(point)

    def next_number(self) -> tuple[int, bool]:
        """(number of the next trial, whether its point waits already): points that come first have their numbers."""
        waiting = self._search.get_trials(deepcopy=False, states=(_WAITING,))
        return (waiting[0].number, True) if waiting else (len(self._search.get_trials(deepcopy=False)), False)

    def enqueue(self, point: Mapping[str, ParamValue]) -> None:
        """Have a point wait for `begin`."""
        self._search.enqueue_trial(dict(point))

    def begin(self) -> SearchTrial:
        """Take out the point that waits; `write_spec` must follow."""
        return self._search.ask()

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

    def _set(self, number: int, key: str, value: object) -> None:
        study, trial = self._trials[number]
        study._storage.set_trial_user_attr(trial._trial_id, key, value)  # noqa: SLF001 -- after a restart there is no optuna.Trial


def create_journal(file: Path, name: str, objectives: Sequence[Objective], inspection: Inspection) -> Journal:
    """Begin a sweep's journal in a new file.

    Args:
        file: Of the journal; its folder exists.
        name: The sweep's.
        objectives: The sweep's.
        inspection: What was found out about model and data.
    """
    return _begun(_storage(file), name, objectives, inspection)


def memory_journal(name: str, objectives: Sequence[Objective], inspection: Inspection) -> Journal:
    """A journal that ends with the process, for simulations: a file is synced to disk at each line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return _begun(InMemoryStorage(), name, objectives, inspection)


def _begun(storage: BaseStorage, name: str, objectives: Sequence[Objective], inspection: Inspection) -> Journal:
    search, beside = (_create(storage, study, objectives) for study in _names(name))
    search.set_user_attr(INSPECTION, _INSPECTION.dump_python(inspection, mode="json"))
    return Journal(search, beside)


def open_journal(file: Path, name: str) -> Journal:
    """Read a sweep's journal.

    Raises:
        FolderError: The file is no journal of this sweep.
    """
    try:
        storage = _storage(file)
        search, beside = (optuna.load_study(storage=storage, study_name=study) for study in _names(name))
    except (KeyError, ValueError) as error:
        msg = f"{file} holds no study named {name!r}"
        raise FolderError(msg) from error
    return Journal(search, beside)


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


def _storage(file: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(file)))


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Use what optuna 5.0 marks as experimental, without a warning on the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    curve = [_METRICS.validate_python(value) for key, value in attrs.items() if key.startswith(f"{METRICS}:")]
    outcome = _OUTCOME.validate_python(attrs[OUTCOME]) if OUTCOME in attrs and trial.state.is_finished() else None
    waits = TrialState.PAUSED if attrs.get(PAUSED, False) else TrialState.RUNNING
    return TrialRecord(
        spec=_SPEC.validate_python(attrs[SPEC]),
        state=outcome.state if outcome else waits,
        curve=tuple(sorted(curve, key=lambda metrics: metrics.steps)),
        outcome=outcome,
        prediction=_PREDICTION.validate_python(attrs[PREDICTION], strict=False) if PREDICTION in attrs else None,
    )
