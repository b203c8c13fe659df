"""Several trials' steps as one pass over one base. Runs on the worker.

The trials' batches are laid one below another. Each linear layer of the base is computed once for all rows; each trial's
adapter adds its part to the trial's own rows (`stacks.py`), and its dropout draws what it would draw alone. Each trial's loss is
summed over its own rows, so its gradients are those that it would have alone, up to rounding.

B is rows of all trials, T tokens of the longest row; a slice is one trial's rows, cut to the length that they have alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tuner.worker.architecture import head_names, layers_of
from tuner.worker.attention import NAME as CPU_ATTENTION
from tuner.worker.attention import register
from tuner.worker.batches import Batch
from tuner.worker.dropout import Dropout
from tuner.worker.evaluation import forward, summed_loss
from tuner.worker.recomputing import use_checkpointing
from tuner.worker.sliced import (
    ATTENTION,
    NotTogetherError,
    SlicedDropout,
    SlicedHead,
    SlicedLinear,
    Slices,
    sliced_attention,
)
from tuner.worker.stepping import Seeded, Stepped, num_taught
from tuner.worker.streams import Streams
from tuner.worker.twin import twin_of

if TYPE_CHECKING:
    from tuner.worker.model import BaseModel
    from tuner.worker.training import TrialRun

log = logging.getLogger(__name__)

AGREEMENT = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far gradients may differ from those of each trial alone, relative to their size; other dropout masks give 0.3 or more."""


class Lockstep:
    """One tree of the base that computes the steps of several trials.

    Args:
        base: Without an adapter; stays as it is.
        is_checkpointed: Compute blocks again in the backward pass.
        is_stacked: Compute the trials' adapters on a layer as one product; by default on a GPU, which has little to do for each.
    """

    def __init__(self, base: BaseModel, *, is_checkpointed: bool, is_stacked: bool | None = None) -> None:
        self._base = twin_of(base)
        self._lead: nn.Module = self._base.model
        is_stacked = base.device.type == "cuda" if is_stacked is None else is_stacked
        self._slices = Slices(Streams(base.device), is_stacked=is_stacked)
        self._members: dict[str, SlicedLinear | SlicedHead] = {}
        for layer in layers_of(self._base.model):
            self._put(layer.name, SlicedLinear)
        for name in head_names(self._base.model):
            self._put(name, SlicedHead)
        self._put_dropouts()
        self._put_attention()
        if is_checkpointed:
            use_checkpointing(self._base.model)
        self._lead.train()

    def step(self, runs: Sequence[TrialRun]) -> list[Stepped]:
        """One optimizer step of each trial.

        Raises:
            NotTogetherError: The model can't.
            RuntimeError: Among others, the device is out of memory; no trial has made its step.
        """
        begun_s = time.perf_counter()
        plans = [run.planned() for run in runs]
        losses = self._backward(runs, plans)
        for run, plan in zip(runs, plans, strict=True):
            run.finish_step(plan)
        seconds = (time.perf_counter() - begun_s) / len(runs)
        return [Stepped(loss=loss, seconds=seconds) for loss in losses]

    def agrees(self, runs: Sequence[TrialRun]) -> bool:
        """Whether the trials' next gradients are those that each has alone; no step is made."""
        differing, allowed = self.difference(runs), AGREEMENT[self._base.compute_dtype]
        if differing > allowed:
            log.warning("gradients of trials together differ by %.2g of their size, %g is allowed", differing, allowed)
        return differing <= allowed

    def difference(self, runs: Sequence[TrialRun]) -> float:
        """How far the trials' next gradients are from those that each has alone, relative to their size; no step is made.

        Returns:
            The largest of all trials; infinity where the model can't.
        """
        plans = [run.planned() for run in runs]
        alone = []
        for run, plan in zip(runs, plans, strict=True):
            run.backward(plan)
            alone.append(_taken(run))
        try:
            self._backward(runs, plans)
        except (NotTogetherError, RuntimeError) as error:
            log.warning("trials can't compute together: %s", error)
            for run in runs:
                run.drop_gradients()
            return math.inf
        together = [_taken(run) for run in runs]
        return max(_difference(a, b) for a, b in zip(together, alone, strict=True))

    def forget(self) -> None:
        """Hold nothing of any trial."""
        for module in self._members.values():
            module.join([])

    def _backward(self, runs: Sequence[TrialRun], plans: Sequence[Sequence[Seeded]]) -> list[float]:
        """Add each trial's gradients; returns each one's mean loss."""
        for name, module in self._members.items():
            module.join([run.adapted.adapter_at(name) for run in runs])
        counts = [num_taught(plan) for plan in plans]
        losses = [0.0] * len(runs)
        for micro in zip(*plans, strict=True):
            for index, loss in enumerate(self._micro_backward(micro, counts)):
                losses[index] += loss
        return losses

    def _micro_backward(self, micro: Sequence[Seeded], counts: Sequence[int]) -> list[float]:
        batches = [seeded.batch for seeded in micro]
        self._slices.begin(batches, [seeded.seed for seeded in micro])
        joint = _joint(batches, self._slices.width, self._base.pad_id)
        pieces = self._pieces(forward(self._base, self._lead, joint), batches)
        losses = [
            summed_loss(piece, batch.labels) / count
            for piece, batch, count in zip(pieces, batches, counts, strict=True)
        ]
        del pieces
        self._slices.streams.is_again = True
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return [float(loss.detach()) for loss in losses]

    def _pieces(self, logits: torch.Tensor, batches: Sequence[Batch]) -> Sequence[torch.Tensor]:
        """Each trial's logits."""
        if batches[0].places_N is None:
            return self._slices.cut(logits)
        return torch.split(logits, [len(batch.labels) for batch in batches])

    def _put(self, name: str, kind: Callable[[nn.Module, str, Slices], SlicedLinear | SlicedHead]) -> None:
        module = kind(self._lead.get_submodule(name), name, self._slices)
        self._lead.set_submodule(name, module)
        self._members[name] = module

    def _put_dropouts(self) -> None:
        inside = tuple(f"{name}." for name in self._members)
        for name, module in list(self._lead.named_modules()):
            if type(module) in {nn.Dropout, Dropout} and module.p > 0 and not name.startswith(inside):
                self._lead.set_submodule(name, SlicedDropout(module.p, name, self._slices))

    def _put_attention(self) -> None:
        """Attention draws for the dropout of its weights too."""
        register(ATTENTION, sliced_attention)
        asked = self._base.model.config._attn_implementation  # noqa: SLF001 -- no public name
        for name, module in self._lead.named_modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_attn_implementation", None) in {"sdpa", CPU_ATTENTION, ATTENTION}:
                config._attn_implementation = ATTENTION  # noqa: SLF001
                module.lockstep = (name, self._slices, ALL_ATTENTION_FUNCTIONS[asked])


