"""Reading, splitting and batching of labelled examples."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sweeps import DATA
from tuner.config import DataConfig
from tuner.worker.data import BatchOrder, DataError, Tokenized, collate, evaluation_batches, load_splits

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
    splits = load_splits(config_for(write_rows(tmp_path, ROWS)))

    assert (len(splits.test), len(splits.validation), len(splits.train)) == (3, 5, 12)
    texts = [example.text for split in (splits.test, splits.validation, splits.train) for example in split]
    assert len(set(texts)) == 20


def test_a_split_depends_on_the_texts_and_not_on_their_order(tmp_path: Path) -> None:
    forward = load_splits(config_for(write_rows(tmp_path, ROWS)))
    backward = load_splits(config_for(write_rows(tmp_path, ROWS[::-1])))

    assert forward == backward
    assert forward.fingerprint == backward.fingerprint


def test_a_repeated_text_counts_once(tmp_path: Path) -> None:
    splits = load_splits(config_for(write_rows(tmp_path, [*ROWS, *ROWS])))

    assert len(splits.train) == 12


def test_one_changed_label_changes_the_fingerprint(tmp_path: Path) -> None:
    before = load_splits(config_for(write_rows(tmp_path, ROWS)))
    after = load_splits(config_for(write_rows(tmp_path, [{**ROWS[0], "label": "b"}, *ROWS[1:]])))

    assert before.fingerprint != after.fingerprint


def test_the_splits_of_the_quickstart_are_alike() -> None:
    # The file was sampled by the plain hash of its texts: split by that, its first rows hold 22 % of one class.
    splits = load_splits(DataConfig(path=str(DATA), validation=400, test=1000))

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
    assert load_splits(config_for(file)) == load_splits(config_for(write_rows(tmp_path / "plain", ROWS)))


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
        load_splits(config_for(file, **changes))

    assert refused.value.key == key


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{broken\n")

    with pytest.raises(DataError, match=r"can't read .* as jsonl"):
        load_splits(config_for(file))


lengths = st.lists(st.integers(1, 50), min_size=1, max_size=80)


@given(lengths, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_uses_no_example_twice_and_leaves_out_less_than_a_batch(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    size = min(batch_size, len(lengths))
    order = BatchOrder(lengths, batch_size=batch_size, seed=seed)

    used = [index for step in range(len(lengths) // size) for index in order.at(step)]

    assert len(used) == len(set(used)) == len(lengths) // size * size


@given(lengths, st.integers(0, 40))
def test_the_batch_of_a_step_does_not_depend_on_the_steps_before(lengths: list[int], step: int) -> None:
    walked = BatchOrder(lengths, batch_size=4, seed=1)
    for before in range(step):
        walked.at(before)

    assert walked.at(step) == BatchOrder(lengths, batch_size=4, seed=1).at(step)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = BatchOrder([5] * 64, batch_size=4, seed=1)
    epochs = [[order.at(step) for step in range(start, start + 16)] for start in (0, 16)]

    assert epochs[0] != epochs[1]
    assert epochs[0] != [BatchOrder([5] * 64, batch_size=4, seed=2).at(step) for step in range(16)]


def test_examples_of_like_length_share_a_batch() -> None:
    lengths = list(range(1, 129))
    order = BatchOrder(lengths, batch_size=8, seed=0)

    padded = sum(order.padded_tokens(step) for step in range(16))

    assert padded < 1.1 * sum(lengths)  # in random order: about 1.8 times


def test_padding_is_masked() -> None:
    data = Tokenized(input_ids=((5, 6, 7), (8,)), labels=(0, 1))

    batch = collate(data, [0, 1], pad_id=9, device=torch.device("cpu"))

    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.num_tokens == 4


def test_evaluation_takes_each_example_once_and_the_longest_last() -> None:
    data = Tokenized(input_ids=((1, 1, 1), (2,), (3, 3)), labels=(0, 1, 2))

    batches = evaluation_batches(data, batch_size=2, pad_id=0, device=torch.device("cpu"))

    assert [batch.labels_B.tolist() for batch in batches] == [[1, 2], [0]]
