"""Examples from a file, a folder or the hub: read, split by hash, no input in two splits. Runs on the worker."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from tuner.config import DataConfig

SPLIT_SALT = "tuner split:"
"""Makes the order of the split independent of any other hash of the texts. To change it is to change every split."""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Split -> names that files and hub data sets give it."""
KINDS = ("jsonl", "json", "csv", "parquet")

Turn = tuple[str, str]
"""(role, content) of a chat message."""
ASSISTANT = "assistant"
ROLES = frozenset({"system", "user", ASSISTANT, "tool"})


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
    """One input with its answer."""

    text: str
    """The text to classify, or the prompt; of a chat all before the first answer, as JSON. Says which split it is in."""
    label: str
    """The class's name, or the completion."""
    turns: tuple[Turn, ...] = ()
    """A chat's messages, the last one the assistant's; empty for other data."""
    choices: tuple[str, ...] = ()
    """Completions to choose from, if the data names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """The examples of a sweep, no text in two of them."""

    train: tuple[Example, ...]
    """What trials learn from."""
    validation: tuple[Example, ...]
    """What decisions are made on."""
    test: tuple[Example, ...]
    """What no decision sees."""
    labels: tuple[str, ...] = ()
    """Class names, sorted; the index is the class id. Empty for causal language models."""
    num_duplicates: int = 0
    """Rows left out because their input came before or is held out."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all examples with their split."""
        digest = hashlib.sha256()
        for name, examples in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for example in examples:
                choices = "".join(f"\t{choice}" for choice in example.choices)
                digest.update(f"{name}\t{example.label}\t{example.text}{choices}\n".encode())
        return digest.hexdigest()

    @property
    def majority_share(self) -> float:
        """Share of the validation data that has its most frequent answer."""
        counts = Counter(example.label for example in self.validation)
        return max(counts.values()) / len(self.validation)


def load_splits(config: DataConfig, task: str) -> Splits:
    """Read the data and split it.

    Splits that the data has are kept; of a split that is larger than `validation` or `test` asks for, and for one that is
    missing, examples are taken in the order of a salted SHA-1 of their input: first test, then validation. So the split
    depends on the inputs alone. An input stands in one split only: test before validation before train, and the first of
    equal ones counts. The salt matters: files are often sampled or sorted by the plain hash of their texts, and the first
    of such a file are not like the rest.

    Args:
        config: The sweep's `data` section.
        task: `classification` or `causal-lm`.

    Raises:
        DataError: No such file, not readable, columns missing, empty cells, too few examples, one class only.
    """
    frames = _frames(config)
    given = {name: _examples(frame, config, task) for name, frame in frames.items()}
    pools = {name: _unique(examples) for name, examples in given.items()}
    train = pools["train"]
    test, train = _held_out(pools.get("test"), train, config.test or 0, is_capped=config.test is not None)
    train = _without(train, test)
    validation, train = _held_out(
        pools.get("validation"), train, _asked(config, pools), is_capped=config.validation is not None
    )
    validation = _without(validation, test)
    train = _without(train, validation)
    if not train or not validation:
        raise _too_few(config, sum(map(len, pools.values())))
    splits = {"train": train, "validation": validation, "test": test}
    left_out = sum(map(len, given.values())) - sum(map(len, pools.values()))
    overlap = _overlap(pools)
    labels = _classes(splits.values(), config) if task == "classification" else ()
    return Splits(**splits, labels=labels, num_duplicates=left_out + overlap)


def _asked(config: DataConfig, pools: Mapping[str, object]) -> int:
    if config.validation is None and "validation" not in pools:
        raise DataError("data.validation", f"is missing, and {_source(config)} has no validation split")
    return config.validation or 0


