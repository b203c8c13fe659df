"""Which examples make up a batch, and their token ids as tensors. Runs on the worker.

B is rows in a batch, T tokens of its longest row, N tokens that are learned. A row is an example, or several of them packed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tuner.worker.token_files import Tokenized

MEGABATCH = 16
"""Batches that are sorted by length together: bucketing costs 2.5 times fewer padded tokens than random order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows padded to the longest of them, on one device."""

    input_ids_BT: torch.Tensor
    labels: torch.Tensor
    """Class ids of shape (B,), or the ids of the tokens that are learned, of shape (N,)."""
    places_N: torch.Tensor | None = None
    """Place in B x T of what predicts each learned token, which is the token before it; None where classes are learned."""
    attention_mask_BT: torch.Tensor | None
    """1 for tokens, 0 for padding; None in packed batches."""
    position_ids_BT: torch.Tensor | None
    """Packed batches: positions that begin anew with each example, by which transformers keeps attention inside of it."""
    num_tokens: int
    """Tokens without padding."""
    num_common: int = 0
    """Tokens with which all rows begin, of which none is learned; 0 where nobody has looked."""

    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of the model."""
        if self.position_ids_BT is not None:
            return {"input_ids": self.input_ids_BT, "position_ids": self.position_ids_BT}
        assert self.attention_mask_BT is not None  # noqa: S101 -- one of the two is set
        return {"input_ids": self.input_ids_BT, "attention_mask": self.attention_mask_BT}


class BatchOrder:
    """Which examples make up each batch: a function of lengths, batch size and seed alone.

    Examples of like length share a batch, so that little is padded. Each epoch has an order of its own.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples in a batch; all examples if there are fewer.
        seed: The trial's.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = min(batch_size, len(lengths))
        self._seed = seed
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def at(self, index: int) -> list[int]:
        """The examples in a batch, counted from 0 over all epochs."""
        epoch, position = divmod(index, len(self._lengths) // self._batch_size)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][position]

    def padded_tokens(self, index: int) -> int:
        """B x T of a batch without packing."""
        batch = self.at(index)
        return len(batch) * max(self._lengths[example] for example in batch)

    def _shuffled(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self._seed}:{epoch}")  # noqa: S311 -- reproducible, not secret
        order = list(range(len(self._lengths)))
        draw.shuffle(order)
        order = order[: len(order) // self._batch_size * self._batch_size]
        batches = [batch for group in self._groups(order) for batch in group]
        draw.shuffle(batches)
        return batches

    def _groups(self, order: list[int]) -> Iterator[list[list[int]]]:
        size = self._batch_size * MEGABATCH
        for start in range(0, len(order), size):
            group = sorted(order[start : start + size], key=lambda index: self._lengths[index])
            yield [group[at : at + self._batch_size] for at in range(0, len(group), self._batch_size)]


def collate(data: Tokenized, indices: Sequence[int], *, pad_id: int, device: torch.device) -> Batch:
    """Pad some examples to the longest of them.

    Args:
        data: Where the examples come from.
        indices: At least one.
        pad_id: Token id that fills up; masked out.
        device: Where the batch goes.
    """
    rows = [torch.from_numpy(data.input_ids[index].astype("int64")) for index in indices]
    ids_BT = _padded(rows, pad_id)
    if data.class_ids is not None:
        labels, places_N = torch.from_numpy(data.class_ids[list(indices)]), None
    else:
        labels, places_N = learned(ids_BT, _padded([_is_learned(data, index) for index in indices], 0))
    return Batch(
        input_ids_BT=ids_BT.to(device),
        attention_mask_BT=_padded([torch.ones_like(row) for row in rows], 0).to(device),
        position_ids_BT=None,
        labels=labels.to(device),
        places_N=None if places_N is None else places_N.to(device),
        num_tokens=sum(map(len, rows)),
        num_common=0 if places_N is None else num_common(ids_BT, places_N),
    )


def collate_packed(
    data: Tokenized, indices: Sequence[int], *, capacity: int, pad_id: int, device: torch.device
) -> Batch:
    """Lay some examples one after another in rows of at most `capacity` tokens.

    Args:
        data: Where the examples come from; of a causal language model.
        indices: At least one.
        capacity: Longest row in tokens; longer examples get a row of their own.
        pad_id: Token id that fills up.
        device: Where the batch goes.
    """
    ids = {index: torch.from_numpy(data.input_ids[index].astype("int64")) for index in indices}
    rows = pack({index: len(row) for index, row in ids.items()}, capacity)
    width = max(sum(len(ids[index]) for index in row) for row in rows)
    # Padding is a sequence of its own at the end of its row: it begins at position 0 and attends to itself.
    positions = [torch.cat([torch.arange(len(ids[index])) for index in row]) for row in rows]
    ids_BT = _padded([torch.cat([ids[index] for index in row]) for row in rows], pad_id)
    is_learned_BT = _padded([torch.cat([_is_learned(data, index) for index in row]) for row in rows], 0)
    labels_N, places_N = learned(ids_BT, is_learned_BT)
    return Batch(
        input_ids_BT=ids_BT.to(device),
        attention_mask_BT=None,
        position_ids_BT=torch.stack([torch.cat([row, torch.arange(width - len(row))]) for row in positions]).to(device),
        labels=labels_N.to(device),
        places_N=places_N.to(device),
        num_tokens=sum(map(len, ids.values())),
    )


def pack(lengths: dict[int, int], capacity: int) -> list[list[int]]:
    """Put examples into rows, the longest first, each into the first row that still has room.

    Args:
        lengths: Example -> tokens.
        capacity: Tokens in a row; a longer example gets a row of its own.

    Returns:
        Rows of examples.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(lengths, key=lambda index: (-lengths[index], index)):
        place = next((place for place, free in enumerate(room) if free >= lengths[index]), None)
        if place is None:
            rows.append([])
            room.append(capacity)
            place = len(rows) - 1
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def evaluation_batches(data: Tokenized, *, batch_size: int, pad_id: int, device: torch.device) -> tuple[Batch, ...]:
    """All examples once, by rising length; the last batch is the longest."""
    chunks = evaluation_order(data, batch_size)
    return tuple(collate(data, chunk, pad_id=pad_id, device=device) for chunk in chunks)


def evaluation_order(data: Tokenized, batch_size: int) -> list[list[int]]:
    """Which examples are in which batch of an evaluation."""
    lengths = data.input_ids.lengths
    order = sorted(range(len(data)), key=lambda index: lengths[index])
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def num_common(ids_BT: torch.Tensor, places_N: torch.Tensor) -> int:
    """Tokens with which all rows begin, all before the first that predicts a learned one.

    Args:
        ids_BT: Padded on the right.
        places_N: Of what predicts the learned tokens.
    """
    most = int((places_N % ids_BT.shape[1]).min()) if len(places_N) else 0
    differs_T = (ids_BT[:, :most] != ids_BT[0, :most]).any(0)
    return int(differs_T.int().argmax()) if bool(differs_T.any()) else most


def learned(ids_BT: torch.Tensor, is_learned_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, places of what predicts them) of the tokens that are learned, row by row; both of shape (N,)."""
    places_N = is_learned_BT.flatten().nonzero()[:, 0]
    return ids_BT.flatten()[places_N], places_N - 1


def _is_learned(data: Tokenized, index: int) -> torch.Tensor:
    """Whether each token is; never the first, which nothing comes before."""
    assert data.is_target is not None  # noqa: S101 -- of a causal language model
    is_learned = torch.from_numpy(data.is_target[index].copy()).bool()
    is_learned[0] = False
    return is_learned


def _padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
