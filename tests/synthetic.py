"""Whole sweeps of any size without a worker: plausible curves, stops, failures and test scores, in a blink."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.builders import MIB, make_config, make_inspection, make_metrics, make_record, make_spec
from tuner.config import SweepConfig
from tuner.front import objectives_of
from tuner.journal import create_journal
from tuner.lora import LoraSpec
from tuner.sweep_file import write_sweep_file
from tuner.trial import (
    FailReason,
    HeldOut,
    Inspection,
    Metrics,
    Outcome,
    Span,
    StopReason,
    TrialRecord,
    TrialSpec,
    TrialState,
)

RANKS = (1, 2, 4, 8, 16, 32, 64)
SCALES = (1.0, 2.0, 4.0)
TARGETS: dict[str, tuple[str, ...]] = {
    "query-value": ("query", "value"),
    "attention": ("attention",),
    "all": ("all-linear",),
}
RUNGS = (30, 60, 120)
NUM_WORKERS = 8


def synthetic_config(num_trials: int, name: str = "synthetic") -> SweepConfig:
    space: dict[str, Any] = {
        "r": {"choices": [*RANKS]},
        "lora_scale": {"choices": [*SCALES]},
        "lora_dropout": {"low": 0.0, "high": 0.2},
        "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "target_modules": {"choices": {name: list(targets) for name, targets in TARGETS.items()}},
    }
    return make_config(
        name=name,
        data={"path": "/data/rows.jsonl", "validation": 400, "test": 1000},
        search={"num_trials": num_trials, "space": space},
        confirm={"top": 2, "seeds": 2},
    )


def synthetic_inspection() -> Inspection:
    return make_inspection(
        num_test=1000,
        model_fingerprint="a" * 64,
        versions=(("python", "3.11"), ("torch", "2.13")),
        hardware="Linux x86_64, 2 CPU cores",
    )


def synthetic_records(num_trials: int, seed: int = 0) -> list[TrialRecord]:
    """Trials of the search; every tenth diverges at high learning rates, two in three of the rest are stopped."""
    draw = random.Random(seed)
    return [_trial(number, draw) for number in range(num_trials)]


def with_scores(records: list[TrialRecord], front: list[int]) -> list[TrialRecord]:
    """The same with scores of some trials on the test data, and two of them trained anew from two seeds."""
    by_number = {record.number: record for record in records}
    beside = [_scored(-place, by_number[number]) for place, number in enumerate(front, start=1)]
    again = [(number, seed) for number in front[-2:] for seed in (1, 2)]
    first = len(beside) + 1
    return [
        *records,
        *beside,
        *(_again(-place, by_number[number], seed) for place, (number, seed) in enumerate(again, start=first)),
    ]


def _trial(number: int, draw: random.Random) -> TrialRecord:
    rank, scale = draw.choice(RANKS), draw.choice(SCALES)
    rate = 10 ** draw.uniform(-4, -1)
    dropout, targets = draw.uniform(0, 0.2), draw.choice([*TARGETS])
    params = (
        ("r", rank),
        ("lora_scale", scale),
        ("lora_dropout", dropout),
        ("learning_rate", rate),
        ("target_modules", targets),
    )
    lora = LoraSpec(r=rank, lora_alpha=scale * rank, lora_dropout=dropout, target_modules=TARGETS[targets])
    spec = make_spec(number, lora=lora, learning_rate=rate, params=params)
    if rate * scale > 0.15:
        outcome = Outcome(
            state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail="training loss nan at step 7"
        )
        return make_record(number, TrialState.FAIL, spec=spec, curve=(), outcome=outcome)
    skill = 0.93 - 0.3 / (1 + rank * (1 + [*TARGETS].index(targets))) - 0.15 * abs(math.log10(rate * scale) + 2.2)
    is_stopped = draw.random() < 0.66
    curve = _curve(spec, skill, draw, RUNGS[: draw.randint(1, 2)] if is_stopped else RUNGS)
    if not is_stopped:
        return make_record(number, TrialState.COMPLETE, spec=spec, curve=curve)
    outcome = Outcome(
        state=TrialState.PRUNED, stop=StopReason.DOMINATED, detail="trial 3 costs no more and leads by 9 points"
    )
    return make_record(number, TrialState.PRUNED, spec=spec, curve=curve, outcome=outcome)


def _curve(spec: TrialSpec, skill: float, draw: random.Random, rungs: tuple[int, ...]) -> tuple[Metrics, ...]:
    start_s = 1e9 + 20.0 * (abs(spec.number) // NUM_WORKERS)
    curve = []
    for steps in rungs:
        fit = 1 - math.exp(-4 * steps / RUNGS[-1])
        accuracy = min(1.0, max(0.0, 0.5 + (skill - 0.5) * fit + draw.gauss(0, 0.012)))
        share = round(400 * accuracy) / 400
        place = steps / RUNGS[-1]
        span = Span(
            worker=f"node-{abs(spec.number) % NUM_WORKERS}",
            begun_s=start_s + 18 * (place - 0.25),
            ended_s=start_s + 18 * place,
        )
        rank = spec.lora.r if spec.lora else 0
        curve.append(
            make_metrics(
                steps=steps,
                tokens=steps * 256,
                train_s=round(steps * 0.15, 3),
                accuracy=share,
                loss=round(-math.log(max(accuracy, 1e-3)) + 0.2, 4),
                train_loss=round(-math.log(max(accuracy, 1e-3)) + 0.1, 4),
                worst_train_loss=1.0,
                trainable_params=770 + rank * 9216 * (1 + len(dict(spec.params)["target_modules"]) % 3),  # type: ignore[arg-type]
                peak_memory_bytes=100 * MIB + rank * 2**15,
                span=span,
                others=(("macro_f1", round(share - 0.01, 4)),),
            )
        )
    return tuple(curve)


def _held_out(record: TrialRecord, seed: int) -> HeldOut:
    assert record.last
    share = round(1000 * (record.last.accuracy - 0.01)) / 1000
    error = math.sqrt(share * (1 - share) / 1000)
    common = random.Random(0)
    own = random.Random(seed + record.number)
    resampled = tuple(share + common.gauss(0, 0.9 * error) + own.gauss(0, 0.3 * error) for _ in range(200))
    return HeldOut(accuracy=share, standard_error=error, loss=0.5, num_test=1000, resampled=resampled)


def _scored(number: int, record: TrialRecord) -> TrialRecord:
    assert record.last
    spec = make_spec(number, lora=record.spec.lora, params=record.spec.params, scores=record.number)
    last = record.last
    metrics = make_metrics(
        steps=last.steps,
        accuracy=last.accuracy,
        trainable_params=last.trainable_params,
        peak_memory_bytes=last.peak_memory_bytes,
        held_out=_held_out(record, 0),
    )
    return make_record(number, spec=spec, curve=(metrics,))


def _again(number: int, record: TrialRecord, seed: int) -> TrialRecord:
    spec = make_spec(number, lora=record.spec.lora, params=record.spec.params, seed=seed, confirms=record.number)
    curve = _curve(record.spec, 0.9 - 0.01 * seed, random.Random(seed), RUNGS)
    last = curve[-1]
    scored = make_metrics(
        steps=last.steps,
        accuracy=last.accuracy,
        trainable_params=last.trainable_params,
        held_out=_held_out(record, seed),
    )
    return make_record(number, spec=spec, curve=(*curve[:-1], scored))


def write_journal(folder: Path, config: SweepConfig, inspection: Inspection, records: list[TrialRecord]) -> None:
    """A sweep's folder as a driver would have left it, without the time that syncing each line to disk takes."""
    folder.mkdir(parents=True)
    write_sweep_file(config, folder / "sweep.yaml")
    objectives = objectives_of(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        journal = create_journal(folder / "study.journal", config.name, objectives, inspection)
        for record in records:
            if record.spec.is_searched:
                journal.enqueue(dict(record.spec.params))
            journal.write_spec(record.spec, journal.begin() if record.spec.is_searched else None)
            for metrics in record.curve:
                journal.write_metrics(record.number, metrics)
            if record.outcome:
                is_complete = record.state is TrialState.COMPLETE and record.last is not None
                values = [goal.of(record.last) for goal in objectives] if is_complete and record.last else None
                journal.close(record.number, record.outcome, values, 0.0)
