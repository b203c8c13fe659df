"""The data as the trials of a process read it: token ids to train on, and batches on the device to be scored on.

Runs on the worker.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuner.worker.batches import Batch, evaluation_batches, evaluation_order
from tuner.worker.evaluation import Choices
from tuner.worker.tokens import tokenize_splits

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.worker.data import Splits
    from tuner.worker.model import BaseModel
    from tuner.worker.token_files import Scored, Tokenized


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringData:
    """What trials are scored on, on the device."""

    batches: tuple[Batch, ...]
    """Its examples by rising length; empty where it has none."""
    order: npt.NDArray[np.int64]
    """Which example of the data each row of the batches is."""
    choices: Choices | None = None
    """What the choice accuracy is measured on; None where it is not asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A part of a split, for decisions that need no more."""

    data: ScoringData
    examples: npt.NDArray[np.int64]
    """Which examples of the whole split they are, rising."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What all trials of a process train and decide on."""

    train: Tokenized
    """Training examples."""
    validation: ScoringData
    """What trials are scored on at their last rung."""
    sample: Sample | None
    """What they are scored on before that; None for all of it."""
    build_test: Callable[[], ScoringData]
    """Gives what no decision sees, for the trials that are scored on it; it takes no room before that."""
    capacity: int | None
    """Tokens in a packed row; None without packing."""


def prepare_data(config: SweepConfig, base: BaseModel, splits: Splits) -> TrainingData:
    """Tokenize the splits, and put the validation data on the device."""
    tokenized = tokenize_splits(base.tokenizer, splits, config)
    build = functools.partial(_scoring_data, batch_size=config.training.eval_batch_size, base=base)
    examples = sampled(len(tokenized.validation.tokens), config)
    return TrainingData(
        train=tokenized.train,
        validation=build(tokenized.validation),
        sample=None if examples is None else Sample(data=build(tokenized.validation.some(examples)), examples=examples),
        build_test=lambda: build(tokenized.test),
        capacity=config.data.max_length if config.training.packing else None,
    )


def sampled(num_validation: int, config: SweepConfig) -> npt.NDArray[np.int64] | None:
    """Which validation examples trials are scored on before their last rung, rising; None for all.

    The same in all processes and for all trials, for they are held against each other.
    """
    num = config.pruning.num_scored(num_validation)
    if num == num_validation:
        return None
    chosen: npt.NDArray[np.int64] = np.random.default_rng(0).permutation(num_validation)[:num]
    return np.sort(chosen)


def _scoring_data(scored: Scored, *, batch_size: int, base: BaseModel) -> ScoringData:
    build = functools.partial(evaluation_batches, batch_size=batch_size, pad_id=base.pad_id, device=base.device)
    order = _order(scored.tokens, batch_size)
    if (asked := scored.choices) is None:
        return ScoringData(batches=build(scored.tokens), order=order)
    choices = Choices(
        batches=build(asked.tokens),
        order=_order(asked.tokens, batch_size),
        example=asked.example,
        is_right=asked.is_right,
    )
    return ScoringData(batches=build(scored.tokens), order=order, choices=choices)


def _order(tokens: Tokenized, batch_size: int) -> npt.NDArray[np.int64]:
    """Which example each row of an evaluation is."""
    return np.array([index for chunk in evaluation_order(tokens, batch_size) for index in chunk], dtype=np.int64)
