"""Records -> Audit: what stopping early has lost, by the stopped trials that were finished after all. Pure; runs on the driver.

Source: Clopper, Pearson, The use of confidence or fiducial limits (Biometrika 1934), for the exact interval; Efron, Tibshirani,
An Introduction to the Bootstrap (1993), chapter 13, for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.front import Objective, is_candidate
from tuner.report.findings.intervals import CONFIDENCE
from tuner.report.findings.volume import Box, points_of, would_stand
from tuner.trial import TrialRecord, TrialState

NUM_RESAMPLES = 2_000

Interval = tuple[float, float]
"""Low and high end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """A stopped trial that was finished after all."""

    stopped: TrialRecord
    """As the search left it."""
    finished: TrialRecord
    """As the audit finished it."""
    is_on_front: bool
    """Whether no finished trial of the search dominates it."""
    hypervolume_loss: float
    """Share of the hypervolume of the finished trials and this one that is missing without this one, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What is known of the stopped trials from those drawn at random and finished after all."""

    num_stopped: int
    """Stopped trials in all."""
    trials: tuple[Audited, ...]
    """Those finished after all, by the stopped trial's number."""
    num_failed: int
    """Audits that failed or did not fit; they count in nothing else."""
    num_steps: int
    """Optimizer steps that the audit took beyond those before the stops."""
    hypervolume_loss: float
    """Share of the hypervolume of the finished and all audited trials that is missing without the audited ones, in [0, 1]."""
    share_interval: Interval | None
    """Of `share` among all stopped trials, exact, and on the safe side: it takes them for endlessly many. None for a census."""
    mean_loss_interval: Interval | None
    """Of `mean_loss` over all stopped trials, from resamples. None for a census, and where all audited lost the same: the
    resamples then are alike, however few there are."""

    @property
    def num_audited(self) -> int:
        """Stopped trials that were finished."""
        return len(self.trials)

    @property
    def is_census(self) -> bool:
        """Whether every stopped trial was finished: what is known is then no estimate."""
        return self.num_audited == self.num_stopped

    @property
    def num_on_front(self) -> int:
        """Audited trials that would have stood on the front, each on its own."""
        return sum(trial.is_on_front for trial in self.trials)

    @property
    def share(self) -> float | None:
        """`num_on_front` over `num_audited`; None where none was finished."""
        return self.num_on_front / self.num_audited if self.trials else None

    @property
    def num_lost(self) -> float | None:
        """How many of all stopped trials would have reached the front, as the share says; None where none was finished."""
        return None if self.share is None else self.share * self.num_stopped

    @property
    def num_lost_interval(self) -> Interval | None:
        """Of `num_lost`: at least those that were found, and none of those that were not; None for a census."""
        if self.share_interval is None:
            return None
        low, high = (share * self.num_stopped for share in self.share_interval)
        most = self.num_stopped - self.num_audited + self.num_on_front
        return max(low, float(self.num_on_front)), min(high, float(most))

    @property
    def mean_loss(self) -> float | None:
        """Mean over the audited trials of what each lost on its own; None where none was finished."""
        return sum(trial.hypervolume_loss for trial in self.trials) / self.num_audited if self.trials else None


def build_audit(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Audit | None:
    """Judge the audited trials, each on its own against the finished trials of the search.

    Args:
        records: All that the study knows, in any order.
        objectives: The sweep's.

    Returns:
        None where no audit has ended.
    """
    ended = _ended(records)
    if not ended:
        return None
    finished = [pair for pair in ended if pair[1].state is TrialState.COMPLETE]
    num_stopped = sum(record.spec.is_searched and record.state is TrialState.PRUNED for record in records)
    kept = points_of([record for record in records if is_candidate(record)], objectives)
    added = points_of([audit for _, audit in finished], objectives)
    box = Box(np.vstack([kept, added]))
    trials = tuple(
        Audited(
            stopped=stopped,
            finished=audit,
            is_on_front=would_stand(kept, added[row]),
            hypervolume_loss=box.loss(kept, added[[row]]),
        )
        for row, (stopped, audit) in enumerate(finished)
    )
    is_sample = 0 < len(trials) < num_stopped
    return Audit(
        num_stopped=num_stopped,
        trials=trials,
        num_failed=len(ended) - len(finished),
        num_steps=sum(_own_steps(*pair) for pair in ended),
        hypervolume_loss=box.loss(kept, added),
        share_interval=share_interval(sum(trial.is_on_front for trial in trials), len(trials)) if is_sample else None,
        mean_loss_interval=mean_interval([trial.hypervolume_loss for trial in trials]) if is_sample else None,
    )


def share_interval(num_hits: int, num_drawn: int) -> Interval:
    """Where a share lies with `CONFIDENCE`, after Clopper and Pearson.

    Args:
        num_hits: Of those drawn, from 0.
        num_drawn: At least 1.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 -- takes a second to import, and few reports need it

    found = binomtest(num_hits, num_drawn).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Where a mean lies with `CONFIDENCE`: percentiles of the means of resamples, the same in every run.

    Args:
        values: At least one.

    Returns:
        None where all are the same.
    """
    if len(set(values)) == 1:
        return None
    rows = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.array(values)[rows].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def _ended(records: Sequence[TrialRecord]) -> list[tuple[TrialRecord, TrialRecord]]:
    """(stopped trial, its audit) of every audit that has ended, by the stopped trial's number."""
    by_number = {record.number: record for record in records}
    pairs = [
        (by_number[number], record)
        for record in records
        if (number := record.spec.audits) is not None and not record.state.is_open
    ]
    return sorted(pairs, key=lambda pair: pair[0].number)


def _own_steps(stopped: TrialRecord, audit: TrialRecord) -> int:
    """Steps of an audit that went on from the stopped trial's last report, or began anew where its checkpoint was lost."""
    if audit.last is None:
        return 0
    return audit.last.steps - (stopped.last.steps if stopped.last and audit.curve[0] == stopped.last else 0)
