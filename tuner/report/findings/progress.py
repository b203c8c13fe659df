"""How the front grew, whether more trials are likely to help, and what the workers did meanwhile. Pure; runs on the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.front import is_candidate
from tuner.pareto import non_dominated_mask
from tuner.report.findings.volume import Box, is_finite, points_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.front import Objective
    from tuner.pareto import FloatArray
    from tuner.trial import Span, TrialRecord

MIN_FINISHED = 5
"""Finished trials without which nothing is said of further ones."""
LONGEST_BREAK_S = 5.0
"""Between two rungs of a trial; after a longer one it is another stretch of work."""
SMALL_GAIN = 0.005
"""Share of the hypervolume; a trial that is expected to add less is unlikely to help."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The hypervolume of the front as trials finished."""

    numbers: tuple[int, ...]
    """Finished trials in the order in which they finished, or by number where the journal holds no times."""
    steps: tuple[int, ...]
    """Optimizer steps of the search spent when each finished, stopped trials included; by number where there are no times."""
    hours: tuple[float, ...]
    """Hours since the sweep began; empty where the journal holds no times."""
    volumes: tuple[float, ...]
    """Hypervolume after each, as a share of the last."""
    expected_gain: float | None
    """What one more finished trial like these adds on average, as a share of the hypervolume; None with too few.

    The mean over the trials of what each adds to all others: the jackknife's answer to what the last of so many trials adds,
    if they came in any order. A sampler that learns does a little better. Scores are drawn together by as much of their
    spread as the noise of the evaluation explains, or else luck would count as gain.
    """
    num_since: int
    """Finished trials since the last that entered the front."""

    @property
    def is_likely_to_help(self) -> bool | None:
        """Whether another trial is expected to add more than next to nothing; None where nobody can tell."""
        return None if self.expected_gain is None else self.expected_gain >= SMALL_GAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Work on one trial without a break."""

    worker: int
    """From 0, in the order in which workers began."""
    begun_s: float
    """Seconds since the first worker began."""
    ended_s: float
    """The same, later."""
    number: int
    """The trial."""
    label: str
    """Its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """What each worker did when."""

    stretches: tuple[Stretch, ...]
    """By time."""
    num_workers: int
    """Processes that ever worked."""
    length_s: float
    """From the first beginning to the last end."""
    busy_share: float
    """Share of the time in which workers trained or evaluated, each counted from its own first work to its last."""


