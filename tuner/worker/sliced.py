"""Parts of a model that compute for several trials: each trial's adapter, head and dropout on its own rows. Runs on the worker.

B is rows of all trials, T tokens of the longest row; a slice is one trial's rows, cut to the length that they have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import pad

from tuner.worker.dropout import dropped
from tuner.worker.stacks import Stack

if TYPE_CHECKING:
    from tuner.worker.batches import Batch
    from tuner.worker.streams import Streams

ATTENTION = "tuner_lockstep"
"""Name by which transformers finds the attention of trials that compute together."""
_TOKENS_DIM = 1


class NotTogetherError(Exception):
    """The model does something with its rows that keeps trials from computing together."""


class Slices:
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


class SlicedLinear(nn.Module):
    """A linear layer of the base, computed once, and the trials' adapters on it, each on its own rows."""

    def __init__(self, base: nn.Module, place: str, slices: Slices) -> None:
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
        """(B, ..., in) -> (B, ..., out)."""
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


class SlicedHead(nn.Module):
    """The trials' own heads, each on its own rows."""

    def __init__(self, base: nn.Module, place: str, slices: Slices) -> None:
        super().__init__()
        del base
        self._place = place
        self._slices = slices
        self._members: list[Any] = []

    def join(self, members: list[Any]) -> None:
        """Compute by these trials' heads."""
        self._members = members

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is left of the last block's output, by each trial's own head."""
        parts = []
        for index, piece in enumerate(self._slices.cut(x)):
            with self._slices.streams.of(self._place, index):  # some heads have a dropout of their own
                parts.append(self._members[index](piece))
        return self._slices.joined(parts)


class SlicedDropout(nn.Module):
    """Dropout of the base, drawn by each trial for its own rows."""

    def __init__(self, p: float, place: str, slices: Slices) -> None:
        super().__init__()
        self.p = p
        self._place = place
        self._slices = slices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is left after each trial's draw."""
        parts = []
        for index, piece in enumerate(self._slices.cut(x)):
            with self._slices.streams.of(self._place, index):
                parts.append(dropped(piece, self.p))
        return self._slices.joined(parts)


def sliced_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 -- transformers' own
) -> tuple[torch.Tensor, None]:
    """As alone; (B, heads, T, width of a head) -> (B, T, heads, width). Where weights are dropped, slice by slice."""
    place, slices, alone = module.lockstep  # type: ignore[misc]
    if not dropout:
        whole: tuple[torch.Tensor, None] = alone(module, query, key, value, attention_mask, dropout=0.0, **kwargs)
        return whole
    queries, keys, values = (slices.cut(tensor, (2,)) for tensor in (query, key, value))
    masks = [None] * len(queries) if attention_mask is None else slices.cut(attention_mask, (2, 3))
    parts = []
    for index, (q, k, v, mask) in enumerate(zip(queries, keys, values, masks, strict=True)):
        with slices.streams.of(place, index):
            parts.append(alone(module, q, k, v, mask, dropout=dropout, **kwargs)[0])
    return slices.joined(parts), None
