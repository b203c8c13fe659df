"""Token ids as arrays in files, which all processes of a node map. Runs on the worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Ragged:
    """Rows of different lengths, end to end in one array, which may lie in a file.

    Args:
        values: All rows.
        offsets: Where each row starts, and the end of the last.
    """

    def __init__(self, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> None:
        self._values = values
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        return self._values[self._offsets[index] : self._offsets[index + 1]]

    @property
    def lengths(self) -> list[int]:
        """Length of each row."""
        return [int(length) for length in np.diff(self._offsets)]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]] | Sequence[Sequence[bool]], dtype: type) -> Ragged:
        """Lay rows end to end."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        values: npt.NDArray[Any] = np.fromiter(
            (value for row in rows for value in row), dtype=dtype, count=int(offsets[-1])
        )
        return cls(values, offsets)

    def some(self, indices: npt.NDArray[np.int64]) -> Ragged:
        """Some of the rows, in this order."""
        lengths = np.diff(self._offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(np.concatenate([self[index] for index in indices]), offsets)

    def save(self, folder: Path, name: str) -> None:
        """Write both arrays."""
        np.save(folder / f"{name}.npy", self._values)
        np.save(folder / f"{name}.offsets.npy", self._offsets)

    @classmethod
    def load(cls, folder: Path, name: str) -> Ragged:
        """Map the values from the file: all processes of a node share its pages."""
        return cls(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}.offsets.npy"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """A split as token ids."""

    input_ids: Ragged
    """Token ids of each example, special tokens included."""
    is_target: Ragged | None = None
    """Causal language models: whether each token is part of a completion."""
    class_ids: npt.NDArray[np.int64] | None = None
    """Classification: class of each example."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def some(self, indices: npt.NDArray[np.int64]) -> Tokenized:
        """Some of the examples, in this order."""
        return Tokenized(
            input_ids=self.input_ids.some(indices),
            is_target=None if self.is_target is None else self.is_target.some(indices),
            class_ids=None if self.class_ids is None else self.class_ids[indices],
        )

    def most_learned(self) -> int:
        """Most tokens of an example that are learned; 1 where it is its class."""
        if self.is_target is None:
            return 1
        return max(int(self.is_target[index].sum()) for index in range(len(self)))

    def save(self, folder: Path, name: str) -> None:
        """Write it as files that other processes map."""
        self.input_ids.save(folder, f"{name}.input_ids")
        if self.is_target is not None:
            self.is_target.save(folder, f"{name}.is_target")
        if self.class_ids is not None:
            np.save(folder / f"{name}.class_ids.npy", self.class_ids)

    @classmethod
    def load(cls, folder: Path, name: str) -> Tokenized:
        """Read what `save` wrote."""
        input_ids = Ragged.load(folder, f"{name}.input_ids")
        if (classes := folder / f"{name}.class_ids.npy").exists():
            return cls(input_ids=input_ids, class_ids=np.load(classes))
        return cls(input_ids=input_ids, is_target=Ragged.load(folder, f"{name}.is_target"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Alternatives:
    """The completions that each held-out example chooses from, each as an example of its own."""

    tokens: Tokenized
    """All of them."""
    example: npt.NDArray[np.int64]
    """Which example each belongs to."""
    is_right: npt.NDArray[np.bool_]
    """Whether it is the right one."""

    def some(self, examples: npt.NDArray[np.int64]) -> Alternatives:
        """Those of some held-out examples, which are rising; each belongs to its example's place among them."""
        places = np.flatnonzero(np.isin(self.example, examples))
        return Alternatives(
            tokens=self.tokens.some(places),
            example=np.searchsorted(examples, self.example[places]),
            is_right=self.is_right[places],
        )

    def save(self, folder: Path, name: str) -> None:
        """Write it as files that other processes map."""
        self.tokens.save(folder, name)
        np.save(folder / f"{name}.example.npy", self.example)
        np.save(folder / f"{name}.is_right.npy", self.is_right)

    @classmethod
    def load(cls, folder: Path, name: str) -> Alternatives:
        """Read what `save` wrote."""
        example, is_right = (np.load(folder / f"{name}.{part}.npy") for part in ("example", "is_right"))
        return cls(tokens=Tokenized.load(folder, name), example=example, is_right=is_right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A split that trials are scored on."""

    tokens: Tokenized
    """Its examples."""
    choices: Alternatives | None
    """None where choice accuracy is not measured."""

    def some(self, examples: npt.NDArray[np.int64]) -> Scored:
        """Some of the examples, which are rising."""
        return Scored(tokens=self.tokens.some(examples), choices=self.choices and self.choices.some(examples))

    @property
    def read(self) -> tuple[Tokenized, ...]:
        """All that an evaluation reads."""
        return (self.tokens,) if self.choices is None else (self.tokens, self.choices.tokens)

    @classmethod
    def load(cls, folder: Path, name: str, *, has_choices: bool) -> Scored:
        """Read a split that was written under this name."""
        choices = Alternatives.load(folder, f"{name}.choices") if has_choices else None
        return cls(tokens=Tokenized.load(folder, name), choices=choices)
