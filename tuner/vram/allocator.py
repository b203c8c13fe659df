"""CUDA's caching allocator, simulated: how much it reserves for a sequence of allocations. Pure.

Default settings, one stream. Source: `c10/cuda/CUDACachingAllocator.cpp` of torch 2.13 (`get_allocation_size`, `should_split`,
`malloc`, `free_block`, `try_merge_blocks`, `release_cached_blocks`); `expandable_segments` is not simulated.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from tuner.gpus import MIB
from tuner.sizes import ROUNDING, rounded_up

MOST_SMALL = MIB
"""Up to here a request is served from small segments."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
LEAST_OWN = 10 * MIB
"""From here on a request gets a segment of its own size."""
OWN_ROUNDING = 2 * MIB

Event = tuple[int, int]
"""(tensor's number, bytes) of an allocation, (minus the number, 0) of its end, or EMPTY_CACHE."""
EMPTY_CACHE: Event = (0, 0)
"""`torch.cuda.empty_cache()`."""


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment."""

    num_bytes: int
    segment: int
    offset: int
    is_small: bool
    before: Block | None = None
    after: Block | None = None
    is_free: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """Order in which free blocks are looked at: the smallest that is large enough, then the oldest."""
        return self.num_bytes, self.segment, self.offset


@dataclass(slots=True)
class CachingAllocator:
    """Gives blocks and takes them back.

    Args:
        capacity: Bytes that it may reserve; no limit by default.
    """

    capacity: int | None = None
    reserved: int = 0
    """Bytes of all segments."""
    allocated: int = 0
    """Bytes of all blocks in use."""
    most_reserved: int = 0
    most_allocated: int = 0
    has_run_out: bool = False
    """Whether a request could not be served within the capacity, even with nothing cached."""
    _free: dict[bool, list[Block]] = field(default_factory=lambda: {True: [], False: []})
    _used: dict[int, Block] = field(default_factory=dict)
    _num_segments: int = 0

    def replay(self, events: Iterable[Event]) -> None:
        """Serve a sequence of requests."""
        for number, num_bytes in events:
            if number > 0:
                self.malloc(number, num_bytes)
            elif number == 0:
                self.empty_cache()
            else:
                self.free(-number)

    def malloc(self, number: int, num_bytes: int) -> None:
        """Give a block to a tensor."""
        size = max(ROUNDING, rounded_up(num_bytes))
        is_small = size <= MOST_SMALL
        block = self._take(size, is_small=is_small) or self._new_segment(size, is_small=is_small)
        rest = block.num_bytes - size
        if rest >= ROUNDING if is_small else rest > MOST_SMALL:
            self._split(block, size)
        self._used[number] = block
        self.allocated += block.num_bytes
        self.most_allocated = max(self.most_allocated, self.allocated)

    def free(self, number: int) -> None:
        """Take a tensor's block back and join it with free neighbours."""
        block = self._used.pop(number)
        self.allocated -= block.num_bytes
        if (before := block.before) is not None and before.is_free:
            self._remove(before)
            block.offset, block.before = before.offset, before.before
            block.num_bytes += before.num_bytes
            if block.before:
                block.before.after = block
        if (after := block.after) is not None and after.is_free:
            self._remove(after)
            block.after = after.after
            block.num_bytes += after.num_bytes
            if block.after:
                block.after.before = block
        self._insert(block)

    def empty_cache(self) -> None:
        """Give back all segments that nothing uses."""
        for blocks in self._free.values():
            for block in [block for block in blocks if block.before is None and block.after is None]:
                self._remove(block)
                self.reserved -= block.num_bytes

    def reset_peaks(self) -> None:
        """Count the largest from here on."""
        self.most_reserved, self.most_allocated = self.reserved, self.allocated

    def _take(self, size: int, *, is_small: bool) -> Block | None:
        blocks = self._free[is_small]
        place = bisect_left(blocks, (size, -1, -1), key=lambda block: block.key)
        if place == len(blocks):
            return None
        block = blocks.pop(place)
        block.is_free = False
        return block

    def _new_segment(self, size: int, *, is_small: bool) -> Block:
        own = rounded_up(size, OWN_ROUNDING)
        segment = SMALL_SEGMENT if is_small else LARGE_SEGMENT if size < LEAST_OWN else own
        if self.capacity is not None and self.reserved + segment > self.capacity:
            self.empty_cache()  # torch does the same before it gives up
            self.has_run_out |= self.reserved + segment > self.capacity
        self._num_segments += 1
        self.reserved += segment
        self.most_reserved = max(self.most_reserved, self.reserved)
        return Block(num_bytes=segment, segment=self._num_segments, offset=0, is_small=is_small)

    def _split(self, block: Block, size: int) -> None:
        rest = Block(
            num_bytes=block.num_bytes - size,
            segment=block.segment,
            offset=block.offset + size,
            is_small=block.is_small,
            before=block,
            after=block.after,
        )
        if rest.after:
            rest.after.before = rest
        block.num_bytes, block.after = size, rest
        self._insert(rest)

    def _insert(self, block: Block) -> None:
        block.is_free = True
        insort(self._free[block.is_small], block, key=lambda one: one.key)

    def _remove(self, block: Block) -> None:
        blocks = self._free[block.is_small]
        blocks.pop(bisect_left(blocks, block.key, key=lambda one: one.key))
        block.is_free = False
