"""Builds valid values for tests; each test names only what it is about."""

from __future__ import annotations

from typing import Any

from tuner.config import SweepConfig
from tuner.trial import (
    FailReason,
    Inspection,
    LoraSpec,
    MemoryKind,
    Metrics,
    Outcome,
    TrialRecord,
    TrialSpec,
    TrialState,
)

MIB = 2**20

Fields = dict[str, Any]


def make_lora(**changes: object) -> LoraSpec:
    values: Fields = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": ("query", "value")}
    return LoraSpec(**values | changes)


def make_spec(number: int = 0, **changes: object) -> TrialSpec:
    values: Fields = {"number": number, "lora": make_lora(), "learning_rate": 2e-3, "seed": 0, "params": (("r", 8),)}
    return TrialSpec(**values | changes)


def make_metrics(**changes: object) -> Metrics:
    values: Fields = {
        "steps": 120,
        "tokens": 20_000,
        "train_s": 30.0,
        "accuracy": 0.8,
        "loss": 0.6,
        "num_validation": 400,
        "trainable_params": 10_000,
        "peak_memory_bytes": 100 * MIB,
        "memory_kind": MemoryKind.CPU_ALLOCATED,
    }
    return Metrics(**values | changes)


def make_record(number: int = 0, state: TrialState = TrialState.COMPLETE, **changes: object) -> TrialRecord:
    """A record whose outcome fits its state.

    Args:
        number: Of the trial.
        state: How far it is.
        changes: `spec`, `curve` or `outcome` as a whole, or else fields of its one Metrics.
    """
    whole: Fields = {name: changes.pop(name) for name in ("spec", "curve", "outcome") if name in changes}
    values: Fields = {
        "spec": make_spec(number),
        "state": state,
        "curve": (make_metrics(**changes),),
        "outcome": make_outcome(state),
    }
    return TrialRecord(**values | whole)


def make_outcome(state: TrialState) -> Outcome | None:
    if state is TrialState.RUNNING:
        return None
    failed = state is TrialState.FAIL
    return Outcome(state=state, reason=FailReason.EXCEPTION if failed else None, detail="boom" if failed else "")


def make_inspection(**changes: object) -> Inspection:
    values: Fields = {
        "problems": (),
        "data_fingerprint": "f" * 64,
        "num_train": 1000,
        "num_validation": 400,
        "num_test": 200,
        "labels": ("animal", "plant"),
        "majority_share": 0.55,
    }
    return Inspection(**values | changes)


def make_config(**sections: object) -> SweepConfig:
    """A small sweep over `r` and `learning_rate`; a section named replaces the whole section."""
    space = {
        "r": {"choices": [4, 8, 16]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "target_modules": ["query", "value"],
    }
    values: Fields = {
        "name": "small",
        "model": {"name": "/models/tiny"},
        "data": {"path": "/data/rows.jsonl", "validation": 400},
        "training": {"max_steps": 120},
        "search": {"num_trials": 4, "space": space},
        "pruning": {"min_steps": 30},
    }
    return SweepConfig(**values | sections)
