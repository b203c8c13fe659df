"""A trial's peak memory as it was predicted, and what follows from it. Pure; driver and predictor share it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

RESERVED_MARGIN = 1.05
"""What torch reserves is partly luck: the same step measured twice differs by up to 11 %."""


class Phase(enum.StrEnum):
    """What a trial does when its memory peaks."""

    FORWARD = "forward pass"
    BACKWARD = "backward pass"
    OPTIMIZER = "optimizer step"
    EVALUATION = "evaluation"
    PROMPT = "reading of prompts"
    """Before text is generated from them."""
    GENERATION = "generation"
    """Of the last token, when the cache of keys and values is longest."""


class Part(enum.StrEnum):
    """What memory is for."""

    WEIGHTS = "weights"
    QUANTIZED = "quantized weights"
    QUANTIZATION = "quantization state"
    ADAPTERS = "trained weights"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer state"
    ACTIVATIONS = "activations"
    LOGITS = "logits"
    SCRATCH = "scratch"
    """What kernels and the backward pass need in passing, dequantized weights among it."""
    FRAGMENTATION = "reserved, unused"
    """Holes in what torch has reserved."""
    CONTEXT = "CUDA context"


SHARED = {Part.WEIGHTS, Part.QUANTIZED, Part.QUANTIZATION, Part.CONTEXT}
"""What trials in one process have together."""


class Method(enum.StrEnum):
    """How a prediction was made."""

    TRACE = "traced"
    EXTRAPOLATED = "traced with few layers, extrapolated"
    FORMULA = "closed form"


class Verdict(enum.StrEnum):
    """Whether a trial fits on a card."""

    FITS = "fits"
    UNCERTAIN = "uncertain"
    DOES_NOT_FIT = "does not fit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The peak of one trial on one GPU."""

    allocated_bytes: int
    """As `torch.cuda.max_memory_allocated` would tell."""
    reserved_bytes: int
    """As `torch.cuda.max_memory_reserved` would tell."""
    context_bytes: int
    """Taken outside of torch."""
    capacity_bytes: int
    """All memory of the card."""
    trainable_params: int
    """Numbers that are trained."""
    phase: Phase
    """When the peak comes."""
    last: str
    """What is allocated at last when the peak is reached: operator, shape, type."""
    largest: str
    """The largest tensor beside weights and what is trained that lives at the peak."""
    parts: tuple[tuple[Part, int], ...]
    """(what for, bytes) at the peak; they add up to `reserved_bytes + context_bytes`."""
    phases: tuple[tuple[Phase, int], ...]
    """(phase, bytes allocated at its peak)."""
    method: Method
    """How it was found."""

    @property
    def total_bytes(self) -> int:
        """What `nvidia-smi` would show."""
        return self.reserved_bytes + self.context_bytes

    @property
    def verdict(self) -> Verdict:
        """Whether the trial fits on the card."""
        if RESERVED_MARGIN * self.reserved_bytes + self.context_bytes <= self.capacity_bytes:
            return Verdict.FITS
        if self.allocated_bytes + self.context_bytes > self.capacity_bytes:
            return Verdict.DOES_NOT_FIT
        return Verdict.UNCERTAIN

    def side_by_side(self) -> int:
        """Trials that fit on the card at the same time, each in a process with a context of its own."""
        return int(self.capacity_bytes // (RESERVED_MARGIN * self.reserved_bytes + self.context_bytes))

    def together_bytes(self, num_trials: int) -> int:
        """Peak of a process that trains so many trials like this one together: one base, and of all else a part for each."""
        shared = sum(num_bytes for part, num_bytes in self.parts if part in SHARED)
        return shared + num_trials * (self.total_bytes - shared)

    def together(self) -> int:
        """Trials like this one that fit on the card in one process."""
        own = max(1, self.together_bytes(1) - self.together_bytes(0))
        return int((self.capacity_bytes / RESERVED_MARGIN - self.together_bytes(0)) // own)
