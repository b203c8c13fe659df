"""Examples as token ids: what the model is shown, what it learns, and what is kept for the next worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.builders import make_config
from tests.models import TEMPLATE, tiny_tokenizer
from tuner.config import DataConfig, ObjectivesConfig, SweepConfig
from tuner.worker import tokens
from tuner.worker.data import DataError, Example, Splits
from tuner.worker.token_files import Ragged, Scored, Tokenized
from tuner.worker.tokens import alternatives, tokenize_completions, tokenize_splits

EXAMPLE = Example(text="ab", label="cd")


def config_for(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"path": "/rows.jsonl", "validation": 1, "max_length": 32, **changes})


def sweep_for(**changes: object) -> SweepConfig:
    """A causal-lm sweep on that data."""
    return make_config(data=config_for(**changes).model_dump(), training={"task": "causal-lm", "max_steps": 120})


def shown(example: Example, template: str | None = "default", **changes: object) -> tuple[str, str]:
    """(all that the model sees, what it learns of it)."""
    tokenizer = tiny_tokenizer() if template == "default" else tiny_tokenizer(template)
    ((ids, mask),) = tokenize_completions(tokenizer, [example], config_for(**changes))
    learned = [token for token, is_learned in zip(ids, mask, strict=True) if is_learned]
    return "".join(tokenizer.convert_ids_to_tokens(ids)), "".join(tokenizer.convert_ids_to_tokens(learned))


def test_a_prompt_goes_into_the_chat_template_and_its_completion_is_learned_with_its_end() -> None:
    # what the template writes after the last end is no part of the answer, and never generated
    assert shown(EXAMPLE) == ("<user>ab</s>\n<assistant>cd</s>", "cd</s>")


def test_without_a_template_prompt_and_completion_are_joined_as_they_are() -> None:
    assert shown(EXAMPLE, None) == ("abcd</s>", "cd</s>")
    assert shown(EXAMPLE, chat_template="never", separator=": ") == ("ab: cd</s>", "cd</s>")


def test_a_system_message_comes_first() -> None:
    assert shown(EXAMPLE, system="x")[0] == "<system>x</s>\n<user>ab</s>\n<assistant>cd</s>"


def test_everything_that_the_assistant_says_is_learned() -> None:
    turns = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))

    seen, learned = shown(Example(text="", label="d", turns=turns))

    assert seen == "<user>a</s>\n<assistant>b</s>\n<user>c</s>\n<assistant>d</s>"
    assert learned == "b</s>d</s>"


def test_a_template_that_rewrites_earlier_messages_is_refused() -> None:
    only_last = "{% for message in messages[-1:] %}<{{ message.role }}>{{ message.content }}</s>{% endfor %}"

    with pytest.raises(DataError, match="changes earlier text") as refused:
        shown(EXAMPLE, only_last)

    assert refused.value.key == "data.chat_template"


def test_a_template_that_is_asked_for_must_be_there() -> None:
    with pytest.raises(DataError, match="is `always`, and the tokenizer has no chat template"):
        shown(EXAMPLE, None, chat_template="always")


def test_a_system_message_needs_a_template() -> None:
    with pytest.raises(DataError, match="needs a chat template, and none is used") as refused:
        shown(EXAMPLE, None, system="x")

    assert refused.value.key == "data.system"


def test_a_chat_keeps_its_own_system_message() -> None:
    turns = (("system", "own"), ("user", "a"), ("assistant", "b"))

    assert shown(Example(text="", label="b", turns=turns), system="x")[0].startswith("<system>own</s>\n<user>a")


def test_a_turn_may_end_otherwise_than_the_text() -> None:
    template = TEMPLATE.replace("</s>", "<unk>")  # as Gemma's and Qwen's base do

    assert shown(EXAMPLE, template) == ("<user>ab<unk>\n<assistant>cd<unk>", "cd<unk>")


def test_a_template_that_refuses_a_role_is_told_with_the_chat() -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE

    with pytest.raises(DataError, match="refuses a chat of system, user: no system role"):
        shown(EXAMPLE, template, system="x")


def test_an_end_token_that_the_tokenizer_adds_does_not_come_between_prompt_and_completion() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )

    ((ids, mask),) = tokenize_completions(tokenizer, [EXAMPLE], config_for())

    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "<s>abcd</s>"
    assert mask == [False] * 3 + [True] * 3


def test_a_tokenizer_that_puts_a_mark_before_each_text_puts_none_before_the_completion() -> None:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(".")  # as SentencePiece does: Llama 2, Mistral 0.1

    ((ids, mask),) = tokenize_completions(tokenizer, [EXAMPLE], config_for())

    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == ".abcd</s>"
    assert mask == [False] * 3 + [True] * 3


def test_chats_need_a_template() -> None:
    with pytest.raises(DataError, match="holds chats, and the tokenizer has no chat template"):
        shown(Example(text="", label="b", turns=(("user", "a"), ("assistant", "b"))), None)


def splits_of(*completions: str) -> Splits:
    examples = tuple(Example(text=f"p{index}", label=label) for index, label in enumerate(completions))
    return Splits(train=examples[:-1], validation=examples[-1:], test=())


def test_examples_that_are_too_long_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    splits = splits_of("a", "b" * 40, "c")

    found = tokenize_splits(tiny_tokenizer(), splits, sweep_for())

    assert (len(found.train), len(found.validation.tokens), found.num_too_long) == (1, 1, 1)


def test_data_of_which_nothing_is_short_enough_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))

    with pytest.raises(DataError, match="longer than 4 tokens"):
        tokenize_splits(tiny_tokenizer(), splits_of("abcdef", "b" * 40), sweep_for(max_length=4))


def test_a_node_tokenizes_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    first = tokenize_splits(tiny_tokenizer(), splits_of("a", "b"), sweep_for())
    monkeypatch.setattr(tokens, "tokenize_completions", lambda *_: pytest.fail("tokenized again"))

    second = tokenize_splits(tiny_tokenizer(), splits_of("a", "b"), sweep_for())

    assert second.train.input_ids[0].tolist() == first.train.input_ids[0].tolist()


@pytest.mark.parametrize("changes", [{"system": "x"}, {"chat_template": "never"}, {"max_length": 31}])
def test_what_changes_the_tokens_is_not_read_from_an_older_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, object]
) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    tokenize_splits(tiny_tokenizer(), splits_of("a", "b"), sweep_for())

    tokenize_splits(tiny_tokenizer(), splits_of("a", "b"), sweep_for(**changes))

    assert len([folder for folder in (tmp_path / "tokens").iterdir() if folder.is_dir()]) == 2


def test_choices_are_all_completions_of_the_data_unless_it_names_them() -> None:
    splits = splits_of("a", "b", "a", "c")

    found = alternatives(tiny_tokenizer(), splits.validation, splits, config_for())

    assert len(found.tokens) == 3
    assert found.is_right.tolist() == [False, False, True]
    assert found.example.tolist() == [0, 0, 0]


def test_choices_that_the_data_names_are_taken() -> None:
    right = Example(text="p", label="x", choices=("x", "y"))
    splits = Splits(train=(EXAMPLE,), validation=(right,), test=())

    assert alternatives(
        tiny_tokenizer(), splits.validation, splits, config_for(choices="options")
    ).is_right.tolist() == [True, False]


def test_a_right_completion_that_is_no_choice_is_refused() -> None:
    splits = Splits(train=(EXAMPLE,), validation=(Example(text="p", label="z", choices=("x", "y")),), test=())

    with pytest.raises(DataError, match="the right completion is not among the choices: 'z'"):
        alternatives(tiny_tokenizer(), splits.validation, splits, config_for(choices="options"))


def test_too_many_completions_are_no_choices() -> None:
    splits = splits_of(*(f"{index}" for index in range(100)))

    with pytest.raises(DataError, match="100 different completions: more than 64 choices"):
        alternatives(tiny_tokenizer(), splits.validation, splits, config_for())


def test_a_node_tokenizes_choices_once_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    sweep = sweep_for().model_copy(update={"objectives": ObjectivesConfig(accuracy="choice_accuracy")})
    first = tokenize_splits(tiny_tokenizer(), splits_of("a", "b", "b"), sweep).validation.choices
    monkeypatch.setattr(tokens, "tokenize_completions", lambda *_: pytest.fail("tokenized again"))

    second = tokenize_splits(tiny_tokenizer(), splits_of("a", "b", "b"), sweep).validation.choices

    assert first is not None
    assert second is not None
    assert second.is_right.tolist() == first.is_right.tolist() == [False, True]
    assert second.tokens.input_ids[1].tolist() == first.tokens.input_ids[1].tolist()


def test_choices_are_not_made_where_nothing_asks_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))

    assert tokenize_splits(tiny_tokenizer(), splits_of("a", "b"), sweep_for()).validation.choices is None


def test_the_test_split_is_tokenized_too_and_may_be_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    splits = splits_of("a", "b")
    held_out = Splits(train=splits.train, validation=splits.validation, test=(Example(text="q", label="c"),))

    assert len(tokenize_splits(tiny_tokenizer(), splits, sweep_for()).test.tokens) == 0
    assert len(tokenize_splits(tiny_tokenizer(), held_out, sweep_for()).test.tokens) == 1


def test_test_examples_choose_from_what_training_and_validation_data_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path))
    sweep = sweep_for().model_copy(update={"objectives": ObjectivesConfig(accuracy="choice_accuracy")})
    splits = splits_of("a", "b")
    known, unknown = (
        Splits(train=splits.train, validation=splits.validation, test=(Example(text="q", label=label),))
        for label in "az"
    )

    found = tokenize_splits(tiny_tokenizer(), known, sweep).test.choices

    assert found is not None
    assert found.is_right.tolist() == [True, False]
    with pytest.raises(DataError, match="the right completion is not among the choices: 'z'"):
        tokenize_splits(tiny_tokenizer(), unknown, sweep)


def test_some_examples_come_with_their_completions_and_choices(tmp_path: Path) -> None:
    rows = tuple(
        Example(text=text, label=label) for text, label in (("a", "x"), ("ab", "yy"), ("abc", "x"), ("b", "yy"))
    )
    choices = alternatives(
        tiny_tokenizer(), rows, Splits(train=rows, validation=rows, test=(), labels=()), config_for()
    )
    (ids, mask) = zip(*tokenize_completions(tiny_tokenizer(), rows, config_for()), strict=True)
    whole = Scored(
        tokens=Tokenized(input_ids=Ragged.of(ids, np.int32), is_target=Ragged.of(mask, np.bool_)), choices=choices
    )

    some = whole.some(np.array([1, 3]))

    assert some.choices is not None
    assert [row.tolist() for row in (some.tokens.input_ids[0], some.tokens.input_ids[1])] == [ids[1], ids[3]]
    assert some.tokens.is_target is not None
    assert some.tokens.is_target[1].tolist() == mask[3]
    assert some.choices.example.tolist() == [0, 0, 1, 1]
    assert some.choices.is_right.tolist() == choices.is_right[[2, 3, 6, 7]].tolist()
    assert some.choices.tokens.input_ids[0].tolist() == choices.tokens.input_ids[2].tolist()
