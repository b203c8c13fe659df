"""Trial records -> Importances: how much each searched choice mattered for the sweep's metric. Runs on the driver; uses Optuna.

Two answers of Optuna's evaluators: the share of the metric's variance over the whole space that a choice explains by itself
(fANOVA), and its part in being among the best quarter (PED-ANOVA), which no few very bad trials decide. Trials are compared at
one rung, for most are stopped early, and those that finish were chosen by the metric.

Optuna is given each choice as its place in the space, from 0 to 1, for its fANOVA (5.0) would weigh a logarithmic range as if it
were linear, and all 2^k combinations of k choices as if there were such. A made-up choice that does nothing runs along: trees
find something in anything, and what is no larger than what they find in that one has not been shown to matter.

Source: Hutter et al., An Efficient Approach for Assessing Hyperparameter Importance (ICML 2014); Watanabe et al., PED-ANOVA
(IJCAI 2023, arXiv 2304.10255).
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.dimensions import Range
from tuner.optuna_quiet import experimental
from tuner.pareto import BoolArray, FloatArray
from tuner.report.findings.intervals import CONFIDENCE
from tuner.space import Searched, dimensions
from tuner.trial import FailReason, Metric, Metrics, ParamValue, TrialRecord

if TYPE_CHECKING:
    import optuna

    from tuner.config import SweepConfig

MIN_TRIALS = 10
"""Fewer say nothing."""
MOST = 0.75
"""Share of the trials that must have reached the rung. Those stopped before are the bad ones: without the worst quarter half of
a normal metric's variance is left, without the worst half a third, and what made them bad seems to matter less than it does."""
TOP_SHARE = 0.25
"""The best quarter."""
NUM_RESAMPLES, NUM_TREES = 20, 2
"""Resamples of the trials, and fANOVA's trees for each."""
MOST_DRAWN = 100
"""Trials in a resample, for fANOVA's cost grows faster than their number; the intervals are then wider than they need be."""
CHANCE = ""
"""Name of the made-up choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A share of the importance, and how sure it is."""

    mean: float
    """Over the resamples, in [0, 1]."""
    low: float
    """Where the middle `CONFIDENCE` of the resamples begins."""
    high: float
    """Where it ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """How much a searched choice mattered."""

    name: str
    """Of the parameter."""
    share: Share
    """Of the metric's variance over the space, as far as trees can learn it from the trials."""
    top: Share
    """Its part, of all choices', in being among the best quarter."""
    beats_chance: float
    """Share of the resamples in which it explains more of the variance than the made-up choice."""

    @property
    def matters(self) -> bool:
        """Whether it explains more than chance would, beyond the noise."""
        return self.beats_chance >= CONFIDENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Importances:
    """How much every searched choice mattered, at one rung."""

    steps: int
    """The rung at which the trials are compared."""
    num_trials: int
    """Trials compared, diverged ones included."""
    num_diverged: int
    """Of them, those that count as the worst: the loss was not finite, there or later."""
    num_missing: int
    """Trials that reported before this rung and did not reach it, or not yet; they count in nothing."""
    values: tuple[Importance, ...]
    """The most important first; neighbours whose intervals overlap are in no order."""
    chance: Importance
    """Of the made-up choice that does nothing."""
    conditional: tuple[str, ...]
    """Parameters that not every compared trial has, and of which nothing is said therefore."""
    unvaried: tuple[str, ...]
    """Parameters that had the same value in every compared trial."""


def importances(records: Sequence[TrialRecord], config: SweepConfig) -> Importances | None:
    """Find out how much each searched choice mattered.

    The metric is the sweep's at every rung, perplexity as its logarithm. A trial whose loss was not finite, by then or later,
    counts as the worst that any trial had there: it is the strongest evidence that there is against its learning rate. It makes
    no difference how a trial ended otherwise, as long as it reached the rung.

    Args:
        records: All that the study knows, in any order; baselines and audits count in nothing.
        config: The sweep.

    Returns:
        The same for the same records in any order; None where fewer than `MIN_TRIALS` reached a rung.
    """
    ordered = sorted(records, key=lambda record: record.number)
    begun = [record for record in ordered if record.spec.is_searched and (record.curve or _has_diverged(record))]
    steps = compared_rung(begun, config.rungs)
    if steps is None:
        return None
    compared = [record for record in begun if _has_reached(record, steps)]
    losses, is_worst = _losses(compared, steps, config.metric)
    params = [dict(record.spec.params) for record in compared]
    space = dimensions(config.search.space)
    common = [name for name in space if all(name in known for known in params)]
    varied = [name for name in common if len({known[name] for known in params}) > 1]
    if not varied or len(set(losses.tolist())) == 1:
        return None
    places = {name: positions(space[name], [known[name] for known in params]) for name in varied}
    found = _found(places, losses)
    return Importances(
        steps=steps,
        num_trials=len(compared),
        num_diverged=int(is_worst.sum()),
        num_missing=len(begun) - len(compared),
        values=tuple(sorted((found[name] for name in varied), key=lambda value: -value.share.mean)),
        chance=found[CHANCE],
        conditional=tuple(name for name in space if name not in common),
        unvaried=tuple(name for name in common if name not in varied),
    )


