"""The next point to try: (what is known of all trials) -> Suggestion. Runs on the driver; talks to Optuna.

Optuna's TPE learns from a study that is put together anew for each point: the journal's own would mislead it, for in a study
with several objectives TPE ranks every stopped trial below every finished one, however good it was (optuna 5.0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuner.dimensions import Range
from tuner.front import objectives_of
from tuner.journal import MEMORY, experimental
from tuner.space import Suggestion, dimensions, suggest
from tuner.trial import TrialRecord, TrialState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.config import SweepConfig
    from tuner.front import Objective
    from tuner.layers import Layer
    from tuner.space import Searched

MOST_LEARNED = 1000
"""Newest trials that a point is learned from, so that it costs the same late in a long sweep."""
Worth = Callable[["Sequence[TrialRecord]", "SweepConfig"], "Sequence[list[float] | None]"]
"""(trials, sweep) -> for each what it is worth, lower is better, or None."""
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
    # One sampler per trial, seeded by the trial's number: a resumed sweep must not draw the first trials' points again.
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of every study, and there is one for each point
    seed = int(np.random.SeedSequence([config.search.seed, number]).generate_state(1)[0])
    study = optuna.create_study(directions=["minimize"] * len(objectives_of(config)), sampler=_sampler(config, seed))
    if config.search.sampler == "tpe":
        study.add_trials([*_known(records[-MOST_LEARNED:], config, worth or worth_at_rung)])
    return suggest(study.ask(), config.search.space, layers)


def _sampler(config: SweepConfig, seed: int) -> optuna.samplers.BaseSampler:
    if config.search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with experimental():  # multivariate and group are what conditional spaces need
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _known(records: Sequence[TrialRecord], config: SweepConfig, worth: Worth) -> Iterator[optuna.trial.FrozenTrial]:
    """The trials as they are to be learned from."""
    known = {name: _distribution(dimension) for name, dimension in dimensions(config.search.space).items()}
    for record, values in zip(records, worth(records, config), strict=True):
        params = dict(record.spec.params)
        yield optuna.trial.create_trial(
            state=_state(record, has_values=values is not None),
            values=values,
            params=params,
            distributions={name: known[name] for name in params},
            system_attrs={f"constraints:{MEMORY}": 1.0} if record.state is TrialState.INFEASIBLE else None,
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


def _state(record: TrialRecord, *, has_values: bool) -> optuna.trial.TrialState:
    """Optuna's state: what failed or was stopped too early is worse than all that got further."""
    if has_values:
        return optuna.trial.TrialState.COMPLETE
    return optuna.trial.TrialState.RUNNING if record.state.is_open else optuna.trial.TrialState.PRUNED


def _distribution(dimension: Searched) -> BaseDistribution:
    match dimension:
        case Range(low=int(low), high=int(high), step=step):
            return IntDistribution(low, high, log=dimension.log, step=int(step or 1))
        case Range():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
        case _:
            return CategoricalDistribution([*dimension.choices])
