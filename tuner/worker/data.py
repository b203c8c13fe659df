"""Labelled examples from a file: read, split by hash, tokenized, batched by length. Runs on the worker.

B is examples in a batch, T tokens of its longest example.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuner.config import DataConfig

SPLIT_SALT = "tuner split:"
"""Makes the order of the split independent of any other hash of the texts. To change it is to change every split."""

MEGABATCH = 16
"""Batches that are sorted by length together: bucketing costs 2.5 times fewer padded tokens than random order."""


class DataError(Exception):
    """The data can't be trained on.

    Args:
        key: Dotted key of the sweep file that is to blame.
        message: What is wrong, with what is there instead.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)
        self.key = key
        self.message = message


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One labelled text."""

    text: str
    """The input."""
    label: str
    """The class's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The examples of a sweep, no text in two of them."""

    train: tuple[Example, ...]
    """What trials learn from."""
    validation: tuple[Example, ...]
    """What decisions are made on."""
    test: tuple[Example, ...]
    """What no decision sees."""
    labels: tuple[str, ...]
    """Class names, sorted; the index is the class id."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all examples with their split."""
        digest = hashlib.sha256()
        for name, examples in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for example in examples:
                digest.update(f"{name}\t{example.label}\t{example.text}\n".encode())
        return digest.hexdigest()

    @property
    def majority_share(self) -> float:
        """Accuracy on the validation data of always naming its most frequent class."""
        counts = Counter(example.label for example in self.validation)
        return max(counts.values()) / len(self.validation)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """A split as token ids."""

    input_ids: tuple[tuple[int, ...], ...]
    """Token ids of each example, special tokens included."""
    labels: tuple[int, ...]
    """Class id of each example."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Examples padded to the longest of them, on one device."""

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    labels_B: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask_BT.sum())


def load_splits(config: DataConfig) -> Splits:
    """Read the file and split it.

    Texts are taken in the order of a salted SHA-1: first the test examples, then validation, the rest is training data.
    So the split depends on the texts alone, and a repeated text (the first counts) can't be in two splits. The salt
    matters: files are often sampled or sorted by the plain hash of their texts, and the first of such a file are not like
    the rest.

    Raises:
        DataError: No such file, not readable, columns missing, empty cells, too few examples, one class only.
    """
    frame = _read(Path(config.path))
    examples = _examples(frame, config)
    held_out = config.test + config.validation
    if len(examples) <= held_out:
        message = f"leaves nothing to train on: {config.validation} for validation and {config.test} for test of {len(examples)}"
        raise DataError("data.validation", f"{message} different texts in {config.path}")
    labels = tuple(sorted({example.label for example in examples}))
    if len(labels) == 1:
        raise DataError("data.label", f"column {config.label!r} holds one class only, {labels[0]!r}: nothing to learn")
    return Splits(
        test=examples[: config.test],
        validation=examples[config.test : held_out],
        train=examples[held_out:],
        labels=labels,
    )


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError("data.path", f"no such file: {path}")
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        match kind:
            case "jsonl":
                return pd.read_json(path, lines=True, dtype=False)
            case "json":
                return pd.read_json(path, dtype=False)
            case "csv":
                return pd.read_csv(path, dtype=str, keep_default_na=False)
            case "parquet":
                return pd.read_parquet(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        raise DataError("data.path", f"can't read {path} as {kind}: {error}") from error
    raise DataError("data.path", f"must end in .jsonl, .json, .csv or .parquet (.gz allowed), got {path.name!r}")


def _examples(frame: pd.DataFrame, config: DataConfig) -> tuple[Example, ...]:
    if frame.empty:
        raise DataError("data.path", f"holds no examples: {config.path}")
    for key, column in (("data.text", config.text), ("data.label", config.label)):
        if column not in frame.columns:
            columns = ", ".join(str(name) for name in frame.columns)
            raise DataError(key, f"no column {column!r} in {config.path}; it has: {columns}")
        empty = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
        if empty.any():
            raise DataError(
                key, f"column {column!r} is empty in {int(empty.sum())} rows, first in row {int(empty.argmax()) + 1}"
            )
    unique = frame.drop_duplicates(subset=config.text)
    pairs = zip(unique[config.text].astype(str), unique[config.label].astype(str), strict=True)
    examples = (Example(text=text, label=label) for text, label in pairs)
    return tuple(sorted(examples, key=_split_order))


def _split_order(example: Example) -> str:
    return hashlib.sha1(f"{SPLIT_SALT}{example.text}".encode()).hexdigest()  # noqa: S324 -- a shuffle, not a secret


def tokenize(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], labels: Sequence[str], *, max_length: int
) -> Tokenized:
    """Turn examples into token ids, cut off at `max_length` tokens.

    Args:
        tokenizer: The base model's.
        examples: One or more.
        labels: Class names by class id.
        max_length: In tokens, special tokens included.
    """
    class_id = {label: index for index, label in enumerate(labels)}
    encoded = tokenizer([example.text for example in examples], truncation=True, max_length=max_length)
    return Tokenized(
        input_ids=tuple(tuple(ids) for ids in encoded["input_ids"]),
        labels=tuple(class_id[example.label] for example in examples),
    )


class BatchOrder:
    """Which examples make up the batch of each step: a function of lengths, batch size and seed alone.

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

    def at(self, step: int) -> list[int]:
        """Indices of the examples in the batch of a step, counted from 0."""
        epoch, position = divmod(step, len(self._lengths) // self._batch_size)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._shuffled(epoch))
        return self._epoch[1][position]

    def padded_tokens(self, step: int) -> int:
        """B x T of the batch of a step."""
        batch = self.at(step)
        return len(batch) * max(self._lengths[index] for index in batch)

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
    rows = [torch.tensor(data.input_ids[index]) for index in indices]
    pad = torch.nn.utils.rnn.pad_sequence
    return Batch(
        input_ids_BT=pad(rows, batch_first=True, padding_value=pad_id).to(device),
        attention_mask_BT=pad([torch.ones_like(row) for row in rows], batch_first=True).to(device),
        labels_B=torch.tensor([data.labels[index] for index in indices], device=device),
    )


def evaluation_batches(data: Tokenized, *, batch_size: int, pad_id: int, device: torch.device) -> tuple[Batch, ...]:
    """All examples once, by rising length; the last batch is the longest."""
    order = sorted(range(len(data)), key=lambda index: len(data.input_ids[index]))
    chunks = (order[at : at + batch_size] for at in range(0, len(order), batch_size))
    return tuple(collate(data, chunk, pad_id=pad_id, device=device) for chunk in chunks)
