"""Examples as token ids: texts to classify, or prompts with the completions that are learned. Runs on the worker.

Token ids of a sweep are made once for each node and read from there by all its workers (`tuner.worker.cache`).

TRL's data handling was looked at (1.16) and left: its packing keeps examples apart only under attention kernels that take
sequence boundaries (FlashAttention, a GPU), and its tokenization lives in SFTTrainer, whose loop a search can't use. What is
taken from it is the rule that a prompt's own token ids must begin those of prompt and completion, so that training sees a
prompt as serving does.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import numpy.typing as npt

from tuner.worker.cache import cached
from tuner.worker.data import ASSISTANT, DataError, Example, Splits, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuner.config import DataConfig, SweepConfig

FORMAT = "3"
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
    """The completions that each validation example chooses from, each as an example of its own."""

    tokens: Tokenized
    """All of them."""
    example: npt.NDArray[np.int64]
    """Which validation example each belongs to."""
    is_right: npt.NDArray[np.bool_]
    """Whether it is the right one."""

    def save(self, folder: Path) -> None:
        """Write it as files that other processes map."""
        self.tokens.save(folder, "choices")
        np.save(folder / "choices.example.npy", self.example)
        np.save(folder / "choices.is_right.npy", self.is_right)

    @classmethod
    def load(cls, folder: Path) -> Alternatives:
        """Read what `save` wrote."""
        example, is_right = (np.load(folder / f"choices.{name}.npy") for name in ("example", "is_right"))
        return cls(tokens=Tokenized.load(folder, "choices"), example=example, is_right=is_right)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedSplits:
    """What trials see of the data, and how much of it was too long."""

    train: Tokenized
    validation: Tokenized
    choices: Alternatives | None
    """None where choice accuracy is not measured."""
    num_too_long: int
    """Examples left out, of training and validation data."""

    @property
    def scored(self) -> tuple[Tokenized, ...]:
        """What an evaluation reads."""
        return (self.validation,) if self.choices is None else (self.validation, self.choices.tokens)


def tokenize_splits(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: SweepConfig) -> TokenizedSplits:
    """Training and validation data as token ids, made at the first use on a node.

    Args:
        tokenizer: The base model's.
        splits: The examples.
        config: The sweep.

    Raises:
        DataError: A chat template is asked for and missing or not usable, all examples are too long, or there are no choices
            to measure the accuracy on.
    """
    key = _key(tokenizer, splits, config)
    folder = cached("tokens", key, lambda folder: _write(tokenizer, splits, config, folder))
    train, validation = (Tokenized.load(folder, name) for name in ("train", "validation"))
    too_long = len(splits.train) + len(splits.validation) - len(train) - len(validation)
    if not len(train) or not len(validation):
        limit = config.data.max_length
        raise DataError("data.max_length", f"leaves nothing: all examples of a split are longer than {limit} tokens")
    choices = Alternatives.load(folder) if config.is_choice_asked else None
    return TokenizedSplits(train=train, validation=validation, choices=choices, num_too_long=too_long)


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
        stages = [_chat_stages(tokenizer, _chat(example, config)) for example in examples]
        return _encoded(tokenizer, stages, is_chat=True)
    if config.system is not None:
        raise DataError("data.system", "needs a chat template, and none is used: put the text into the prompts instead")
    prompts = [example.text + config.separator for example in examples]
    stages = [[prompt, prompt + example.label] for prompt, example in zip(prompts, examples, strict=True)]
    end = tokenizer.eos_token_id
    return [([*ids, end], [*mask, True]) for ids, mask in _encoded(tokenizer, stages, is_chat=False)]


def alternatives(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: DataConfig) -> Alternatives:
    """The completions that each validation example chooses from.

    Raises:
        DataError: Too many different completions to be choices, or a right one that is not among the choices.
    """
    common = _common_choices(splits) if config.choices is None else ()
    asked, example, is_right = [], [], []
    for index, right in enumerate(splits.validation):
        choices = right.choices or common
        if right.label not in choices:
            raise DataError("data.choices", f"the right completion is not among the choices: {right.label[:80]!r}")
        asked += [_with_label(right, choice) for choice in choices]
        example += [index] * len(choices)
        is_right += [choice == right.label for choice in choices]
    tokens = tokenize_completions(tokenizer, asked, config)
    too_long = {
        index
        for index, is_answer, (ids, _) in zip(example, is_right, tokens, strict=True)
        if is_answer and len(ids) > config.max_length
    }  # these are no validation examples either
    kept = [place for place, index in enumerate(example) if index not in too_long]
    return Alternatives(
        tokens=_completions([tokens[place] for place in kept]),
        example=np.array([example[place] for place in kept]),
        is_right=np.array([is_right[place] for place in kept]),
    )


def _with_label(example: Example, label: str) -> Example:
    turns = (*example.turns[:-1], (ASSISTANT, label)) if example.turns else ()
    return Example(text=example.text, label=label, turns=turns)


def _common_choices(splits: Splits) -> tuple[str, ...]:
    found = {example.label for examples in (splits.train, splits.validation) for example in examples}
    if len(found) > MAX_CHOICES:
        message = (
            f"names no column, and the data has {len(found):,} different completions: more than {MAX_CHOICES} choices"
        )
        raise DataError("data.choices", message)
    return tuple(sorted(found))


def _write(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: SweepConfig, folder: Path) -> None:
    longest = config.data.max_length
    for name, examples in (("train", splits.train), ("validation", splits.validation)):
        if config.training.task == "classification":
            tokenized = tokenize_texts(tokenizer, examples, splits.labels, max_length=longest)
        else:
            tokens = tokenize_completions(tokenizer, examples, config.data)
            tokenized = _completions([(ids, mask) for ids, mask in tokens if len(ids) <= longest])
        tokenized.save(folder, name)
    if config.is_choice_asked:
        alternatives(tokenizer, splits, config.data).save(folder)


def _completions(tokens: Sequence[Tokens]) -> Tokenized:
    return Tokenized(
        input_ids=Ragged.of([ids for ids, _ in tokens], np.int32),
        is_target=Ragged.of([mask for _, mask in tokens], np.bool_),
    )


def _uses_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> bool:
    has_template = bool(tokenizer.chat_template)
    if config.chat_template == "always" and not has_template:
        raise DataError("data.chat_template", "is `always`, and the tokenizer has no chat template")
    return has_template and config.chat_template != "never"


def _chat(example: Example, config: DataConfig) -> tuple[Turn, ...]:
    turns = example.turns or (("user", example.text), (ASSISTANT, example.label))
    has_own = turns[0][0] == "system"
    system = (("system", config.system),) if config.system is not None and not has_own else ()
    return (*system, *turns)


def _chat_stages(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[str]:
    """The chat as text up to each place where the assistant begins or ends: context, with answer, longer context, ..."""
    if not tokenizer.chat_template:
        raise DataError("data.messages", "holds chats, and the tokenizer has no chat template")
    messages = [{"role": role, "content": content} for role, content in turns]
    stages: list[str] = []
    for end in (end for end, (role, _) in enumerate(turns) if role == ASSISTANT):
        stages.append(_rendered(tokenizer, messages[:end], is_prompt=True))
        stages.append(_rendered(tokenizer, messages[: end + 1], is_prompt=False))
    if not all(later.startswith(earlier) for earlier, later in itertools.pairwise(stages)):
        message = (
            "the tokenizer's template changes earlier text when a message is added, so that answers can't be told apart"
        )
        raise DataError("data.chat_template", message)
    return stages


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, is_prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt))
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError("data.chat_template", f"the tokenizer's template refuses a chat of {roles}: {error}") from error


def _encoded(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Sequence[str]], *, is_chat: bool) -> list[Tokens]:
    flat = [stage for stages in examples for stage in stages]
    pieces = [
        stage[len(before) :] for stages in examples for before, stage in itertools.pairwise(("", *stages))
    ]  # in case that a stage is not a beginning of the next as token ids
    whole = iter(tokenizer(flat, add_special_tokens=not is_chat)["input_ids"])
    apart = iter(tokenizer(pieces, add_special_tokens=False)["input_ids"])
    stops = _stops(tokenizer)
    return [
        _joined([_open(next(whole), tokenizer) for _ in stages], [next(apart) for _ in stages], stops)
        for stages in examples
    ]


def _open(ids: Ids, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """Without the end-of-sequence token that some tokenizers put after every text."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1 else ids


