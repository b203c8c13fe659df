"""The one truth about a sweep, in three verbs: ask, report, tell. Runs on the driver; the only module that talks to Optuna.

Everything is written to a journal file before it is acted on, so that a killed driver loses nothing. Optuna's own pruning
is not used: `Trial.report` and `should_prune` raise on studies with several objectives (optuna 5.0).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from pydantic import TypeAdapter

from tuner.errors import FolderError
from tuner.front import Objective, objectives_of
from tuner.pruner import is_dominated
from tuner.recommend import baseline_specs, starting_points
from tuner.space import suggest
from tuner.trial import (
    Baseline,
    Decision,
    FailReason,
    Inspection,
    Metrics,
    Outcome,
    TrialRecord,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from tuner.config import SearchConfig, SweepConfig

SPEC, METRICS, OUTCOME, INSPECTION = "spec", "metrics", "outcome", "inspection"
"""Keys of user attributes in the journal; `metrics` is followed by the rung's steps."""

_SPEC = TypeAdapter(TrialSpec)
_METRICS = TypeAdapter(Metrics)
_OUTCOME = TypeAdapter(Outcome)
_INSPECTION = TypeAdapter(Inspection)

_OPTUNA_STATES = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.FAIL: optuna.trial.TrialState.FAIL,
}


class Study:
    """A sweep's trials, from the first ask to the last tell. Build one with `create_study` or `open_study`.

    Args:
        study: The search.
        beside: The baselines: a study of their own in the same journal, which the sampler does not see.
        config: The sweep.
    """

    def __init__(self, study: optuna.Study, beside: optuna.Study, config: SweepConfig) -> None:
        self._study = study
        self._beside = beside
        self._config = config
        self._objectives = objectives_of(config)
        self._is_recovered = False
        self._ids: dict[int, int] = {}
        self._places: dict[int, int] = {}
        self._records: dict[int, TrialRecord] = {}
        for trial in (*study.get_trials(deepcopy=False), *beside.get_trials(deepcopy=False)):
            if SPEC in trial.user_attrs:
                record = _record(trial)
                self._records[record.number] = record
                self._ids[record.number] = trial._trial_id  # noqa: SLF001 -- optuna has no public way by number
                self._places[record.number] = trial.number
        self._unfinished = [record.spec for record in self.records if record.state is TrialState.RUNNING]
        self._baselines = [spec for spec in baseline_specs(config, self.inspection) if spec.number not in self._records]

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, by number; baselines last."""
        return tuple(sorted(self._records.values(), key=lambda record: record.place))

    @functools.cached_property
    def inspection(self) -> Inspection:
        """What was found out about model and data when the sweep began."""
        return _INSPECTION.validate_python(self._study.user_attrs[INSPECTION], strict=False)

    def ask(self) -> TrialSpec | None:
        """The next trial to work on; None when all are given out.

        First come those that a killed driver left running, then baselines, then new ones. What is sampled depends on the
        sweep's seed, the trial's number and what was told before.
        """
        if not self._is_recovered:  # not when a study is opened: a report may read what another driver writes
            _ask_again(self._study)
            self._is_recovered = True
        if self._unfinished:
            return self._unfinished.pop(0)
        if self._baselines:
            spec = self._baselines.pop(0)
            return self._begun(spec, self._beside.ask())
        if sum(number >= 0 for number in self._records) >= self._config.search.num_trials:
            return None
        self._study.sampler = _build_sampler(self._config.search, self._next_number())
        trial = self._study.ask()
        suggestion = suggest(trial, self._config.search.space, self.inspection.model.layers)
        return self._begun(suggestion.as_spec(trial.number, seed=self._config.training.seed), trial)

    def _next_number(self) -> int:
        """Starting points wait in the study with numbers of their own; they come first."""
        waiting = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        return waiting[0].number if waiting else len(self._study.get_trials(deepcopy=False))

    def _begun(self, spec: TrialSpec, trial: optuna.Trial) -> TrialSpec:
        trial.set_user_attr(SPEC, _SPEC.dump_python(spec, mode="json"))
        self._ids[spec.number] = trial._trial_id  # noqa: SLF001 -- optuna has no public way by number
        self._places[spec.number] = (
            trial.number
        )  # of a baseline: a kill between asking and writing leaves an empty trial
        self._records[spec.number] = TrialRecord(spec=spec, state=TrialState.RUNNING)
        return spec

    def report(self, number: int, metrics: Metrics) -> Decision:
        """Take in a trial's results at a rung; a repeated report changes nothing but is decided on again.

        Args:
            number: A running trial.
            metrics: Its results; `metrics.steps` is the rung.
        """
        record = self._records[number]
        if metrics.steps not in {known.steps for known in record.curve}:
            self._set_attr(number, f"{METRICS}:{metrics.steps}", _METRICS.dump_python(metrics, mode="json"))
            record = dataclasses.replace(record, curve=(*record.curve, metrics))
            self._records[number] = record
        baseline = record.spec.baseline
        if metrics.steps >= self._config.training.max_steps or baseline is Baseline.ZERO_SHOT:
            return Decision.FINISH
        if baseline is not None:
            return Decision.CONTINUE
        others = self._at_rung(metrics.steps, but=number)
        dominated = is_dominated(metrics, others, self._config.pruning, self._objectives)
        return Decision.PRUNE if dominated else Decision.CONTINUE

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Close a trial.

        A finished trial whose memory was measured in another way than the sweep's first ends as FAIL: the numbers could not
        be compared.

        Args:
            number: A running trial; a finished one must have reported its last rung.
            outcome: How it ended.
        """
        record = self._records[number]
        if outcome.state is TrialState.COMPLETE:
            outcome = self._checked(record, outcome)
        self._set_attr(number, OUTCOME, _OUTCOME.dump_python(outcome, mode="json"))
        values = self._values(record) if outcome.state is TrialState.COMPLETE else None
        study = self._study if record.spec.baseline is None else self._beside
        study.tell(self._places[number], values, state=_OPTUNA_STATES[outcome.state])
        closed = dataclasses.replace(record, state=outcome.state, outcome=outcome)
        self._records[number] = closed
        return closed

    def _set_attr(self, number: int, key: str, value: object) -> None:
        self._study._storage.set_trial_user_attr(self._ids[number], key, value)  # noqa: SLF001 -- after a restart there is no optuna.Trial

    def _at_rung(self, steps: int, *, but: int) -> list[Metrics]:
        others = (record for record in self._records.values() if record.number != but and record.spec.baseline is None)
        return [metrics for record in others for metrics in record.curve if metrics.steps == steps]

    def _checked(self, record: TrialRecord, outcome: Outcome) -> Outcome:
        kinds = {other.last.memory_kind for other in self._records.values() if _is_complete(other) and other.last}
        if record.last is None or kinds <= {record.last.memory_kind}:
            return outcome
        detail = f"{record.last.memory_kind}, the sweep's trials: {kinds.pop()}"
        return Outcome(state=TrialState.FAIL, reason=FailReason.MEMORY_KIND, detail=detail)

    def _values(self, record: TrialRecord) -> Sequence[float]:
        assert record.last is not None  # noqa: S101 -- a finished trial has reported
        return [objective.of(record.last) for objective in self._objectives]


