"""How a trial's end is written down: what it is called, by how much it was too large, what it has cost. Pure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.trial import FailReason, Outcome, StopReason, TrialState

if TYPE_CHECKING:
    from tuner.trial import Metrics, Stop, TrialRecord


def infeasible(detail: str) -> Outcome:
    """The end of a trial that can't fit and was not begun."""
    return Outcome(state=TrialState.INFEASIBLE, stop=StopReason.MEMORY, detail=detail)


def explained(outcome: Outcome, stop: Stop | None) -> Outcome:
    """Why a trial was stopped; what took too much memory is infeasible."""
    if outcome.reason is FailReason.OUT_OF_MEMORY:
        return dataclasses.replace(outcome, state=TrialState.INFEASIBLE, stop=StopReason.MEMORY)
    if outcome.state is not TrialState.PRUNED or stop is None:
        return outcome
    state = TrialState.INFEASIBLE if stop.reason is StopReason.MEMORY else TrialState.PRUNED
    return dataclasses.replace(outcome, state=state, stop=stop.reason, detail=stop.detail)


def excess_gib_of(record: TrialRecord, limit_gib: float | None) -> float:
    """By how much a trial was too large; where it ran out of memory nobody knows, and any number above 0 says so."""
    peak_gib = record.last.peak_memory_bytes / GIB if record.last else 0.0
    return peak_gib - limit_gib if limit_gib is not None and peak_gib > limit_gib else 1.0


def new_steps(record: TrialRecord, metrics: Metrics) -> int:
    """Steps that a report adds to what the search has spent."""
    return metrics.steps - (record.last.steps if record.last else 0) if record.spec.is_searched else 0