def growth_of(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> Growth | None:
    """How the front grew; None before any trial has finished."""
    searched = [record for record in records if record.spec.is_searched]
    finished = [record for record in searched if is_candidate(record)]
    has_times = bool(finished) and all(_ended_s(record) is not None for record in finished)
    finished.sort(key=lambda record: (_ended_s(record) or 0.0 if has_times else 0.0, record.number))
    points = points_of(finished, objectives)
    finite = is_finite(points) if finished else np.zeros(0, dtype=np.bool_)
    finished = [record for record, is_there in zip(finished, finite, strict=True) if is_there]
    if not finished:
        return None
    points = points[finite]
    volumes, num_since = _volumes(points)
    return Growth(
        numbers=tuple(record.number for record in finished),
        steps=tuple(_steps_spent(searched, finished, has_times=has_times)),
        hours=tuple(_hours(searched, finished)) if has_times else (),
        volumes=tuple(volumes),
        expected_gain=_expected_gain(_shrunk(points, finished)) if len(finished) >= MIN_FINISHED else None,
        num_since=num_since,
    )


def timeline_of(records: Sequence[TrialRecord]) -> Timeline | None:
    """What the workers did; None where the journal holds no times."""
    spans = sorted(_spans(records), key=lambda found: found[0].begun_s)
    if not spans:
        return None
    start = spans[0][0].begun_s
    workers = {name: place for place, name in enumerate(dict.fromkeys(span.worker for span, _ in spans))}
    stretches: dict[int, list[Stretch]] = {place: [] for place in workers.values()}
    for span, record in spans:
        _append(stretches[workers[span.worker]], _stretch(span, record, workers[span.worker], start))
    whole = sorted((one for some in stretches.values() for one in some), key=lambda one: (one.begun_s, one.worker))
    busy = sum(span.ended_s - span.begun_s for span, _ in spans)
    there = sum(max(one.ended_s for one in some) - some[0].begun_s for some in stretches.values())
    return Timeline(
        stretches=tuple(whole),
        num_workers=len(workers),
        length_s=max(one.ended_s for one in whole),
        busy_share=min(1.0, busy / there) if there else 0.0,
    )


def _volumes(points: FloatArray) -> tuple[list[float], int]:
    """(hypervolume after each point as a share of the last, points since the last that entered the front)."""
    box = Box(points)
    volumes: list[float] = []
    kept, entered = points[:0], 0
    for place, point in enumerate(points):
        together = np.vstack([kept, point])
        mask = non_dominated_mask(together)
        if mask[-1]:  # a dominated point changes nothing, which spares most of the work
            kept, entered = together[mask], place
            volumes.append(box.volume(kept))
        else:
            volumes.append(volumes[-1])
    last = volumes[-1] or 1.0
    return [volume / last for volume in volumes], len(points) - 1 - entered


def _shrunk(points: FloatArray, finished: Sequence[TrialRecord]) -> FloatArray:
    """The points with the better half of the scores drawn to their mean, as James and Stein do (Efron, Morris, JASA 1973)."""
    errors = np.array([record.last.standard_error for record in finished if record.last])
    better = points[:, 0] <= np.median(points[:, 0])
    spread = float(points[better, 0].var())
    kept = max(0.0, 1 - float((errors[better] ** 2).mean()) / spread) if spread > 0 else 0.0
    shrunk = points.copy()
    mean = points[better, 0].mean()
    shrunk[better, 0] = mean + kept * (points[better, 0] - mean)
    return shrunk


def _expected_gain(points: FloatArray) -> float:
    """Mean over all points of the share of the hypervolume that is missing without each; only the front's miss any.

    Where a point of the front goes, those that it alone dominated stand in.
    """
    box, places = Box(points), np.flatnonzero(non_dominated_mask(points))
    whole = box.volume(points[places])
    if not whole:
        return 0.0
    missing = 0.0
    for place in places:
        rest = np.delete(points, place, axis=0)
        missing += whole - box.volume(rest[non_dominated_mask(rest)])
    return missing / whole / len(points)


def _ended_s(record: TrialRecord) -> float | None:
    return record.last.span.ended_s if record.last and record.last.span else None


def _steps_spent(searched: Sequence[TrialRecord], finished: Sequence[TrialRecord], *, has_times: bool) -> Iterator[int]:
    """Steps that the search had spent when each finished."""
    before = 0
    spent = []
    for record in searched:
        before = 0
        for at in record.curve:
            when = at.span.ended_s if has_times and at.span else float(record.number)
            spent.append((when, at.steps - before))
            before = at.steps
    spent.sort()
    times = np.array([when for when, _ in spent])
    sums = np.cumsum([steps for _, steps in spent])
    for record in finished:
        when = (_ended_s(record) or 0.0) if has_times else float(record.number)
        yield int(sums[np.searchsorted(times, when, side="right") - 1])


def _hours(searched: Sequence[TrialRecord], finished: Sequence[TrialRecord]) -> Iterator[float]:
    start = min(at.span.begun_s for record in searched for at in record.curve if at.span)
    for record in finished:
        yield ((_ended_s(record) or start) - start) / 3600


def _spans(records: Sequence[TrialRecord]) -> Iterator[tuple[Span, TrialRecord]]:
    for record in records:
        inherited = record.spec.audits is not None  # an audit's curve begins with that of the trial which it finishes
        for place, at in enumerate(record.curve):
            if at.span and not (inherited and place == 0 and len(record.curve) > 1):
                yield at.span, record


def _stretch(span: Span, record: TrialRecord, worker: int, start: float) -> Stretch:
    return Stretch(
        worker=worker,
        begun_s=span.begun_s - start,
        ended_s=span.ended_s - start,
        number=record.number,
        label=record.spec.label,
    )


def _append(stretches: list[Stretch], new: Stretch) -> None:
    """Join it to the one before where that was work on the same trial just now."""
    is_one = stretches and stretches[-1].number == new.number and new.begun_s - stretches[-1].ended_s < LONGEST_BREAK_S
    if is_one:
        former = stretches.pop()
        new = Stretch(
            worker=new.worker, begun_s=former.begun_s, ended_s=new.ended_s, number=new.number, label=new.label
        )
    stretches.append(new)
