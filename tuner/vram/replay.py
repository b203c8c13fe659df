"""A trial's memory from loading on, through the simulated allocator. Pure."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tuner.gpus import NUM_WORKSPACES
from tuner.prediction import Part
from tuner.vram.allocator import CachingAllocator

if TYPE_CHECKING:
    from tuner.gpus import Gpu
    from tuner.vram.steps import Trace
    from tuner.workload import Workload


def replay(traced: Trace, gpu: Gpu, workload: Workload) -> CachingAllocator:
    """Load, adapt and train; the peaks count from the first step on.

    Args:
        traced: The steps.
        gpu: Has cuBLAS's workspaces.
        workload: Says whether loading's cache is given back.
    """
    allocator = CachingAllocator()
    loading = _Loading(allocator, traced)
    if workload.quantization != "none":
        loading.warm_up()
    loading.load()
    loading.cast()
    loading.adapt()
    if workload.is_cache_emptied:
        allocator.empty_cache()
    for _ in range(NUM_WORKSPACES):
        loading.take(gpu.workspace_bytes)
    allocator.reset_peaks()
    allocator.replay(traced.tracker.events[traced.num_resident :])
    return allocator


class _Loading:
    """As transformers 5 loads a model.

    Args:
        allocator: Gives the memory.
        traced: Knows what lives from the start.
    """

    def __init__(self, allocator: CachingAllocator, traced: Trace) -> None:
        self._allocator = allocator
        self._resident = traced.tracker.events[: traced.num_resident]
        self._part = {number: traced.tracker.storages[number - 1].part for number, _ in self._resident}
        self._as_loaded = {number: traced.loaded_bytes.get(number, size) for number, size in self._resident}
        self._extra = itertools.count(len(traced.tracker.storages) + 1)  # numbers that no storage of the trace has
        self._halves: dict[int, int] = {}

    def take(self, num_bytes: int) -> int:
        """Memory that no storage of the trace stands for."""
        number = next(self._extra)
        self._allocator.malloc(number, num_bytes)
        return number

    def warm_up(self) -> None:
        """One block for all weights, given back at once, so that they come out of few segments."""
        packed = (
            size if self._part[number] is Part.QUANTIZED else self._as_loaded[number] for number, size in self._resident
        )
        self._allocator.free(self.take(sum(packed)))

    def load(self) -> None:
        """Weight by weight; a quantized one from its 16-bit copy."""
        for number, size in self._resident:
            if self._part[number] is Part.QUANTIZED:
                half = self.take(self._as_loaded[number])
                self._allocator.malloc(number, size)
                self._allocator.free(half)
            elif self._part[number] is Part.WEIGHTS and self._as_loaded[number] != size:
                self._halves[number] = self.take(self._as_loaded[number])
            elif self._part[number] is not Part.ADAPTERS:
                self._allocator.malloc(number, size)

    def cast(self) -> None:
        """PEFT's `prepare_model_for_kbit_training`, where it runs."""
        for number, size in self._resident:
            if number in self._halves:
                self._allocator.malloc(number, size)
                self._allocator.free(self._halves[number])

    def adapt(self) -> None:
        """The adapter comes last."""
        for number, size in self._resident:
            if self._part[number] is Part.ADAPTERS:
                self._allocator.malloc(number, size)
