"""Sizes by which torch, CUDA and bitsandbytes take memory: what the trace and the closed form must agree on. Pure.

Read from the sources of torch 2.13 and bitsandbytes 0.50.
"""

from __future__ import annotations

ROUNDING = 512
"""Every block of CUDA's caching allocator is a multiple of this many bytes. Source: `CUDACachingAllocator.cpp`."""
QUANTIZED_BLOCK = 64
"""Numbers that share a scale; bitsandbytes' default for NF4 and FP4 on CUDA."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own."""
EIGHT_BIT_NUMBERS = 4096
"""Smaller parameters keep their state of AdamW in float32. Source: `min_8bit_size`."""
EIGHT_BIT_BLOCK = 256
"""Numbers of a state in 8 bits that share a scale."""
PAGED_NUMBERS = 100_000
"""bitsandbytes pages the state of a parameter out only from this size on. Source: `Optimizer8bit.get_state_buffer`."""
FUSED_TOKENS = 32
"""Up to so many tokens bitsandbytes multiplies by 4-bit weights without a 16-bit copy, on every card; on some up to 512."""
MOST_HEAD_WIDTH = 256
"""Of flash attention. Source: `sdp_utils.cpp`."""


def rounded_up(number: int, multiple: int = ROUNDING) -> int:
    """The next multiple; by default as the allocator rounds."""
    return -(-number // multiple) * multiple
