"""Reading and splitting of examples."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.sweeps import DATA
from tuner.config import DataConfig
from tuner.worker.data import DataError, load_splits

ROWS: list[dict[str, object]] = [{"text": f"text number {index}", "label": "ab"[index % 2]} for index in range(20)]


def write_rows(folder: Path, rows: list[dict[str, object]], name: str = "rows.jsonl") -> Path:
    file = folder / name
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, encoding="utf-8")
    return file


def config_for(file: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"path": str(file), "validation": 5, "test": 3, **changes})


def test_splits_have_the_sizes_asked_for_and_share_no_text(tmp_path: Path) -> None:
    splits = load_splits(config_for(write_rows(tmp_path, ROWS)), "classification")

    assert (len(splits.test), len(splits.validation), len(splits.train)) == (3, 5, 12)
    texts = [example.text for split in (splits.test, splits.validation, splits.train) for example in split]
    assert len(set(texts)) == 20


def test_a_split_depends_on_the_texts_and_not_on_their_order(tmp_path: Path) -> None:
    forward = load_splits(config_for(write_rows(tmp_path, ROWS)), "classification")
    backward = load_splits(config_for(write_rows(tmp_path, ROWS[::-1])), "classification")

    assert forward == backward
    assert forward.fingerprint == backward.fingerprint


def test_a_repeated_text_counts_once(tmp_path: Path) -> None:
    splits = load_splits(config_for(write_rows(tmp_path, [*ROWS, *ROWS])), "classification")

    assert len(splits.train) == 12


def test_one_changed_label_changes_the_fingerprint(tmp_path: Path) -> None:
    before = load_splits(config_for(write_rows(tmp_path, ROWS)), "classification")
    after = load_splits(config_for(write_rows(tmp_path, [{**ROWS[0], "label": "b"}, *ROWS[1:]])), "classification")

    assert before.fingerprint != after.fingerprint


def test_the_splits_of_the_quickstart_are_alike() -> None:
    # The file was sampled by the plain hash of its texts: split by that, its first rows hold 22 % of one class.
    splits = load_splits(DataConfig(path=str(DATA), validation=400, test=1000), "classification")

    shares = Counter(example.label for example in splits.validation)
    assert len(splits.labels) == 10
    assert all(0.06 < count / 400 < 0.14 for count in shares.values())


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet", "rows.json"])
def test_each_format_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    import pandas as pd

    frame, file = pd.DataFrame(ROWS), tmp_path / name
    match name.partition(".")[2]:
        case "csv":
            frame.to_csv(file, index=False)
        case "parquet":
            frame.to_parquet(file)
        case "json":
            frame.to_json(file, orient="records")
        case _:
            write_rows(tmp_path, ROWS, name)

    (tmp_path / "plain").mkdir()
    assert load_splits(config_for(file), "classification") == load_splits(
        config_for(write_rows(tmp_path / "plain", ROWS)), "classification"
    )


@pytest.mark.parametrize(
    ("rows", "name", "changes", "key", "message"),
    [
        (ROWS, "rows.jsonl", {"path": "/none.jsonl"}, "data.path", "no such file: /none.jsonl"),
        (ROWS, "rows.txt", {}, "data.path", r"must end in \.jsonl"),
        (ROWS, "rows.jsonl", {"label": "klass"}, "data.label", "no column 'klass'.*it has: text, label"),
        (ROWS, "rows.jsonl", {"text": "body"}, "data.text", "no column 'body'.*it has: text, label"),
        ([], "rows.jsonl", {}, "data.path", "holds no examples"),
        (ROWS, "rows.jsonl", {"validation": 17}, "data.validation", "nothing to train on.*of 20 different texts"),
        ([{**row, "label": "a"} for row in ROWS], "rows.jsonl", {}, "data.label", "one class only, 'a'"),
        ([*ROWS, {"text": None, "label": "a"}], "rows.jsonl", {}, "data.text", "empty in 1 rows, first in row 21"),
        ([*ROWS, {"text": "x", "label": " "}], "rows.jsonl", {}, "data.label", "empty in 1 rows, first in row 21"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_by_name(
    tmp_path: Path, rows: list[dict[str, object]], name: str, changes: dict[str, object], key: str, message: str
) -> None:
    file = write_rows(tmp_path, rows, name)

    with pytest.raises(DataError, match=message) as refused:
        load_splits(config_for(file, **changes), "classification")

    assert refused.value.key == key


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{broken\n")

    with pytest.raises(DataError, match=r"can't read .* as jsonl"):
        load_splits(config_for(file), "classification")


def write_split_folder(folder: Path, **splits: list[dict[str, object]]) -> Path:
    data = folder / "data"
    data.mkdir()
    for name, rows in splits.items():
        write_rows(data, rows, f"{name}.jsonl")
    return data


def test_splits_that_the_data_has_are_kept(tmp_path: Path) -> None:
    data = write_split_folder(tmp_path, train=ROWS[:12], val=ROWS[12:17], test=ROWS[17:])

    splits = load_splits(config_for(data, validation=None, test=None), "classification")

    assert {example.text for example in splits.validation} == {str(row["text"]) for row in ROWS[12:17]}
    assert (len(splits.train), len(splits.test)) == (12, 3)


def test_a_split_of_the_data_is_cut_to_the_size_asked_for(tmp_path: Path) -> None:
    data = write_split_folder(tmp_path, train=ROWS[:12], validation=ROWS[12:17], test=ROWS[17:])

    splits = load_splits(config_for(data, validation=2, test=0), "classification")

    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 2, 0)


def test_a_missing_split_is_made_from_the_training_data(tmp_path: Path) -> None:
    data = write_split_folder(tmp_path, train=ROWS[:15], test=ROWS[15:])

    splits = load_splits(config_for(data, validation=4, test=None), "classification")

    assert (len(splits.train), len(splits.validation), len(splits.test)) == (11, 4, 5)


def test_an_input_that_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    data = write_split_folder(tmp_path, train=ROWS, validation=ROWS[12:17], test=ROWS[15:])

    splits = load_splits(config_for(data, validation=None, test=None), "classification")

    texts = [{example.text for example in split} for split in (splits.train, splits.validation, splits.test)]
    assert [len(split) for split in texts] == [12, 3, 5]
    assert not (texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2])
    assert splits.num_duplicates == 10


def test_a_folder_without_a_train_file_is_refused(tmp_path: Path) -> None:
    data = write_split_folder(tmp_path, test=ROWS)

    with pytest.raises(DataError, match=r"no train\.jsonl.*it has: test\.jsonl"):
        load_splits(config_for(data), "classification")


def test_a_validation_size_is_needed_where_the_data_has_no_such_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing, and .* has no validation split"):
        load_splits(config_for(write_rows(tmp_path, ROWS), validation=None), "classification")


def test_a_hub_data_set_gives_its_splits_and_the_names_of_its_classes(tmp_path: Path) -> None:
    # `datasets` takes a folder of parquet files as it takes a hub id; no hub is needed to run the real loader.
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = [{"text": f"text {index}", "label": index % 2} for index in range(20)]
    hub = tmp_path / "org-data"
    for name, part in (("train", rows[:14]), ("validation", rows[14:])):
        (hub / "data").mkdir(parents=True, exist_ok=True)
        Dataset.from_list(part, features=features).to_parquet(hub / "data" / f"{name}-00000-of-00001.parquet")

    config = DataConfig.model_validate({"name": "org/data", "test": 2}).model_copy(update={"name": str(hub)})
    splits = load_splits(config, "classification")

    assert splits.labels == ("no", "yes")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (12, 6, 2)


def test_a_hub_data_set_that_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(DataError, match="can't load org/nowhere from the hub"):
        load_splits(DataConfig.model_validate({"name": "org/nowhere", "validation": 2}), "classification")


PAIRS: list[dict[str, object]] = [{"prompt": f"say {index}", "completion": str(index)} for index in range(12)]


def test_prompts_with_completions_are_split_by_the_prompt(tmp_path: Path) -> None:
    splits = load_splits(
        config_for(write_rows(tmp_path, [*PAIRS, {"prompt": "say 1", "completion": "x"}])), "causal-lm"
    )

    assert splits.labels == ()
    assert splits.num_duplicates == 1
    assert {(example.text, example.label) for example in splits.train} <= {
        (str(row["prompt"]), str(row["completion"])) for row in PAIRS
    }


def chat(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if place % 2 else "user", "content": content} for place, content in enumerate(contents)
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_chats_end_with_the_assistants_last_word(tmp_path: Path, name: str) -> None:
    import pandas as pd

    chats = [chat(f"hi {index}", "hello", "bye", "see you", "and?") for index in range(10)]
    frame, file = pd.DataFrame({"messages": chats}), tmp_path / name
    match name.partition(".")[2]:
        case "csv":
            pd.DataFrame({"messages": [json.dumps(cell) for cell in chats]}).to_csv(file, index=False)
        case "parquet":
            frame.to_parquet(file)
        case _:
            write_rows(tmp_path, [{"messages": cell} for cell in chats], name)

    splits = load_splits(config_for(file, messages="messages"), "causal-lm")

    example = splits.train[0]
    assert example.label == "see you"
    assert [role for role, _ in example.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([*chat("a"), {"role": "assistant", "content": None}], "must hold lists of messages"),
        (
            [*chat("a"), {"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
            "must hold lists of messages",
        ),
        ([*chat("a"), {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "must hold lists"),
        ("hello", "must hold lists of messages with role and content, got 'hello' in row 1"),
        ([{"role": "user"}], "must hold lists of messages"),
        (chat("hi"), "row 1 has no message of the assistant"),
        ([{"role": "boss", "content": "x"}, *chat("a", "b")], "roles .'boss'.*known: assistant, system, tool, user"),
    ],
)
def test_chats_that_cannot_be_read_are_refused_by_row(tmp_path: Path, cell: object, message: str) -> None:
    file = write_rows(tmp_path, [{"messages": cell}] * 9)

    with pytest.raises(DataError, match=message) as refused:
        load_splits(config_for(file, messages="messages"), "causal-lm")

    assert refused.value.key == "data.messages"


def test_a_chat_and_its_continuation_stand_in_one_split(tmp_path: Path) -> None:
    chats = [chat(f"hi {index}", "a") for index in range(10)] + [
        chat(f"hi {index}", "a", "b", "c") for index in range(10)
    ]

    splits = load_splits(
        config_for(write_rows(tmp_path, [{"messages": cell} for cell in chats]), messages="messages"), "causal-lm"
    )

    assert len(splits.train) + len(splits.validation) + len(splits.test) == 10
    assert splits.num_duplicates == 10


@pytest.mark.parametrize("cell", ["b", '"bc"', 7, ["only"], ["same", "same"], {"a": 1}], ids=str)
def test_choices_that_are_none_are_refused_by_row(tmp_path: Path, cell: object) -> None:
    rows = [{**row, "options": ["0", "1"]} for row in PAIRS[:3]] + [{**PAIRS[3], "options": cell}]

    with pytest.raises(DataError, match=r"must hold lists of at least two completions, got .* in row 4"):
        load_splits(config_for(write_rows(tmp_path, rows), choices="options"), "causal-lm")


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    whole = write_rows(tmp_path, ROWS, "rows.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])

    with pytest.raises(DataError, match=r"can't read .*cut.jsonl.gz as jsonl"):
        load_splits(config_for(tmp_path / "cut.jsonl.gz"), "classification")
