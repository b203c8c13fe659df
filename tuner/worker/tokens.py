"""Examples as token ids: texts to classify, or prompts with the completions that are learned. Runs on the worker.

Token ids of a sweep are made once for each node and read from there by all its workers (`tuner.worker.cache`).

TRL's data handling was looked at (1.16) and left: its packing keeps examples apart only under attention kernels that take
sequence boundaries (FlashAttention, a GPU), and its tokenization lives in SFTTrainer, whose loop a search can't use. What is
taken from it is the rule that prompt and completion are tokenized apart, so that training sees a prompt as serving does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tuner.worker.cache import cached
from tuner.worker.data import ASSISTANT, DataError, Example, Splits, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuner.config import DataConfig

FORMAT = "1"
"""To be raised when the same examples give other token ids, so that caches are not mixed up."""
MAX_CHOICES = 64
"""Most completions that the data may have if they are to be the choices of every example."""

Ids = list[int]
Tokens = tuple[Ids, list[bool]]
"""(token ids, whether each is part of a completion)."""


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
    """The completions that each validation example chooses from, each as an example of its own."""

    tokens: Tokenized
    """All of them."""
    example: npt.NDArray[np.int64]
    """Which validation example each belongs to."""
    is_right: npt.NDArray[np.bool_]
    """Whether it is the right one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedSplits:
    """What trials see of the data, and how much of it was too long."""

    train: Tokenized
    validation: Tokenized
    num_too_long: int
    """Examples left out, of training and validation data."""


def tokenize_splits(
    tokenizer: PreTrainedTokenizerBase, splits: Splits, config: DataConfig, task: str
) -> TokenizedSplits:
    """Training and validation data as token ids, made at the first use.

    Args:
        tokenizer: The base model's.
        splits: The examples.
        config: The sweep's `data` section.
        task: `classification` or `causal-lm`.

    Raises:
        DataError: A chat template is asked for and missing or not usable, or all examples are too long.
    """
    key = _key(tokenizer, splits, config, task)
    folder = cached("tokens", key, lambda folder: _write(tokenizer, splits, config, task, folder))
    train, validation = (Tokenized.load(folder, name) for name in ("train", "validation"))
    too_long = len(splits.train) + len(splits.validation) - len(train) - len(validation)
    if not len(train) or not len(validation):
        raise DataError(
            "data.max_length", f"leaves nothing: all examples of a split are longer than {config.max_length} tokens"
        )
    return TokenizedSplits(train=train, validation=validation, num_too_long=too_long)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], labels: Sequence[str], *, max_length: int
) -> Tokenized:
    """Texts to classify, cut off at `max_length` tokens, special tokens included."""
    class_id = {label: index for index, label in enumerate(labels)}
    encoded = tokenizer([example.text for example in examples], truncation=True, max_length=max_length)
    return Tokenized(
        input_ids=Ragged.of(encoded["input_ids"], np.int32),
        class_ids=np.array([class_id[example.label] for example in examples]),
    )


