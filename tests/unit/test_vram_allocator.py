"""CUDA's caching allocator, simulated."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuner.gpus import MIB
from tuner.vram.allocator import EMPTY_CACHE, CachingAllocator, Event

SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 3 * MIB), st.integers(1, 64 * MIB))


@st.composite
def sequences(draw: st.DrawFn) -> list[Event]:
    """Allocations and frees in some order, each tensor freed at most once."""
    events: list[Event] = []
    living: list[int] = []
    for number, size in enumerate(draw(st.lists(SIZES, max_size=60)), start=1):
        events.append((number, size))
        living.append(number)
        while living and (place := draw(st.integers(0, 2 * len(living)))) < len(living):
            events.append((-living.pop(place), 0))
    return events


def after(events: list[Event], *, capacity: int | None = None) -> CachingAllocator:
    allocator = CachingAllocator(capacity=capacity)
    allocator.replay(events)
    return allocator


@given(sequences())
def test_what_is_reserved_holds_what_is_allocated(events: list[Event]) -> None:
    allocator = after(events)

    assert allocator.reserved >= allocator.allocated
    assert allocator.most_reserved >= allocator.most_allocated >= allocator.allocated


@given(sequences())
def test_blocks_are_at_least_as_large_as_their_tensors_and_at_most_a_mebibyte_larger(events: list[Event]) -> None:
    living = {abs(number): size for number, size in events if number > 0}
    for number, _ in events:
        living.pop(-number, None)

    assert sum(living.values()) <= after(events).allocated <= sum(living.values()) + (MIB + 512) * len(living)


@given(sequences())
def test_when_all_is_freed_the_cache_can_be_emptied_to_nothing(events: list[Event]) -> None:
    freed = {-number for number, _ in events if number < 0}
    rest = [(-number, 0) for number, _ in events if number > 0 and number not in freed]

    assert after([*events, *rest, EMPTY_CACHE]).reserved == 0


@given(sequences())
def test_the_same_again_needs_no_more_memory(events: list[Event]) -> None:
    freed = {-number for number, _ in events if number < 0}
    whole = events + [(-number, 0) for number, _ in events if number > 0 and number not in freed]

    assert after(whole + whole).most_reserved == after(whole).most_reserved


def test_small_requests_share_a_segment_of_two_mebibytes() -> None:
    assert after([(1, 100), (2, 100)]).reserved == 2 * MIB


def test_middling_requests_share_a_segment_of_twenty_mebibytes() -> None:
    assert after([(1, 5 * MIB), (2, 5 * MIB)]).reserved == 20 * MIB


def test_large_requests_get_a_segment_of_their_own_in_steps_of_two_mebibytes() -> None:
    assert after([(1, 31 * MIB)]).reserved == 32 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken() -> None:
    events = [(1, 64 * MIB), (2, 32 * MIB), (-1, 0), (-2, 0), (3, 30 * MIB), (4, 64 * MIB)]

    assert after(events).reserved == 96 * MIB


def test_a_block_that_is_hardly_larger_is_not_split() -> None:
    assert after([(1, 32 * MIB), (-1, 0), (2, 32 * MIB - MIB)]).allocated == 32 * MIB


def test_what_is_cached_is_given_back_before_memory_runs_out() -> None:
    events = [(1, 64 * MIB), (-1, 0), (2, 80 * MIB)]

    assert not after(events, capacity=100 * MIB).has_run_out
    assert after(events, capacity=79 * MIB).has_run_out
