"""What rank does on this task, freed from learning rate and scale. Pure; runs on the driver.

At one fixed learning rate ranks seem to differ where only their best learning rates do (arXiv 2602.04998): so each rank is
shown by the best of its trials, whatever their learning rates, among trials of the same scale alpha / r.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.layers import ranks_of
from tuner.report.findings.intervals import CONFIDENCE, NUM_SIGMAS, Gap, gap_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tuner.layers import Layer
    from tuner.trial import HeldOut, Metric, TrialRecord

MOST_SCALES = 4
"""With more scales than this, those within a factor of two are taken as one."""
MIN_RANKS = 2
"""Ranks that a comparison needs."""
ENOUGH_RANKS = 3
"""Where no scale has as many ranks as this, trials of all scales are compared, and the report says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AtRank:
    """The best trial of a rank."""

    rank: float
    """Mean over the layers that are adapted."""
    record: TrialRecord
    """The best by validation score, over all learning rates tried."""
    num_trials: int
    """Finished trials of this rank and scale that it is the best of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """Trials of about the same scale."""

    scale: float | None
    """Factor on B A x, the middle of the band; None where scales are mixed."""
    best: tuple[AtRank, ...]
    """One per rank, rising."""

    @property
    def num_trials(self) -> int:
        """Finished trials behind it."""
        return sum(at.num_trials for at in self.best)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plateau:
    """The rank from which nothing more is gained, as far as the test can tell."""

    rank: float
    """No higher rank is better than this one beyond the noise."""
    number: int
    """Its best trial."""
    largest_gain: Gap
    """Of the higher rank whose gain reaches furthest: what is not excluded is the high end."""
    largest_rank: float
    """Which one that is."""
    num_compared: int
    """Higher ranks that it was held against."""
    num_paired: int
    """Of them, those that were compared on the same test examples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankEffect:
    """Accuracy against rank."""

    bands: tuple[Band, ...]
    """By rising scale; at last one of mixed scales, where no scale by itself has enough ranks."""
    tested: Band
    """The band that the test is made on: that with most ranks, then most trials."""
    seed_deviation: float | None
    """By how much another seed moves a score; the test allows for it. None where no trial was trained anew."""
    plateau: Plateau | None
    """None where each rank but the highest is worse than a higher one beyond the noise."""


def rank_effect(
    metric: Metric,
    finished: Sequence[TrialRecord],
    layers: Sequence[Layer],
    tests: Mapping[int, HeldOut],
    seed_deviation: float | None = None,
) -> RankEffect | None:
    """Compare ranks by their best trials.

    Args:
        metric: The sweep's.
        finished: Finished trials of the search.
        layers: The base model's.
        tests: Trial number -> scores on the test data, where there are any.
        seed_deviation: Standard deviation of a score over seeds; None if unknown.

    Returns:
        None with fewer than two ranks.
    """
    placed = mean_ranks(finished, layers)
    known = [
        record for record in finished if record.last and math.isfinite(record.last.accuracy) and record.number in placed
    ]
    bands = [band for band in _bands(metric, known, placed) if len(band.best) >= MIN_RANKS]
    mixed = _band(metric, known, placed, scale=None)
    if len(mixed.best) < MIN_RANKS:
        return None
    if max((len(band.best) for band in bands), default=0) < min(ENOUGH_RANKS, len(mixed.best)):
        bands.append(mixed)
    tested = max(bands, key=lambda band: (len(band.best), band.num_trials))
    plateau = _plateau(metric, tested, tests, seed_deviation or 0.0)
    return RankEffect(bands=tuple(bands), tested=tested, seed_deviation=seed_deviation, plateau=plateau)


def mean_ranks(records: Iterable[TrialRecord], layers: Sequence[Layer]) -> dict[int, float]:
    """Trial number -> mean rank of the layers that are adapted, to three digits; without those that adapt none."""
    found, known = {}, dict[tuple[object, ...], float]()
    for record in records:
        lora = record.spec.lora
        if lora is None or not layers:
            continue
        key = lora.r, lora.target_modules, lora.rank_pattern  # ten thousand trials share a few of these
        if key not in known:
            ranks = ranks_of(layers, lora)
            known[key] = float(f"{sum(ranks.values()) / len(ranks):.3g}") if ranks else 0.0
        if known[key]:
            found[record.number] = known[key]
    return found


