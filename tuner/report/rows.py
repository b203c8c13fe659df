"""A trial as a report shows it. Pure; runs on the driver."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tuner.trial import Baseline, Metrics, ParamValue, StopReason, TrialRecord, TrialState


class Standing(enum.StrEnum):
    """What a trial is to the front; the value is the word for it."""

    FRONT = "on the front"
    FINISHED = "finished"
    STOPPED = "stopped early"
    FAILED = "failed"
    INFEASIBLE = "does not fit"
    RUNNING = "running"
    PAUSED = "paused"
    BASELINE = "baseline"
    AUDIT = "audit"
    CONFIRMED = "trained again from another seed"


STANDINGS = {
    TrialState.COMPLETE: Standing.FINISHED,
    TrialState.PRUNED: Standing.STOPPED,
    TrialState.FAIL: Standing.FAILED,
    TrialState.INFEASIBLE: Standing.INFEASIBLE,
    TrialState.RUNNING: Standing.RUNNING,
    TrialState.PAUSED: Standing.PAUSED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One trial as a report shows it."""

    record: TrialRecord
    """All that the study knows of it."""
    standing: Standing
    """FRONT where it is on the front; BASELINE, AUDIT or CONFIRMED for what stands beside the search; else after its state."""

    @property
    def number(self) -> int:
        """Optuna's trial number; below 0 for baselines and audits."""
        return self.record.number

    @property
    def baseline(self) -> Baseline | None:
        """What the baseline is; None for all that is none."""
        return self.record.spec.baseline

    @property
    def audits(self) -> int | None:
        """Number of the stopped trial that it finishes; None for all but audits."""
        return self.record.spec.audits

    @property
    def is_searched(self) -> bool:
        """Whether it is a trial of the search."""
        return self.record.spec.is_searched

    @property
    def mark(self) -> str:
        """The shortest name, for plots and tables: `7`, `B1` for a baseline, `A7` for the audit of trial 7, `7s2` for seed 2."""
        if self.audits is not None:
            return f"A{self.audits}"
        if (again := self.record.spec.confirms) is not None:
            return f"{again}s{self.record.spec.seed}"
        return f"B{-self.number}" if self.baseline else str(self.number)

    @property
    def label(self) -> str:
        """Its name at the start of a line: `Trial 7`, `Baseline 1 (full fine-tuning)` or `Audit of trial 7`."""
        words = self.record.spec.label
        return words[0].upper() + words[1:]

    @property
    def last(self) -> Metrics | None:
        """The newest report; None before the first rung."""
        return self.record.last

    @property
    def params(self) -> dict[str, ParamValue]:
        """Searched parameter -> value; without those that this trial did not sample."""
        return dict(self.record.spec.params)

    @property
    def learning_rate(self) -> float | None:
        """Its peak; None for the one that trains nothing."""
        return None if self.baseline is Baseline.ZERO_SHOT else self.record.spec.learning_rate

    @property
    def reason(self) -> str:
        """What went wrong, in a few words; empty if nothing did."""
        outcome = self.record.outcome
        return outcome.reason.value if outcome and outcome.reason else ""

    @property
    def stop(self) -> StopReason | None:
        """Why it was stopped or does not fit; None if neither, or if the journal is from before reasons were kept."""
        if self.record.state is TrialState.INFEASIBLE:
            return StopReason.MEMORY
        return self.record.outcome.stop if self.record.outcome else None

    @property
    def detail(self) -> str:
        """The failure's text and traceback, or the evidence for a stop; may be empty."""
        return self.record.outcome.detail if self.record.outcome else ""
