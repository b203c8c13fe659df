"""What stands beside a search once it is over: audits, scores on the test data, other seeds. Pure; runs on the driver."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING

from tuner.front import front, objectives_of
from tuner.picking import worth_confirming
from tuner.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tuner.config import SweepConfig
    from tuner.trial import Inspection, TrialRecord, TrialSpec


def after_search(
    records: Sequence[TrialRecord], config: SweepConfig, inspection: Inspection, retried: Collection[int] = ()
) -> Iterator[TrialSpec]:
    """What is still to be done once the search is over; all of it hangs on what the search found, and nothing on the test data.

    Args:
        records: All that the study knows; no trial of the search is open.
        config: The sweep.
        inspection: What was found in the data.
        retried: Numbers of those that failed and are to be begun anew.

    Yields:
        Those not begun yet: audits, then the front's scores on the test data, then its best from other seeds. The number is
        that of the next trial beside the search.
    """
    number = min((0, *(record.number for record in records))) - 1
    begun = {_purpose(record.spec) for record in records if record.number not in retried}
    searched = [record for record in records if record.spec.is_searched]
    best = front(searched, objectives_of(config))
    for spec in (*_audits(searched, config), *_scores(best, inspection), *_confirmations(best, config)):
        if _purpose(spec) not in begun:
            yield dataclasses.replace(spec, number=number)


def _audits(searched: Sequence[TrialRecord], config: SweepConfig) -> Iterator[TrialSpec]:
    """A random sample of stopped trials, finished after all."""
    stopped = {record.number: record.spec for record in searched if record.state is TrialState.PRUNED}
    size = min(config.pruning.audit, len(stopped))
    for number in random.Random(config.search.seed).sample(sorted(stopped), size):  # noqa: S311 -- reproducible, not secret
        yield dataclasses.replace(stopped[number], audits=number)


def _scores(best: Sequence[TrialRecord], inspection: Inspection) -> Iterator[TrialSpec]:
    """The front on the test data, once."""
    for record in best if inspection.num_test else ():
        yield dataclasses.replace(record.spec, scores=record.number)


def _confirmations(best: Sequence[TrialRecord], config: SweepConfig) -> Iterator[TrialSpec]:
    """The front's best from other seeds; each seed for all before the next, so that a sweep cut short compares like with like."""
    chosen = worth_confirming(best, objectives_of(config), config.confirm.top)
    for shift in range(1, config.confirm.seeds + 1):
        for record in chosen:
            yield dataclasses.replace(record.spec, seed=record.spec.seed + shift, confirms=record.number)


def _purpose(spec: TrialSpec) -> tuple[int | None, int | None, int | None, int]:
    """What a trial beside the search is there for."""
    return spec.audits, spec.scores, spec.confirms, spec.seed