def create_study(journal: Path, config: SweepConfig, inspection: Inspection) -> Study:
    """Begin a sweep's study in a new journal file; recommended starting points wait in it to be tried first."""
    storage = _storage(journal)
    study = _create(storage, config.name, config)
    study.set_user_attr(INSPECTION, _INSPECTION.dump_python(inspection, mode="json"))
    for point in starting_points(config, inspection)[: config.search.num_trials]:
        study.enqueue_trial(point)
    return Study(study, _create(storage, _beside(config.name), config), config)


def _create(storage: JournalStorage, name: str, config: SweepConfig) -> optuna.Study:
    objectives = objectives_of(config)
    directions = [_direction(objective) for objective in objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    with _experimental():
        study.set_metric_names([str(objective) for objective in objectives])
    return study


def _beside(name: str) -> str:
    return f"{name} baselines"


def _ask_again(study: optuna.Study) -> None:
    """Give back points that a killed driver had taken out of the study and not yet written down."""
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if SPEC not in trial.user_attrs:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            if point := trial.system_attrs.get("fixed_params"):
                study.enqueue_trial(point)


def open_study(journal: Path, config: SweepConfig) -> Study:
    """Read a sweep's study from its journal.

    Raises:
        FolderError: The file is no journal of this sweep.
    """
    try:
        storage = _storage(journal)
        study = optuna.load_study(storage=storage, study_name=config.name)
        return Study(study, optuna.load_study(storage=storage, study_name=_beside(config.name)), config)
    except (KeyError, ValueError) as error:
        msg = f"{journal} holds no study named {config.name!r}"
        raise FolderError(msg) from error


def _storage(journal: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(journal)))


def _direction(objective: Objective) -> StudyDirection:
    return StudyDirection.MAXIMIZE if objective.is_maximized else StudyDirection.MINIMIZE


def _build_sampler(search: SearchConfig, number: int) -> BaseSampler:
    # One sampler per trial, seeded by the trial's number: a resumed sweep must not draw the first trials' points again.
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with _experimental():  # multivariate and group are what conditional spaces need
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Use what optuna 5.0 marks as experimental, without a warning on the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _is_complete(record: TrialRecord) -> bool:
    return record.state is TrialState.COMPLETE


def _record(trial: FrozenTrial) -> TrialRecord:
    attrs = trial.user_attrs
    curve = [_METRICS.validate_python(value) for key, value in attrs.items() if key.startswith(f"{METRICS}:")]
    outcome = _OUTCOME.validate_python(attrs[OUTCOME]) if OUTCOME in attrs and trial.state.is_finished() else None
    return TrialRecord(
        spec=_SPEC.validate_python(attrs[SPEC]),
        state=outcome.state if outcome else TrialState.RUNNING,
        curve=tuple(sorted(curve, key=lambda metrics: metrics.steps)),
        outcome=outcome,
    )
