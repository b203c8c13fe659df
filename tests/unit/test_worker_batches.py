"""Which examples share a batch, and what the model gets to see of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuner.worker.batches import BatchOrder, collate, collate_packed, evaluation_batches, pack
from tuner.worker.token_files import Ragged, Tokenized

CPU = torch.device("cpu")


def texts(*rows: list[int]) -> Tokenized:
    return Tokenized(input_ids=Ragged.of(rows, np.int32), class_ids=np.arange(len(rows)))


def completions(*rows: tuple[list[int], int]) -> Tokenized:
    """(token ids, how many of them are the prompt) of each example."""
    masks = [[position >= prompt for position in range(len(ids))] for ids, prompt in rows]
    return Tokenized(input_ids=Ragged.of([ids for ids, _ in rows], np.int32), is_target=Ragged.of(masks, np.bool_))


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
    batch = collate(texts([5, 6, 7], [8]), [0, 1], pad_id=9, device=CPU)

    assert batch.input_ids_BT.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask_BT is not None
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.num_tokens == 4


def test_evaluation_takes_each_example_once_and_the_longest_last() -> None:
    batches = evaluation_batches(texts([1, 1, 1], [2], [3, 3]), batch_size=2, pad_id=0, device=CPU)

    assert [batch.labels.tolist() for batch in batches] == [[1, 2], [0]]


def test_only_completions_are_learned_and_padding_never_even_where_it_is_the_end_token() -> None:
    end = 2  # also what pads
    batch = collate(completions(([5, 6, 7, end], 2), ([8, end], 1)), [0, 1], pad_id=end, device=CPU)

    assert batch.labels.tolist() == [7, end, end]
    assert batch.places_N is not None
    assert batch.places_N.tolist() == [1, 2, 4]  # of 2 x 4: each is the place before


def test_packed_examples_have_positions_of_their_own_and_so_has_the_padding() -> None:
    data = completions(([5, 6, 7], 1), ([8, 9], 1), ([3, 4, 5, 6], 2))

    batch = collate_packed(data, [0, 1, 2], capacity=5, pad_id=0, device=CPU)

    assert batch.attention_mask_BT is None
    assert batch.position_ids_BT is not None
    assert batch.input_ids_BT.tolist() == [[3, 4, 5, 6, 0], [5, 6, 7, 8, 9]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [5, 6, 6, 7, 9]
    assert batch.places_N is not None
    assert batch.places_N.tolist() == [1, 2, 5, 6, 8]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 30))
def test_packing_uses_each_example_once_and_overfills_no_row(lengths: list[int], capacity: int) -> None:
    rows = pack(dict(enumerate(lengths)), capacity)

    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity or len(row) == 1 for row in rows)


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=10))
def test_ragged_rows_come_back_as_they_were(rows: list[list[int]]) -> None:
    ragged = Ragged.of(rows, np.int32)

    assert [ragged[index].tolist() for index in range(len(ragged))] == rows
    assert ragged.lengths == [len(row) for row in rows]
