"""Peak memory of a trial, measured: on a GPU by CUDA's own counters, on a CPU by the allocator's events.

Runs on the worker. On a CPU torch keeps no counters, so the peak is put together from what is resident before a step
(each storage of weights, quantization state, adapters and optimizer once) and the running sum of what the allocator gave
and took back during it (`torch.profiler` with `profile_memory`, kernel-internal buffers included). Dequantized copies, which
only a CPU keeps, are neither counted nor used then. Watching a step costs about a tenth of its time, so only the largest batches
are watched.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from tuner.gpus import NUM_WORKSPACES, workspace_bytes
from tuner.trial import MemoryKind
from tuner.worker.dense import without_copies

if TYPE_CHECKING:
    from torch import nn


class PeakMeter(Protocol):
    """Knows the peak of the trial that runs."""

    kind: MemoryKind

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Around a step that may set the peak."""

    def peak_bytes(self) -> int:
        """Largest so far."""

    def reserved_bytes(self) -> int | None:
        """Largest reserved so far; None where the allocator reserves nothing."""

    def at_least(self, peak_bytes: int, reserved_bytes: int | None) -> None:
        """Count in what an earlier process measured of the same trial."""


class CudaPeak:
    """CUDA's counters, reset when the trial begins."""

    kind = MemoryKind.CUDA_ALLOCATED

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._earlier = (0, 0)
        empty_cache(device)
        torch.cuda.reset_peak_memory_stats(device)

    def watch(self) -> contextlib.AbstractContextManager[None]:
        """Nothing to do: CUDA counts always."""
        return contextlib.nullcontext()

    def peak_bytes(self) -> int:
        """`torch.cuda.max_memory_allocated`."""
        return max(self._earlier[0], torch.cuda.max_memory_allocated(self._device))

    def reserved_bytes(self) -> int | None:
        """`torch.cuda.max_memory_reserved`."""
        return max(self._earlier[1], torch.cuda.max_memory_reserved(self._device))

    def at_least(self, peak_bytes: int, reserved_bytes: int | None) -> None:
        """Count in what an earlier process measured of the same trial."""
        self._earlier = (peak_bytes, reserved_bytes or 0)


class StepPeak:
    """What is resident of a trial plus the growth during its watched steps: on a CPU, and on a card with others beside it.

    Beside others that is what it would have alone, with cuBLAS's workspaces, which stay in torch's allocator from the first
    product on; what the allocator would have reserved for it is not known.

    Args:
        model: With its adapter; weights that others use too count as its own.
        optimizer: Its state is resident from the second step on.
        device: Where it stands.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.kind = MemoryKind.CUDA_ALLOCATED if device.type == "cuda" else MemoryKind.CPU_ALLOCATED
        self._model = model
        self._optimizer = optimizer
        self._device = device
        self._beside_bytes = _workspaces_bytes(device)
        self._peak_bytes = 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measure what happens inside."""
        resident = resident_bytes(self._model, self._optimizer)
        with _cuda_growth(self._device) if self._device.type == "cuda" else _cpu_growth() as growth:
            yield
        self._peak_bytes = max(self._peak_bytes, self._beside_bytes + resident + growth())

    def peak_bytes(self) -> int:
        """Largest so far."""
        return self._peak_bytes

    def reserved_bytes(self) -> int | None:
        """A CPU allocator reserves nothing that torch knows of; on a card it can't be told apart from what others reserve."""
        return None

    def at_least(self, peak_bytes: int, reserved_bytes: int | None) -> None:
        """Count in what an earlier process measured of the same trial."""
        del reserved_bytes
        self._peak_bytes = max(self._peak_bytes, peak_bytes)


@contextlib.contextmanager
def _cpu_growth() -> Iterator[Callable[[], int]]:
    """Tells afterwards how many bytes more than before lived inside at once."""
    with without_copies(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        yield lambda: _peak_of(recorded)


@contextlib.contextmanager
def _cuda_growth(device: torch.device) -> Iterator[Callable[[], int]]:
    """The same on a card."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) - before


def _workspaces_bytes(device: torch.device) -> int:
    """What cuBLAS keeps in torch's allocator; nothing on a CPU."""
    if device.type != "cuda":
        return 0
    found = torch.cuda.get_device_properties(device)
    return NUM_WORKSPACES * workspace_bytes((found.major, found.minor))


def empty_cache(device: torch.device) -> None:
    """Give back what the device's allocator keeps and nothing uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def resident_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all storages that live from step to step, each counted once."""
    storages = (tensor.untyped_storage() for tensor in _resident(model, optimizer))
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(sizes.values())


def _resident(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        yield tensor.data
        yield from tensors_of(getattr(tensor, "quant_state", None))
        if tensor.grad is not None:
            yield tensor.grad
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def tensors_of(quant_state: object) -> Iterable[torch.Tensor]:
    """Tensors of a bitsandbytes QuantState, and of the second one that double quantization nests in it."""
    for value in vars(quant_state).values() if quant_state is not None else ():
        if isinstance(value, torch.Tensor):
            yield value
        elif hasattr(value, "absmax"):
            yield from tensors_of(value)


def _peak_of(recorded: profile) -> int:
    # torch offers no public reader of the allocator's events (torch 2.13); this is what its own exporters read.
    assert recorded.profiler is not None  # noqa: S101 -- set by the context manager's exit
    events: list[Any] = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    running = itertools.accumulate(nbytes for _, nbytes in changes)
    return max(running, default=0)
