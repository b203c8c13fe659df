"""Accuracy and loss of a model on prepared batches. Runs on the worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from tuner.worker.data import Batch
    from tuner.worker.model import BaseModel

Watch = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How good a model is on some examples."""

    accuracy: float
    """Share of examples whose most likely class is the right one."""
    loss: float
    """Mean cross entropy in nats."""


def forward(base: BaseModel, model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of shape (B, classes), in float32."""
    with base.autocast():
        output = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT)
    logits_BC: torch.Tensor = output.logits
    return logits_BC.float()


@torch.no_grad()
def evaluate(
    base: BaseModel, model: nn.Module, batches: Sequence[Batch], watch: Watch = contextlib.nullcontext
) -> Evaluation:
    """Evaluate, and leave the model in training mode or not as it was.

    Args:
        base: What the model is built on.
        model: The base, or the base with an adapter.
        batches: At least one; the last is the largest.
        watch: Put around the last batch, to measure its memory.
    """
    was_training = model.training
    model.eval()
    num_right, loss, num = 0, 0.0, 0
    for index, batch in enumerate(batches):
        with watch() if index == len(batches) - 1 else contextlib.nullcontext():
            logits_BC = forward(base, model, batch)
        num_right += int((logits_BC.argmax(-1) == batch.labels_B).sum())
        loss += float(torch.nn.functional.cross_entropy(logits_BC, batch.labels_B, reduction="sum"))
        num += len(batch.labels_B)
    model.train(was_training)
    return Evaluation(accuracy=num_right / num, loss=loss / num)