def compared_rung(records: Sequence[TrialRecord], rungs: Sequence[int]) -> int | None:
    """The latest rung that `MOST` of the trials have reached, and at least `MIN_TRIALS`; None without one.

    Args:
        records: Trials of the search that reported or diverged; what diverged counts at every rung.
        rungs: The sweep's, by rising steps.
    """
    least = max(MIN_TRIALS, MOST * len(records))
    calm = [record for record in records if not _has_diverged(record)]
    reached = Counter(metrics.steps for record in calm for metrics in record.curve)
    return next((steps for steps in reversed(rungs) if reached[steps] + len(records) - len(calm) >= least), None)


def positions(dimension: Searched, values: Sequence[ParamValue]) -> FloatArray:
    """Where values lie in [0, 1], so that the sampler's prior is uniform there: whole numbers and choices get equal parts.

    Args:
        dimension: What is searched.
        values: Of trials.

    Returns:
        `(num_values,)`.
    """
    if not isinstance(dimension, Range):
        ordered = _ordered(dimension)
        return np.array([(ordered.index(value) + 0.5) / len(ordered) for value in values])
    step = dimension.step or (1 if isinstance(dimension.low, int) else 0)
    ends_and_values = np.array([dimension.low - step / 2, dimension.high + step / 2, *values], dtype=np.float64)
    scaled = np.log(ends_and_values) if dimension.log else ends_and_values
    return np.asarray(np.clip((scaled[2:] - scaled[0]) / (scaled[1] - scaled[0]), 0.0, 1.0), dtype=np.float64)


def _ordered(dimension: Searched) -> list[ParamValue]:
    """The choices, numbers by size: a tree then parts small from large."""
    choices: list[ParamValue] = [] if isinstance(dimension, Range) else [*dimension.choices]
    return choices if any(isinstance(choice, str) for choice in choices) else sorted(choices)


def _has_diverged(record: TrialRecord) -> bool:
    return record.outcome is not None and record.outcome.reason is FailReason.LOSS_NOT_FINITE


def _has_reached(record: TrialRecord, steps: int) -> bool:
    return _has_diverged(record) or any(metrics.steps == steps for metrics in record.curve)


def _losses(records: Sequence[TrialRecord], steps: int, metric: Metric) -> tuple[FloatArray, BoolArray]:
    """What each trial was worth at a rung, lower is better, and which of them count as the worst."""
    losses = np.array([_loss_at(record, steps, metric) for record in records])
    is_worst = ~np.isfinite(losses)
    return np.where(
        is_worst, losses.max(initial=0.0 if is_worst.all() else -math.inf, where=~is_worst), losses
    ), is_worst


def _loss_at(record: TrialRecord, steps: int, metric: Metric) -> float:
    if _has_diverged(record):
        return math.inf
    return _loss(next(metrics for metrics in record.curve if metrics.steps == steps), metric)


def _loss(metrics: Metrics, metric: Metric) -> float:
    # Cross entropy is perplexity's logarithm: one trial that went astray does not make up all of the variance.
    return metrics.loss if metric is Metric.PERPLEXITY else metric.loss(metrics.accuracy)


def _found(places: dict[str, FloatArray], losses: FloatArray) -> dict[str, Importance]:
    """Choice -> importance, that of chance among them.

    Args:
        places: Choice -> `(num_trials,)` in [0, 1].
        losses: `(num_trials,)`, finite, not all the same.
    """
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator  # noqa: PLC0415 -- brings scikit-learn

    draw = np.random.default_rng(0)
    shares: dict[str, list[float]] = {name: [] for name in (*places, CHANCE)}
    tops: dict[str, list[float]] = {name: [] for name in (*places, CHANCE)}
    for seed in range(NUM_RESAMPLES):
        rows = draw.integers(len(losses), size=min(len(losses), MOST_DRAWN))
        columns = {**places, CHANCE: draw.random(len(losses))}
        if len(set(losses[rows].tolist())) == 1:  # which says nothing
            continue
        study = _study({name: column[rows] for name, column in columns.items()}, losses[rows])
        with experimental(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few trials, which the intervals show
            explained = FanovaImportanceEvaluator(n_trees=NUM_TREES, seed=seed).evaluate(study)
            top = PedAnovaImportanceEvaluator(target_quantile=TOP_SHARE).evaluate(study)
        total = sum(top.values()) or 1.0
        for name in columns:
            shares[name].append(float(explained[name]))
            tops[name].append(float(top[name] / total))
    return {
        name: Importance(
            name=name,
            share=_summary(shares[name]),
            top=_summary(tops[name]),
            beats_chance=statistics.fmean(
                mine > chance for mine, chance in zip(shares[name], shares[CHANCE], strict=True)
            ),
        )
        for name in shares
    }


def _study(columns: dict[str, FloatArray], losses: FloatArray) -> optuna.Study:
    """Some trials as Optuna's evaluators take them."""
    import optuna  # noqa: PLC0415 -- as above

    place: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    distributions = dict.fromkeys(columns, place)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: float(column[row]) for name, column in columns.items()},
                distributions=distributions,
                value=float(loss),
            )
            for row, loss in enumerate(losses)
        ]
    )
    return study


def _summary(shares: Sequence[float]) -> Share:
    if not shares:
        return Share(mean=0.0, low=0.0, high=1.0)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(shares, [tail, 100 - tail])
    return Share(mean=statistics.fmean(shares), low=float(low), high=float(high))
