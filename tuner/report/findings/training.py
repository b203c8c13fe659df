"""What the learning curves say: loss that spikes, training that was too short or too long. Pure; runs on the driver."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.report.findings.diagnoses import Diagnosis, Kind, Seen, last_of
from tuner.trial import FailReason, param_text

if TYPE_CHECKING:
    from tuner.trial import Metrics, TrialRecord

SPIKE = 1.3
"""A validation loss this many times the lowest before it, with a training loss that rose too, is a spike."""
RISE = 1.05
"""A validation loss this many times the lowest before it, with a training loss that fell, is overfitting."""
MIN_UNSTABLE, MIN_STABLE = 2, 3
"""Trials that a comparison needs on either side."""
LEAP = 3.0
"""A step's training loss this many times the mean of the stretch before is a spike too."""
LEVEL = 0.05 / 2
"""Of the test whether unstable trials have larger values: two suspects are tried."""

SUSPECTS: dict[str, Callable[[TrialRecord], float]] = {
    "learning rate": lambda record: record.spec.learning_rate,
    "scale alpha / r": lambda record: record.spec.lora.scaling_at(record.spec.lora.r) if record.spec.lora else 1.0,
}
"""What may be too large, and how to read it from a trial."""
KEYS = {"learning rate": "learning_rate", "scale alpha / r": "lora_scale (or lora_alpha)"}


def unstable(seen: Seen) -> Iterator[Diagnosis]:
    """Loss spiked or was not finite, and the trials in which it did have a larger learning rate or scale than the others."""
    begun = [record for record in seen.trials if record.spec.lora and (record.curve or _diverged(record))]
    is_shaken = {record.number: _diverged(record) or _spiked(_alike(record.curve)) for record in begun}
    shaken = [record for record in begun if is_shaken[record.number]]
    calm = [record for record in begun if not is_shaken[record.number]]
    if len(shaken) < MIN_UNSTABLE or len(calm) < MIN_STABLE:
        return
    blamed = min(SUSPECTS, key=lambda name: _p_larger(name, shaken, calm))
    p = _p_larger(blamed, shaken, calm)
    if p >= LEVEL:
        return
    medians = [param_text(statistics.median(map(SUSPECTS[blamed], group))) for group in (shaken, calm)]
    yield Diagnosis(
        kind=Kind.UNSTABLE,
        evidence=(
            f"In {len(shaken)} of {len(begun)} trials the loss spiked or was not finite. Their {blamed} is larger: "
            f"{medians[0]} in the median, {medians[1]} in the others (Mann-Whitney U, p = {p:.2g})."
        ),
        advice=f"Lower the upper end of search.space.{KEYS[blamed]}.",
    )


def under_trained(seen: Seen) -> Iterator[Diagnosis]:
    """At the pace of its last two stretches the front would gain more than the noise of an evaluation in another one."""
    paces = [_pace(seen, _alike(record.curve)) for record in seen.front]
    known = [pace for pace in paces if pace is not None]
    if not known or _overfitted(seen):
        return
    last = statistics.median(gain for gain, _ in known)
    coming = statistics.median(coming for _, coming in known)
    error = statistics.median(last_of(record).standard_error for record in seen.front)
    if coming <= error:
        return
    rungs = seen.config.rungs
    gained, more, noise = (metric_text.gap(seen.metric, value) for value in (last, coming, error))
    yield Diagnosis(
        kind=Kind.UNDER_TRAINED,
        evidence=(
            f"From step {rungs[-2]:,} to step {rungs[-1]:,} the trials on the front gained {gained} in the median; falling off "
            f"as before, another such stretch would bring {more} more, which is above one standard error ({noise})."
        ),
        advice="Raise training.max_steps.",
    )


