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
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuner.worker.architecture import head_names, layers_of
from tuner.worker.batches import IGNORED, Batch
from tuner.worker.evaluation import forward, summed_loss
from tuner.worker.recomputing import use_checkpointing
from tuner.worker.stacks import Stack
from tuner.worker.stepping import Seeded, Stepped, num_taught
from tuner.worker.streams import Streams
from tuner.worker.twin import twin_of

if TYPE_CHECKING:
    from tuner.worker.model import BaseModel
    from tuner.worker.training import TrialRun

log = logging.getLogger(__name__)

ATTENTION = "tuner_lockstep"
"""Name by which transformers finds the attention of trials that compute together."""
AGREEMENT = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}
"""How far gradients may differ from those of each trial alone, relative to their size; other dropout masks give 0.3 or more."""
_TOKENS_DIM = 1


class NotTogetherError(Exception):
    """The model does something with its rows that keeps trials from computing together."""


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
        self._slices = _Slices(Streams(base.device), is_stacked=is_stacked)
        self._members: dict[str, _Linear | _Head] = {}
        for layer in layers_of(self._base.model):
            self._put(layer.name, _Linear)
        for name in head_names(self._base.model):
            self._put(name, _Head)
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
        pieces = self._slices.cut(forward(self._base, self._lead, joint))
        losses = [
            summed_loss(piece, batch.labels) / count
            for piece, batch, count in zip(pieces, batches, counts, strict=True)
        ]
        del pieces
        self._slices.streams.is_again = True
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return [float(loss.detach()) for loss in losses]

    def _put(self, name: str, kind: Callable[[nn.Module, str, _Slices], _Linear | _Head]) -> None:
        module = kind(self._lead.get_submodule(name), name, self._slices)
        self._lead.set_submodule(name, module)
        self._members[name] = module

    def _put_dropouts(self) -> None:
        inside = tuple(f"{name}." for name in self._members)
        for name, module in list(self._lead.named_modules()):
            if type(module) is nn.Dropout and module.p > 0 and not name.startswith(inside):
                self._lead.set_submodule(name, _Dropout(module.p, name, self._slices))

    def _put_attention(self) -> None:
        """Attention by torch's own function draws for the dropout of its weights too."""
        AttentionInterface.register(ATTENTION, _attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        for name, module in self._lead.named_modules():
            config: Any = getattr(module, "config", None)
            if getattr(config, "_attn_implementation", None) in {"sdpa", ATTENTION}:
                config._attn_implementation = ATTENTION  # noqa: SLF001 -- no public name
                module.lockstep = (name, self._slices)


class _Slices:
    """Which rows and tokens are whose in the pass that is under way."""

    def __init__(self, streams: Streams, *, is_stacked: bool) -> None:
        self.streams = streams
        self.is_stacked = is_stacked
        """Whether adapters may be computed as one product."""
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self.width = 0
        """T."""

    def begin(self, batches: Sequence[Batch], seeds: Sequence[int]) -> None:
        """A pass over these batches."""
        self._rows = [batch.input_ids_BT.shape[0] for batch in batches]
        self._lengths = [batch.input_ids_BT.shape[1] for batch in batches]
        self.width = max(self._lengths)
        self.streams.begin(seeds)

    @property
    def is_even(self) -> bool:
        """Whether all have as many rows."""
        return len(set(self._rows)) == 1

    def cut(self, values: torch.Tensor, dims: Sequence[int] = (_TOKENS_DIM,)) -> list[torch.Tensor]:
        """Each trial's part.

        Args:
            values: (B, T, ...), or (B, ...) where tokens are no dimension any more.
            dims: Dimensions of tokens.

        Raises:
            NotTogetherError: The first dimension is not the rows.
        """
        if values.shape[0] != sum(self._rows):
            raise NotTogetherError(f"{tuple(values.shape)} has no row for each of {sum(self._rows)}")
        pieces = list(torch.split(values, self._rows))
        for dim in dims:
            if values.dim() > max(dim, _TOKENS_DIM + 1) and values.shape[dim] == self.width:
                pieces = [piece.narrow(dim, 0, length) for piece, length in zip(pieces, self._lengths, strict=True)]
        return pieces

    def joined(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """The parts one below another, filled up with zeros."""
        return torch.cat([self._filled(piece) for piece in pieces])

    def _filled(self, piece: torch.Tensor) -> torch.Tensor:
        if piece.dim() <= _TOKENS_DIM + 1 or piece.shape[_TOKENS_DIM] == self.width:
            return piece
        return pad(piece, (*(0, 0) * (piece.dim() - 2), 0, self.width - piece.shape[_TOKENS_DIM]))


class _Linear(nn.Module):
    """A linear layer of the base, computed once, and the trials' adapters on it, each on its own rows."""

    def __init__(self, base: nn.Module, place: str, slices: _Slices) -> None:
        super().__init__()
        self.base = base
        self._place = place
        self._slices = slices
        self._members: list[Any] = []  # else torch would take them for modules of its own
        self._stack: Stack | None = None

    def join(self, members: list[Any]) -> None:
        """Compute for these trials' adapters on this layer, None where a trial has none."""
        if members != self._members:
            self._stack = Stack(members) if self._slices.is_stacked and any(members) else None
        self._members = members

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.base(x)
        if not any(self._members):
            return result
        pieces = self._slices.cut(x)
        if self._stack is not None and self._slices.is_even:
            dropped = [self._dropped(index, piece) for index, piece in enumerate(pieces)] if self._drops else None
            seen = x if dropped is None else self._slices.joined(dropped)
            return (result + self._stack(self._cast(seen))).to(result.dtype)
        parts = [self._part(index, piece, result) for index, piece in enumerate(pieces)]
        return (result + self._slices.joined(parts)).to(result.dtype)

    @property
    def _drops(self) -> bool:
        """Whether any trial drops what its adapter sees."""
        return any(member is not None and isinstance(_dropout_of(member), nn.Dropout) for member in self._members)

    def _part(self, index: int, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """B A x, times the scale, as PEFT has it."""
        layer = self._members[index]
        if layer is None:
            return result.new_zeros(*x.shape[:-1], result.shape[-1])
        (key,) = layer.lora_A.keys()
        part: torch.Tensor = layer.lora_B[key](layer.lora_A[key](self._dropped(index, self._cast(x))))
        scale: float = layer.scaling[key]
        return part * scale

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        """In the adapters' type, where autocast does not see to it."""
        if torch.is_autocast_enabled(x.device.type):
            return x
        first = next(member for member in self._members if member is not None)
        return x.to(next(iter(first.lora_A.values())).weight.dtype)

    def _dropped(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """What a trial's adapter sees."""
        member = self._members[index]
        dropout = None if member is None else _dropout_of(member)
        if not isinstance(dropout, nn.Dropout):
            return x
        with self._slices.streams.of(self._place, index):
            dropped: torch.Tensor = dropout(x)
        return dropped


def _dropout_of(member: Any) -> nn.Module:  # noqa: ANN401 -- PEFT's layers have no common type
    dropout: nn.Module = next(iter(member.lora_dropout.values()))
    return dropout


class _Head(nn.Module):
    """The trials' own heads, each on its own rows."""

    def __init__(self, base: nn.Module, place: str, slices: _Slices) -> None:
        super().__init__()
        del base
        self._place = place
        self._slices = slices
        self._members: list[Any] = []

    def join(self, members: list[Any]) -> None:
        """Compute by these trials' heads."""
        self._members = members

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for index, piece in enumerate(self._slices.cut(x)):
            with self._slices.streams.of(self._place, index):  # some heads have a dropout of their own
                parts.append(self._members[index](piece))
        return self._slices.joined(parts)


class _Dropout(nn.Module):
    """Dropout of the base, drawn by each trial for its own rows."""

    def __init__(self, p: float, place: str, slices: _Slices) -> None:
        super().__init__()
        self.p = p
        self._place = place
        self._slices = slices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for index, piece in enumerate(self._slices.cut(x)):
            with self._slices.streams.of(self._place, index):
                parts.append(nn.functional.dropout(piece, self.p))
        return self._slices.joined(parts)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 -- transformers' own
) -> tuple[torch.Tensor, None]:
    """Torch's attention; (B, heads, T, width of a head) -> (B, T, heads, width). Where weights are dropped, slice by slice."""
    if not dropout:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=0.0, **kwargs)
    place, slices = module.lockstep  # type: ignore[misc]
    queries, keys, values = (slices.cut(tensor, (2,)) for tensor in (query, key, value))
    masks = [None] * len(queries) if attention_mask is None else slices.cut(attention_mask, (2, 3))
    parts = []
    for index, (q, k, v, mask) in enumerate(zip(queries, keys, values, masks, strict=True)):
        with slices.streams.of(place, index):
            parts.append(sdpa_attention_forward(module, q, k, v, mask, dropout=dropout, **kwargs)[0])
    return slices.joined(parts), None


def _joint(batches: Sequence[Batch], width: int, pad_id: int) -> Batch:
    """The batches one below another; labels stay with the trials."""
    return Batch(
        input_ids_BT=torch.cat([_wide(batch.input_ids_BT, width, pad_id) for batch in batches]),
        labels=batches[0].labels.new_full((1,), IGNORED),
        attention_mask_BT=_stacked([batch.attention_mask_BT for batch in batches], width),
        position_ids_BT=_positions([batch.position_ids_BT for batch in batches], width),
        num_tokens=sum(batch.num_tokens for batch in batches),
    )


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