def _held_out(
    own: tuple[Example, ...] | None, train: tuple[Example, ...], num: int, *, is_capped: bool
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(held out, what is left of train): from the data's own split where there is one, else from train."""
    if own is None:
        return train[:num], train[num:]
    return (own[:num] if is_capped else own), train


def _without(examples: tuple[Example, ...], held_out: Iterable[Example]) -> tuple[Example, ...]:
    texts = {example.text for example in held_out}
    return tuple(example for example in examples if example.text not in texts)


def _overlap(pools: Mapping[str, Sequence[Example]]) -> int:
    """Inputs that stand in several of the data's own splits."""
    counts = Counter(example.text for examples in pools.values() for example in examples)
    return sum(count - 1 for count in counts.values())


def _too_few(config: DataConfig, num: int) -> DataError:
    asked = f"{config.validation or 0} for validation and {config.test or 0} for test of {num}"
    return DataError("data.validation", f"leaves nothing to train on: {asked} different texts in {_source(config)}")


def _source(config: DataConfig) -> str:
    return config.path or config.name or ""


def _unique(examples: Iterable[Example]) -> tuple[Example, ...]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.text, example)
    return tuple(sorted(first.values(), key=_split_order))


def _split_order(example: Example) -> str:
    return hashlib.sha1(f"{SPLIT_SALT}{example.text}".encode()).hexdigest()  # noqa: S324 -- a shuffle, not a secret


def _classes(splits: Iterable[Sequence[Example]], config: DataConfig) -> tuple[str, ...]:
    labels = tuple(sorted({example.label for examples in splits for example in examples}))
    if len(labels) == 1:
        raise DataError("data.label", f"column {config.label!r} holds one class only, {labels[0]!r}: nothing to learn")
    return labels


def _frames(config: DataConfig) -> dict[str, pd.DataFrame]:
    """Split -> its rows."""
    if config.path is None:
        return _from_hub(config)
    path = Path(config.path)
    if path.is_dir():
        return _from_folder(path)
    return {"train": _read(path)}


def _from_folder(folder: Path) -> dict[str, pd.DataFrame]:
    files = {file.name.partition(".")[0].lower(): file for file in sorted(folder.iterdir()) if _kind(file) in KINDS}
    frames = {split: _read(files[name]) for split, names in SPLITS.items() for name in names if name in files}
    if "train" not in frames:
        found = ", ".join(file.name for file in files.values()) or "no data files"
        raise DataError("data.path", f"no train.jsonl, .json, .csv or .parquet in {folder}; it has: {found}")
    return frames