def _joined(whole: Sequence[Ids], apart: Sequence[Ids], stops: tuple[int | None, frozenset[int]]) -> Tokens:
    """Token ids with the answers marked.

    Each stage continues the ids of the one before, as serving would: it is given the context and writes the answer. Where the
    text's ids as a whole don't do so, the new piece is tokenized by itself.
    """
    ids: Ids = list(whole[0])
    mask = [False] * len(ids)
    for place, (longer, piece) in enumerate(zip(whole[1:], apart[1:], strict=True), start=1):
        new = longer[len(ids) :] if longer[: len(ids)] == ids else piece
        num_learned = _learned(new, *stops) if place % 2 else 0
        if place == len(whole) - 1:
            new = new[:num_learned]
        ids = [*ids, *new]
        mask += [position < num_learned for position in range(len(new))]
    return ids, mask


def _stops(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, frozenset[int]]:
    """(the end-of-sequence token, every special token)."""
    return tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)


def _learned(answer: Ids, eos_id: int | None, special: frozenset[int]) -> int:
    """Tokens up to an answer's end: its end-of-sequence token, or else its last special one (Gemma ends turns otherwise)."""
    if eos_id in answer:
        return answer.index(eos_id) + 1
    ends = [position for position, token in enumerate(answer) if token in special]
    return ends[-1] + 1 if ends else len(answer)


def _key(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: SweepConfig) -> str:
    data = config.data
    parts: Iterable[object] = (
        FORMAT,
        config.training.task,
        config.is_choice_asked,
        splits.fingerprint,
        _definition(tokenizer),
        tokenizer.chat_template,
        _today() if "strftime_now" in str(tokenizer.chat_template) else "",  # a template that writes the date
        tokenizer.eos_token_id,
        tokenizer.all_special_tokens,
        data.max_length,
        data.chat_template,
        data.system,
        data.separator,
    )
    return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:32]


def _definition(tokenizer: PreTrainedTokenizerBase) -> object:
    """All that decides which ids a text gets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())


def _today() -> str:
    return dt.datetime.now(tz=dt.UTC).date().isoformat()
