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
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from tuner.worker.cache import cached
from tuner.worker.data import ASSISTANT, DataError, Example, Splits, Turn
from tuner.worker.token_files import Alternatives, Ragged, Scored, Tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuner.config import DataConfig, SweepConfig

FORMAT = "4"
"""To be raised when the same examples give other token ids, so that caches are not mixed up."""
HELD_OUT = ("validation", "test")
"""Splits that trials are scored on, in the order of `TokenizedSplits`."""
MAX_CHOICES = 64
"""Most completions that the data may have if they are to be the choices of every example."""

Ids = list[int]
Tokens = tuple[Ids, list[bool]]
"""(token ids, whether each is part of a completion)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedSplits:
    """The data as token ids, and how much of it was too long."""

    train: Tokenized
    """What trials learn from."""
    validation: Scored
    """What decisions are made on."""
    test: Scored
    """What no decision sees; may be empty."""
    num_too_long: int
    """Examples left out."""


def tokenize_splits(tokenizer: PreTrainedTokenizerBase, splits: Splits, config: SweepConfig) -> TokenizedSplits:
    """The data as token ids, made at the first use on a node.

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
    train = Tokenized.load(folder, "train")
    validation, test = (Scored.load(folder, name, has_choices=config.is_choice_asked) for name in HELD_OUT)
    if not len(train) or not len(validation.tokens):
        limit = config.data.max_length
        raise DataError("data.max_length", f"leaves nothing: all examples of a split are longer than {limit} tokens")
    num_given = len(splits.train) + len(splits.validation) + len(splits.test)
    too_long = num_given - len(train) - len(validation.tokens) - len(test.tokens)
    return TokenizedSplits(train=train, validation=validation, test=test, num_too_long=too_long)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], labels: Sequence[str], *, max_length: int
) -> Tokenized:
    """Texts to classify, cut off at `max_length` tokens, special tokens included."""
    class_id = {label: index for index, label in enumerate(labels)}
    texts = [example.text for example in examples]
    encoded = tokenizer(texts, truncation=True, max_length=max_length) if texts else {"input_ids": []}
    return Tokenized(
        input_ids=Ragged.of(encoded["input_ids"], np.int32),
        class_ids=np.array([class_id[example.label] for example in examples], dtype=np.int64),
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


def alternatives(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], splits: Splits, config: DataConfig
) -> Alternatives:
    """The completions that each of some examples chooses from.

    Args:
        tokenizer: The base model's.
        examples: A held-out split.
        splits: The whole data; where it names no choices, those of training and validation data are everyone's.
        config: The sweep's `data` section.

    Raises:
        DataError: Too many different completions to be choices, or a right one that is not among the choices.
    """
    common = _common_choices(splits) if config.choices is None else ()
    asked, example, is_right = [], [], []
    for index, right in enumerate(examples):
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
    }  # these are left out of the split itself too
    kept = [place for place, index in enumerate(example) if index not in too_long]
    return Alternatives(
        tokens=_completions([tokens[place] for place in kept]),
        example=np.array([example[place] for place in kept], dtype=np.int64),
        is_right=np.array([is_right[place] for place in kept], dtype=np.bool_),
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
    held_out = dict(zip(HELD_OUT, (splits.validation, splits.test), strict=True))
    for name, examples in (("train", splits.train), *held_out.items()):
        if config.training.task == "classification":
            tokenized = tokenize_texts(tokenizer, examples, splits.labels, max_length=longest)
        else:
            tokens = tokenize_completions(tokenizer, examples, config.data)
            tokenized = _completions([(ids, mask) for ids, mask in tokens if len(ids) <= longest])
        tokenized.save(folder, name)
    for name, examples in held_out.items() if config.is_choice_asked else ():
        alternatives(tokenizer, examples, splits, config.data).save(folder, f"{name}.choices")


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
    if not examples:  # which transformers' tokenizers do not take
        return []
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