def tokenize_completions(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], config: DataConfig
) -> list[Tokens]:
    """Prompts with completions; each completion ends in the end-of-sequence token.

    Raises:
        DataError: A chat template is asked for and missing, or it does not only append.
    """
    if any(example.turns for example in examples) or _uses_template(tokenizer, config):
        segments = [_chat_segments(tokenizer, _chat(example, config)) for example in examples]
        return _encoded(tokenizer, segments)
    prompts = tokenizer([example.text for example in examples])["input_ids"]
    completions = tokenizer([example.label for example in examples], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [
        ([*prompt, *completion, *end], [False] * len(prompt) + [True] * (len(completion) + 1))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def alternatives(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: DataConfig) -> Alternatives:
    """The completions that each validation example chooses from.

    Raises:
        DataError: Too many different completions to be choices, or a right one that is not among the choices.
    """
    common = _common_choices(splits) if config.choices is None else ()
    tokens: list[Tokens] = []
    example: list[int] = []
    is_right: list[bool] = []
    for index, right in enumerate(splits.validation):
        choices = right.choices or common
        if right.label not in choices:
            raise DataError("data.choices", f"the right completion is not among the choices: {right.label[:80]!r}")
        found = tokenize_completions(tokenizer, [_with_label(right, choice) for choice in choices], config)
        if len(found[choices.index(right.label)][0]) <= config.max_length:  # else it is no validation example either
            tokens += found
            example += [index] * len(choices)
            is_right += [choice == right.label for choice in choices]
    return Alternatives(tokens=_completions(tokens), example=np.array(example), is_right=np.array(is_right))


def _with_label(example: Example, label: str) -> Example:
    turns = (*example.turns[:-1], (ASSISTANT, label)) if example.turns else ()
    return Example(text=example.text, label=label, turns=turns)


def _common_choices(splits: Splits) -> tuple[str, ...]:
    found = {example.label for examples in (splits.train, splits.validation, splits.test) for example in examples}
    if len(found) > MAX_CHOICES:
        message = (
            f"names no column, and the data has {len(found):,} different completions: more than {MAX_CHOICES} choices"
        )
        raise DataError("data.choices", message)
    return tuple(sorted(found))


def _write(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: DataConfig, task: str, folder: Path) -> None:
    for name, examples in (("train", splits.train), ("validation", splits.validation)):
        if task == "classification":
            tokenized = tokenize_texts(tokenizer, examples, splits.labels, max_length=config.max_length)
        else:
            tokens = tokenize_completions(tokenizer, examples, config)
            tokenized = _completions([(ids, mask) for ids, mask in tokens if len(ids) <= config.max_length])
        tokenized.save(folder, name)


def _completions(tokens: Sequence[Tokens]) -> Tokenized:
    return Tokenized(
        input_ids=Ragged.of([ids for ids, _ in tokens], np.int32),
        is_target=Ragged.of([mask for _, mask in tokens], np.bool_),
    )


def _uses_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> bool:
    has_template = bool(tokenizer.chat_template)
    if config.chat_template == "always" and not has_template:
        raise DataError("data.chat_template", "is `always`, and the tokenizer has no chat template")
    return has_template if config.chat_template == "auto" else config.chat_template == "always"


def _chat(example: Example, config: DataConfig) -> tuple[Turn, ...]:
    system = (("system", config.system),) if config.system is not None else ()
    turns = example.turns or (("user", example.text), (ASSISTANT, example.label))
    return (*system, *turns)


def _chat_segments(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[str]:
    """The chat as text, cut where the assistant begins and ends: context, answer, context, answer, ..."""
    if not tokenizer.chat_template:
        raise DataError("data.messages", "holds chats, and the tokenizer has no chat template")
    messages = [{"role": role, "content": content} for role, content in turns]
    segments, text = [], ""
    for end in (end for end, (role, _) in enumerate(turns) if role == ASSISTANT):
        context = _rendered(tokenizer, messages[:end], is_prompt=True)
        answered = _rendered(tokenizer, messages[: end + 1], is_prompt=False)
        if not (context.startswith(text) and answered.startswith(context)):
            message = "the tokenizer's template changes earlier text when a message is added, so that answers can't be told apart"
            raise DataError("data.chat_template", message)
        segments += [context[len(text) :], answered[len(context) :]]
        text = answered
    return segments


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, is_prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))


def _encoded(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[str]]) -> list[Tokens]:
    flat = [segment for segments in chats for segment in segments]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    return [_joined([next(encoded) for _ in segments], tokenizer.eos_token_id) for segments in chats]


def _joined(segments: Sequence[Ids], eos_id: int | None) -> Tokens:
    """Context and answers end to end. What a template puts after an answer's end is context, and cut off after the last."""
    ids: Ids = []
    mask: list[bool] = []
    for place, segment in enumerate(segments):
        num_learned = _learned(segment, eos_id) if place % 2 else 0
        kept = segment[:num_learned] if place == len(segments) - 1 else segment
        ids += kept
        mask += [position < num_learned for position in range(len(kept))]
    return ids, mask


def _learned(answer: Ids, eos_id: int | None) -> int:
    """Tokens up to the end-of-sequence token, or all where the template writes none."""
    return answer.index(eos_id) + 1 if eos_id in answer else len(answer)


def _key(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: DataConfig, task: str) -> str:
    parts: Iterable[object] = (
        FORMAT,
        task,
        splits.fingerprint,
        sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template,
        tokenizer.eos_token_id,
        tokenizer.all_special_tokens,
        config.max_length,
        config.chat_template,
        config.system,
    )
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:32]