def overfitting(seen: Seen) -> Iterator[Diagnosis]:
    """The validation loss of most of the front rose again while its training loss fell."""
    if not (risen := _overfitted(seen)):
        return
    curves = [_alike(record.curve) for record in risen]
    ratio = statistics.median(curve[-1].loss / _lowest(curve[:-1]) for curve in curves)
    yield Diagnosis(
        kind=Kind.OVERFITTING,
        evidence=(
            f"In {len(risen)} of {len(seen.front)} trials on the front the validation loss ended {ratio - 1:.0%} (median) "
            "above its lowest, while the training loss went on falling."
        ),
        advice="Fewer training.max_steps, more lora_dropout or weight_decay, or more data.",
    )


def _alike(curve: Sequence[Metrics]) -> list[Metrics]:
    """A curve on the same examples all along: the last rung is scored on all of them, the ones before maybe on some."""
    return [
        replace(at, accuracy=at.sampled.accuracy, loss=at.sampled.loss, num_validation=at.sampled.num)
        if at.sampled
        else at
        for at in curve
    ]


def _overfitted(seen: Seen) -> list[TrialRecord]:
    """Those of the front, if they are at least half of it."""
    found = [record for record in seen.front if _overfits(_alike(record.curve))]
    return found if 2 * len(found) >= max(1, len(seen.front)) else []


def _overfits(curve: Sequence[Metrics]) -> bool:
    if len(curve) < 2 or not math.isfinite(curve[-1].loss):  # noqa: PLR2004 -- a before and an after
        return False
    lowest = min(range(len(curve)), key=lambda place: curve[place].loss)
    train = [curve[place].train_loss for place in (lowest, -1)]
    fell = None not in train and train[1] < train[0]  # type: ignore[operator]
    return curve[-1].loss > RISE * curve[lowest].loss and fell


def _diverged(record: TrialRecord) -> bool:
    return record.outcome is not None and record.outcome.reason is FailReason.LOSS_NOT_FINITE


def _spiked(curve: Sequence[Metrics]) -> bool:
    """Losses rose well above where they had been, at a rung or in a step before it."""
    return any(
        _rose(curve[place], curve[:place]) or _leapt(curve[place], curve[:place]) for place in range(1, len(curve))
    )


def _rose(now: Metrics, before: Sequence[Metrics]) -> bool:
    """Validation and training loss at a rung; where the training loss is not known the metric stands for it."""
    lowest = min(before, key=lambda at: at.loss)
    if now.loss <= SPIKE * lowest.loss:
        return False
    if now.train_loss is None or lowest.train_loss is None:
        return now.accuracy < lowest.accuracy
    return now.train_loss > lowest.train_loss


def _leapt(now: Metrics, before: Sequence[Metrics]) -> bool:
    """The loss of a step: many times the mean before it, and above that of the first stretch, when nothing had been learned."""
    means = [at.train_loss for at in before if at.train_loss is not None]
    if now.worst_train_loss is None or not means:
        return False
    return now.worst_train_loss > max(LEAP * means[-1], SPIKE * means[0])


def _lowest(curve: Sequence[Metrics]) -> float:
    return min(at.loss for at in curve)


def _pace(seen: Seen, curve: Sequence[Metrics]) -> tuple[float, float] | None:
    """(what the last stretch gained, what another would if gains fall off by the same factor), in the metric's unit."""
    if len(curve) < 3:  # noqa: PLR2004 -- two stretches
        return None
    losses = [seen.metric.loss(at.accuracy) for at in curve[-3:]]
    before, last = losses[0] - losses[1], losses[1] - losses[2]
    if last <= 0:
        return last, 0.0
    return last, last * min(1.0, last / before) if before > 0 else last


def _p_larger(name: str, shaken: Sequence[TrialRecord], calm: Sequence[TrialRecord]) -> float:
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 -- takes a second to import

    of = SUSPECTS[name]
    values = [of(record) for record in shaken], [of(record) for record in calm]
    if len({*values[0], *values[1]}) == 1:
        return 1.0
    return float(mannwhitneyu(*values, alternative="greater").pvalue)
