"""GPUs that a sweep may be planned for: how much memory they have, and what of it torch does not get. Pure.

Memory is what `torch.cuda.get_device_properties().total_memory` tells, as users have published it; that of the T4 is measured. A
card's name counts it in another way than its driver. The context (driver, kernels) lies outside of torch's allocator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MIB = 2**20
MEASURED_CONTEXT_MIB = 140.875
"""On a Tesla T4 with torch 2.10 and 2.14. Source: fitcheck-llm 0.3.1, data/measurements."""
ASSUMED_CONTEXT_MIB = 500.0
"""Where nobody has measured it: rather too much, so that a verdict errs on the safe side."""
WORKSPACE_MIB = 8.125
"""cuBLAS's default workspace, in torch's allocator, once for each handle. Source: torch `CUDABlas.cpp`."""
HOPPER_WORKSPACE_MIB = 32.0
"""From that generation on."""
NUM_WORKSPACES = 2
"""cuBLAS has a handle for each stream and cuBLASLt one of its own."""
AMPERE, HOPPER = (8, 0), (9, 0)
"""Compute capability of a generation's first card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A kind of card."""

    name: str
    """As a sweep file names it."""
    memory_mib: float
    """All of its memory."""
    context_mib: float = ASSUMED_CONTEXT_MIB
    """What driver and kernels take before the first tensor."""
    capability: tuple[int, int]
    """Compute capability, which decides on kernels."""

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16 in hardware."""
        return self.capability >= AMPERE

    @property
    def has_flash_attention(self) -> bool:
        """Whether torch's flash attention runs on it."""
        return self.capability >= AMPERE

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return int(self.memory_mib * MIB)

    @property
    def context_bytes(self) -> int:
        """What is not torch's."""
        return int(self.context_mib * MIB)

    @property
    def workspace_bytes(self) -> int:
        """One of cuBLAS's two workspaces."""
        return workspace_bytes(self.capability)


def workspace_bytes(capability: tuple[int, int]) -> int:
    """One of cuBLAS's workspaces on a card of a compute capability."""
    return int((HOPPER_WORKSPACE_MIB if capability >= HOPPER else WORKSPACE_MIB) * MIB)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="T4-16GB", memory_mib=14912, context_mib=MEASURED_CONTEXT_MIB, capability=(7, 5)),
        Gpu(name="V100-16GB", memory_mib=16151, capability=(7, 0)),
        Gpu(name="RTX3090-24GB", memory_mib=24126, capability=(8, 6)),
        Gpu(name="RTX4090-24GB", memory_mib=24082, capability=(8, 9)),
        Gpu(name="RTX5090-32GB", memory_mib=32109, capability=(12, 0)),
        Gpu(name="A10G-24GB", memory_mib=22503, capability=(8, 6)),
        Gpu(name="L4-24GB", memory_mib=22563, capability=(8, 9)),
        Gpu(name="L40S-48GB", memory_mib=45467, capability=(8, 9)),
        Gpu(name="A6000-48GB", memory_mib=48540, capability=(8, 6)),
        Gpu(name="A100-40GB", memory_mib=40326, capability=(8, 0)),
        Gpu(name="A100-80GB", memory_mib=81050, capability=(8, 0)),
        Gpu(name="H100-80GB", memory_mib=81079, capability=(9, 0)),
        Gpu(name="H200-141GB", memory_mib=143156, capability=(9, 0)),
        Gpu(name="B200-192GB", memory_mib=182642, capability=(10, 0)),
    )
}
"""Name -> card."""
UNNAMED_CAPABILITY = (8, 6)
"""A card of which only the memory is known is taken for one of the Ampere generation."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)GiB")


def gpu_named(given: object) -> Gpu:
    """The card that a sweep file names.

    Args:
        given: A name of the table, `24GiB`, or `{"memory_gib": 24}`.

    Raises:
        ValueError: It is none of these.
    """
    size = given.get("memory_gib") if isinstance(given, dict) and list(given) == ["memory_gib"] else None
    if isinstance(given, str) and given in GPUS:
        return GPUS[given]
    if isinstance(given, str) and (match := _SIZE.fullmatch(given)):
        size = float(match[1])
    if isinstance(size, (int, float)) and not isinstance(size, bool) and size > 0:
        name, memory_mib = f"{size:g}GiB", size * 1024
        return Gpu(name=name, memory_mib=memory_mib, capability=UNNAMED_CAPABILITY)
    raise ValueError(f"must be one of {', '.join(GPUS)}, or {{memory_gib: 24}}, got {given!r}")
