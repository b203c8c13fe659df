"""What the learning curves say: loss that spikes, training that was too short or too long. Pure; runs on the driver."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
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
LEVEL = 0.05
"""Of the test whether unstable trials have larger values."""

SUSPECTS: dict[str, Callable[[TrialRecord], float]] = {
    "learning rate": lambda record: record.spec.learning_rate,
    "scale alpha / r": lambda record: record.spec.lora.scaling_at(record.spec.lora.r) if record.spec.lora else 1.0,
}
"""What may be too large, and how to read it from a trial."""
KEYS = {"learning rate": "learning_rate", "scale alpha / r": "lora_scale (or lora_alpha)"}


def unstable(seen: Seen) -> Iterator[Diagnosis]:
    """Loss spiked or was not finite, and the trials in which it did have a larger learning rate or scale than the others."""
    begun = [record for record in seen.trials if record.spec.lora and (record.curve or _diverged(record))]
    is_shaken = {record.number: _diverged(record) or _spiked(record.curve) for record in begun}
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
    """The front was still getting better by more than the noise of one evaluation when it ended."""
    rising = [_last_gain(seen, record) for record in seen.front]
    gains = [gain for gain in rising if gain is not None]
    if not gains or _overfitted(seen):
        return
    gain, error = statistics.median(gains), statistics.median(last_of(record).standard_error for record in seen.front)
    if gain <= error:
        return
    before = next(record.curve[-2].steps for record in seen.front if len(record.curve) > 1)
    after = seen.config.training.max_steps
    noise = metric_text.gap(seen.metric, error)
    yield Diagnosis(
        kind=Kind.UNDER_TRAINED,
        evidence=(
            f"From step {before:,} to step {after:,} the trials on the front still gained "
            f"{metric_text.gap(seen.metric, gain)} in the median, more than one standard error ({noise})."
        ),
        advice="Raise training.max_steps.",
    )


def overfitting(seen: Seen) -> Iterator[Diagnosis]:
    """The validation loss of most of the front rose again while its training loss fell."""
    if not (risen := _overfitted(seen)):
        return
    ratio = statistics.median(last_of(record).loss / _lowest(record.curve[:-1]) for record in risen)
    yield Diagnosis(
        kind=Kind.OVERFITTING,
        evidence=(
            f"In {len(risen)} of {len(seen.front)} trials on the front the validation loss ended {ratio - 1:.0%} (median) "
            "above its lowest, while the training loss went on falling."
        ),
        advice="Fewer training.max_steps, more lora_dropout or weight_decay, or more data.",
    )


def _overfitted(seen: Seen) -> list[TrialRecord]:
    """Those of the front, if they are at least half of it."""
    found = [record for record in seen.front if _overfits(record.curve)]
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
    """Validation and training loss both rose well above where they had been."""
    for place in range(1, len(curve)):
        now, before = curve[place], curve[:place]
        lowest = min(before, key=lambda at: at.loss)
        rose = now.train_loss is None or lowest.train_loss is None or now.train_loss > lowest.train_loss
        if now.loss > SPIKE * lowest.loss and rose and (now.train_loss is not None or now.accuracy < lowest.accuracy):
            return True
    return False


def _lowest(curve: Sequence[Metrics]) -> float:
    return min(at.loss for at in curve)


def _last_gain(seen: Seen, record: TrialRecord) -> float | None:
    """What the last stretch added, in the metric's unit; None where the trial was scored once."""
    if len(record.curve) < 2:  # noqa: PLR2004 -- a before and an after
        return None
    before, after = record.curve[-2:]
    return seen.metric.loss(before.accuracy) - seen.metric.loss(after.accuracy)


def _p_larger(name: str, shaken: Sequence[TrialRecord], calm: Sequence[TrialRecord]) -> float:
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 -- takes a second to import

    of = SUSPECTS[name]
    values = [of(record) for record in shaken], [of(record) for record in calm]
    if len({*values[0], *values[1]}) == 1:
        return 1.0
    return float(mannwhitneyu(*values, alternative="greater").pvalue)