def _from_hub(config: DataConfig) -> dict[str, pd.DataFrame]:
    from datasets import ClassLabel, load_dataset  # noqa: PLC0415 -- half a second, and most data is local

    try:
        loaded = load_dataset(config.name, config.subset, revision=config.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError("data.name", f"can't load {config.name} from the hub: {str(error).splitlines()[0]}") from error
    frames = {}
    for split, names in SPLITS.items():
        name = next((name for name in names if name in loaded), None)
        if name is not None and not (split == "test" and config.test == 0):
            frames[split] = loaded[name].to_pandas()
            for column, feature in loaded[name].features.items():
                if isinstance(feature, ClassLabel):
                    frames[split][column] = _class_names(frames[split][column], feature.names, config, name)
    if "train" not in frames:
        raise DataError("data.name", f"{config.name} has no train split; it has: {', '.join(loaded)}")
    return frames


def _class_names(numbers: Iterable[int], names: Sequence[str], config: DataConfig, split: str) -> list[str]:
    named = [names[number] if 0 <= number < len(names) else None for number in map(int, numbers)]
    if None in named:
        hint = "give data.test: 0 to leave it out" if split in SPLITS["test"] else "it can't be used"
        raise DataError("data.name", f"{config.name} has rows without a class in its {split} split; {hint}")
    return [name for name in named if name is not None]


def _kind(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[2]


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError("data.path", f"no such file: {path}")
    kind = _kind(path)
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
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError("data.path", f"can't read {path} as {kind}: {error}") from error
    raise DataError("data.path", f"must end in .jsonl, .json, .csv or .parquet (.gz allowed), got {path.name!r}")


def _examples(frame: pd.DataFrame, config: DataConfig, task: str) -> tuple[Example, ...]:
    if frame.empty:
        key = "data.path" if config.path else "data.name"
        raise DataError(key, f"holds no examples: {_source(config)}")
    choices = _choices(frame, config)
    if task == "causal-lm" and config.messages is not None:
        chats = [_turns(cell, row, config) for row, cell in enumerate(_column(frame, config, "messages"), start=1)]
        return tuple(
            Example(text=_opening(turns), label=turns[-1][1], turns=turns, choices=options)
            for turns, options in zip(chats, choices, strict=True)
        )
    given, answer = ("text", "label") if task == "classification" else ("prompt", "completion")
    rows = zip(_column(frame, config, given), _column(frame, config, answer), choices, strict=True)
    return tuple(Example(text=str(text), label=str(label), choices=options) for text, label, options in rows)


def _column(frame: pd.DataFrame, config: DataConfig, key: str) -> list[Any]:
    """A column without empty cells."""
    column = getattr(config, key)
    if column not in frame.columns:
        columns = ", ".join(str(name) for name in frame.columns)
        raise DataError(f"data.{key}", f"no column {column!r} in {_source(config)}; it has: {columns}")
    empty = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
    if empty.any():
        raise DataError(
            f"data.{key}",
            f"column {column!r} is empty in {int(empty.sum())} rows, first in row {int(empty.argmax()) + 1}",
        )
    return list(frame[column])


def _turns(cell: object, row: int, config: DataConfig) -> tuple[Turn, ...]:
    """The messages of a chat up to the assistant's last; a csv file has them as JSON."""
    try:
        listed = json.loads(cell) if isinstance(cell, str) else list(cell)  # type: ignore[call-overload]
        turns = [(str(message["role"]), _content(message)) for message in listed]
    except (TypeError, KeyError, ValueError) as error:
        message = (
            f"column {config.messages!r} must hold lists of messages with role and content, got {str(cell)[:80]!r}"
        )
        raise DataError("data.messages", f"{message} in row {row}") from error
    while turns and turns[-1][0] != ASSISTANT:
        turns.pop()
    if strange := {role for role, _ in turns} - ROLES:
        raise DataError("data.messages", f"row {row} has roles {sorted(strange)}; known: {', '.join(sorted(ROLES))}")
    if not turns:
        raise DataError("data.messages", f"row {row} has no message of the assistant: nothing to learn")
    return tuple(turns)


def _content(message: Mapping[str, Any]) -> str:
    """A message's text.

    Raises:
        ValueError: It is not plain text, or calls tools in fields of its own.
    """
    content = message["content"]
    if not isinstance(content, str) or message.get("tool_calls"):
        raise ValueError("content must be text, and tool calls be written in it")
    return content


def _opening(turns: Sequence[Turn]) -> str:
    """All up to the first answer, as JSON: chats that begin alike are one conversation and stand in one split."""
    first = next(place for place, (role, _) in enumerate(turns) if role == ASSISTANT)
    return json.dumps(turns[:first])


def _choices(frame: pd.DataFrame, config: DataConfig) -> list[tuple[str, ...]]:
    if config.choices is None:
        return [()] * len(frame)
    return [_options(cell, row, config) for row, cell in enumerate(_column(frame, config, "choices"), start=1)]


def _options(cell: object, row: int, config: DataConfig) -> tuple[str, ...]:
    """The completions to choose from; a csv file has them as JSON."""
    try:
        listed: Any = json.loads(cell) if isinstance(cell, str) else cell
        options = tuple(str(choice) for choice in listed) if not isinstance(listed, (str, dict)) else ()
    except (TypeError, ValueError):
        options = ()
    if len(set(options)) < 2:  # noqa: PLR2004 -- a choice
        message = f"column {config.choices!r} must hold lists of at least two completions, got {str(cell)[:80]!r}"
        raise DataError("data.choices", f"{message} in row {row}")
    return options
