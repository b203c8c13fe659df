"""The next point to try: (what is known of all trials) -> Suggestion. Runs on the driver; talks to Optuna.

Optuna's TPE learns from a study that is put together anew for each point: the journal's own would mislead it, for in a study
with several objectives TPE ranks every stopped trial below every finished one, however good it was (optuna 5.0).
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from tuner.distributions import distributions
from tuner.front import objectives_of
from tuner.journal import MEMORY
from tuner.optuna_quiet import experimental
from tuner.space import Suggestion, suggest
from tuner.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from optuna.distributions import BaseDistribution

    from tuner.config import SweepConfig
    from tuner.front import Objective
    from tuner.layers import Layer

MOST_LEARNED = 500
"""Newest trials with something to say that a point is learned from, so that it costs the same late in a long sweep."""
MOST_UNDER_WAY = 250
"""Newest trials without a report that a point keeps away from; a thousand may be under way at once."""
Worth = Callable[["Sequence[TrialRecord]", "SweepConfig"], "Sequence[list[float] | None]"]
"""(trials, sweep) -> for each what it is worth, lower is better, or None."""
ABOVE_ALL = 2**31
"""Taken off a trial's number: those that are known are numbered below 0, in their order."""
BEGUN = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""Optuna wants to know when a trial began, and makes nothing of it."""
MIN_AT_RUNG = 10
"""Trials that a rung must hold before points are learned from it; TPE's own number of start-up trials."""


def propose(
    records: Sequence[TrialRecord],
    config: SweepConfig,
    layers: Sequence[Layer],
    number: int,
    worth: Worth | None = None,
) -> Suggestion:
    """Choose the point of a new trial.

    Args:
        records: The trials of the search so far.
        config: The sweep.
        layers: The base model's.
        number: Of the new trial; with the sweep's seed it is the start of the draw.
        worth: What each trial counts as; `worth_at_rung` by default. Benchmarks try others.

    Returns:
        The same point for the same records and number, whatever was drawn before.
    """
    return Proposer(worth)(records, config, layers, number)


class Proposer:
    """`propose` for one sweep, again and again: what Optuna is shown of a trial is made once for all points.

    Args:
        worth: As for `propose`.
    """

    def __init__(self, worth: Worth | None = None) -> None:
        self._worth = worth or worth_at_rung
        self._shown: dict[int, _Shown] = {}

    def __call__(
        self, records: Sequence[TrialRecord], config: SweepConfig, layers: Sequence[Layer], number: int
    ) -> Suggestion:
        """Choose the point of a new trial; as `propose`."""
        # One sampler per trial, seeded by the trial's number: a resumed sweep must not draw the first trials' points again.
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study, and there is one for each point
        seed = int(np.random.SeedSequence([config.search.seed, number]).generate_state(1)[0])
        is_learning = config.search.sampler == "tpe"
        study = optuna.create_study(
            storage=_Learned(self._known(newest(records), config) if is_learning else []),
            directions=["minimize"] * len(objectives_of(config)),
            sampler=_sampler(config, seed),
        )
        return suggest(study.ask(), config.search.space, layers)

    def _known(self, records: Sequence[TrialRecord], config: SweepConfig) -> list[FrozenTrial]:
        """The trials as they are to be learned from."""
        known = distributions(config.search.space)
        before, self._shown = self._shown, {}
        for record, values in zip(records, self._worth(records, config), strict=True):
            shown = before.get(record.number)
            if shown is None or shown.record is not record or shown.values != values:
                shown = _Shown(record, values, _frozen(record, values, known))
            self._shown[record.number] = shown
        return [shown.frozen for shown in self._shown.values()]


class _Shown(NamedTuple):
    """A trial as Optuna is shown it, and what that was made from."""

    record: TrialRecord
    values: list[float] | None
    frozen: FrozenTrial


class _Learned(InMemoryStorage):
    """A storage that has trials already, as they are; whoever reads them leaves them so.

    Optuna's own way to add a trial copies it deeply and checks it, which took most of the time of a new point (optuna 5.0).

    Args:
        known: Numbered below 0, in their order.
    """

    def __init__(self, known: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._known = known

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 -- as Optuna has it
        states: Container[OptunaState] | None = None,
    ) -> list[FrozenTrial]:
        """Those that were known, then those begun since."""
        known = (trial for trial in self._known if states is None or trial.state in states)
        return [*known, *super().get_all_trials(study_id, deepcopy, states)]


def newest(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials that a point is learned from, in their order: where many are under way, those that have ended count too."""
    found: list[TrialRecord] = []
    num_learned = num_under_way = 0
    for record in reversed(records):
        is_under_way = record.state is TrialState.RUNNING and not record.curve
        if is_under_way and num_under_way == MOST_UNDER_WAY:
            continue
        if not is_under_way and num_learned == MOST_LEARNED:
            break
        num_under_way += is_under_way
        num_learned += not is_under_way
        found.append(record)
    return found[::-1]


def _sampler(config: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with experimental():  # multivariate and group are what conditional spaces need
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _frozen(record: TrialRecord, values: list[float] | None, known: Mapping[str, BaseDistribution]) -> FrozenTrial:
    state, params, place = (
        _state(record, has_values=values is not None),
        dict(record.spec.params),
        record.number - ABOVE_ALL,
    )
    return FrozenTrial(
        number=place,
        trial_id=place,
        state=state,
        value=None,
        values=values,
        datetime_start=BEGUN,
        datetime_complete=BEGUN if state.is_finished() else None,
        params=params,
        distributions={name: known[name] for name in params},
        user_attrs={},
        system_attrs={f"constraints:{MEMORY}": 1.0} if record.state is TrialState.INFEASIBLE else {},
        intermediate_values={},
    )


def worth_at_rung(records: Sequence[TrialRecord], config: SweepConfig) -> list[list[float] | None]:
    """What each trial was worth at the highest rung that enough have reached, lower is better; None if it did not get there.

    Before the last rung cross entropy stands for the metric, for it tells earlier which trials will be good.
    """
    steps = learned_rung(records, config.rungs)
    objectives = objectives_of(config)
    return [_values_at(record, steps, objectives, is_last=steps == config.rungs[-1]) for record in records]


def learned_rung(records: Sequence[TrialRecord], rungs: Sequence[int]) -> int:
    """The highest rung that at least MIN_AT_RUNG trials have reached, or the first."""
    reached = Counter(metrics.steps for record in records for metrics in record.curve)
    return max((steps for steps in rungs if reached[steps] >= MIN_AT_RUNG), default=rungs[0])


def _values_at(
    record: TrialRecord, steps: int, objectives: Sequence[Objective], *, is_last: bool
) -> list[float] | None:
    metrics = next((metrics for metrics in record.curve if metrics.steps == steps), None)
    if metrics is None or record.state is TrialState.INFEASIBLE:
        return None
    metric, *costs = objectives
    first = metric.loss_of(metrics) if is_last else metrics.loss
    return [first, *(math.log(max(cost.of(metrics), 1e-9)) for cost in costs)]


def _state(record: TrialRecord, *, has_values: bool) -> OptunaState:
    """Optuna's state: what failed or was stopped too early is worse than all that got further."""
    if has_values:
        return OptunaState.COMPLETE
    return OptunaState.RUNNING if record.state.is_open else OptunaState.PRUNED