def _joint(batches: Sequence[Batch], width: int, pad_id: int) -> Batch:
    """The batches one below another; labels stay with the trials."""
    return Batch(
        input_ids_BT=torch.cat([_wide(batch.input_ids_BT, width, pad_id) for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        places_N=_places(batches, width),
        attention_mask_BT=_stacked([batch.attention_mask_BT for batch in batches], width),
        position_ids_BT=_positions([batch.position_ids_BT for batch in batches], width),
        num_tokens=sum(batch.num_tokens for batch in batches),
    )


def _places(batches: Sequence[Batch], width: int) -> torch.Tensor | None:
    """Of what predicts each trial's tokens, in the joint rows."""
    found, row = [], 0
    for batch in batches:
        if batch.places_N is None:
            return None
        rows, own_width = batch.input_ids_BT.shape
        found.append((row + batch.places_N // own_width) * width + batch.places_N % own_width)
        row += rows
    return torch.cat(found)


def _wide(values_BT: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    return pad(values_BT, (0, width - values_BT.shape[1]), value=fill)


def _stacked(masks: Sequence[torch.Tensor | None], width: int) -> torch.Tensor | None:
    known = [mask for mask in masks if mask is not None]
    return torch.cat([_wide(mask, width, 0) for mask in known]) if known else None


def _positions(positions: Sequence[torch.Tensor | None], width: int) -> torch.Tensor | None:
    """Packed batches: what fills up is one more sequence at the end of its row."""
    known = [position for position in positions if position is not None]
    if not known:
        return None
    fills = [torch.arange(width - one.shape[1], device=one.device).expand(one.shape[0], -1) for one in known]
    return torch.cat([torch.cat([one, fill], dim=1) for one, fill in zip(known, fills, strict=True)])


def _taken(run: TrialRun) -> list[torch.Tensor]:
    """A trial's gradients, which it has no more afterwards."""
    found = [torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in run.trainable]
    run.drop_gradients()
    return found


def _difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Relative to the size of the second."""
    squared = sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))
    return float((squared / max(sum(float(b.square().sum()) for b in other), 1e-30)) ** 0.5)