def heat_of(records: Iterable[TrialRecord], layers: Sequence[Layer]) -> dict[tuple[str, str], tuple[float, ...]]:
    """(module, depth band) -> mean rank there in each of some trials, 0 where it is not adapted."""
    heat: dict[tuple[str, str], list[float]] = defaultdict(list)
    members = Counter((layer.short_name, layer.band) for layer in layers)
    for record in records:
        ranks = ranks_of(layers, record.spec.lora) if record.spec.lora else {}
        sums = dict.fromkeys(members, 0.0)
        for layer in layers:
            sums[layer.short_name, layer.band] += ranks.get(layer.name, 0)
        for place, total in sums.items():
            heat[place].append(total / members[place])
    return {place: tuple(values) for place, values in heat.items()}


def _bands(metric: Metric, records: Sequence[TrialRecord], ranks: Mapping[int, float]) -> list[Band]:
    scales = {record.number: _scale(record) for record in records}
    is_few = len(set(scales.values())) <= MOST_SCALES
    grouped: dict[float, list[TrialRecord]] = defaultdict(list)
    for record in records:
        scale = scales[record.number]
        grouped[scale if is_few else 2.0 ** round(math.log2(scale))].append(record)
    return [_band(metric, group, ranks, scale=scale) for scale, group in sorted(grouped.items())]


def _band(metric: Metric, records: Sequence[TrialRecord], ranks: Mapping[int, float], *, scale: float | None) -> Band:
    grouped: dict[float, list[TrialRecord]] = defaultdict(list)
    for record in records:
        grouped[ranks[record.number]].append(record)
    best = (
        AtRank(rank=rank, record=min(group, key=lambda record: _loss(metric, record)), num_trials=len(group))
        for rank, group in sorted(grouped.items())
    )
    return Band(scale=scale, best=tuple(best))


def _plateau(metric: Metric, band: Band, tests: Mapping[int, HeldOut], seed_deviation: float) -> Plateau | None:
    for place, at in enumerate(band.best[:-1]):
        higher = band.best[place + 1 :]
        found = {other.rank: _gap(metric, other.record, at.record, tests) for other in higher}
        gaps = {rank: _widened(gap, len(found), seed_deviation) for rank, gap in found.items()}
        if not any(gap.low > 0 for gap in gaps.values()):
            largest = max(gaps, key=lambda rank: gaps[rank].high)
            return Plateau(
                rank=at.rank,
                number=at.record.number,
                largest_gain=gaps[largest],
                largest_rank=largest,
                num_compared=len(gaps),
                num_paired=sum(gap.is_paired for gap in gaps.values()),
            )
    return None


def _widened(gap: Gap, num_compared: int, seed_deviation: float) -> Gap:
    """The interval that holds for all of several comparisons together (Bonferroni), and that allows for both trials' seeds."""
    normal = statistics.NormalDist()
    factor = normal.inv_cdf(1 - (1 - CONFIDENCE) / 2 / num_compared) / NUM_SIGMAS
    seeds = NUM_SIGMAS * math.sqrt(2) * seed_deviation
    return Gap(
        value=gap.value,
        low=gap.value - factor * math.hypot(gap.value - gap.low, seeds),
        high=gap.value + factor * math.hypot(gap.high - gap.value, seeds),
        is_paired=gap.is_paired,
    )


def _gap(metric: Metric, one: TrialRecord, other: TrialRecord, tests: Mapping[int, HeldOut]) -> Gap:
    assert one.last is not None  # noqa: S101 -- finished trials have reported
    assert other.last is not None  # noqa: S101 -- as above
    return gap_of(metric, one.last, other.last, (tests.get(one.number), tests.get(other.number)))


def _scale(record: TrialRecord) -> float:
    """The factor on B A x of a layer of rank `r`, to three digits."""
    lora = record.spec.lora
    assert lora is not None  # noqa: S101 -- trials of a search have an adapter
    return float(f"{lora.scaling_at(lora.r):.3g}")


def _loss(metric: Metric, record: TrialRecord) -> float:
    assert record.last is not None  # noqa: S101 -- finished trials have reported
    return metric.loss(record.last.accuracy)
