"""The forms of an export, and what crosses to the process that makes and checks it. Pure; driver and worker share it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Form(enum.StrEnum):
    """What `tuner export --as` makes."""

    PEFT = "peft"
    """As trained, with patterns."""
    SERVING = "serving"
    """One rank and no patterns, zero-padded, the scale folded into B: read the same by all engines."""
    MERGED = "merged"
    """The base with the adapter in its weights."""
    GGUF = "gguf"
    """An adapter for llama.cpp."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is to be made."""

    adapter: str
    """Folder of the trained adapter, in PEFT's format."""
    folder: str
    """Where it goes; exists."""
    form: Form
    """Into what."""
    rank: int | None = None
    """Largest rank of the result; that of training by default."""
    dtype: str = "float32"
    """Of a merged model's weights: float32, bfloat16 or float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What was found when the result was loaded and used."""

    score: float
    """The sweep's metric on the validation data."""
    trained_score: float
    """The same of the trained adapter, measured beside it."""
    largest_difference: float
    """Between the two, of logits over the largest of them."""
    tolerance: float | None
    """What the difference may be; None where the result is meant to differ."""
    compute_dtype: str
    """Of activations while it was checked."""
    lost_share: float = 0.0
    """Of the norm of a layer's update, the largest share that a smaller rank has cost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """How fast a model writes."""

    variant: str
    """`base`, `base + adapter` or `merged`."""
    tokens_per_s: float
    """New tokens, median over the repeats."""
    least_tokens_per_s: float
    """Of the slowest repeat."""
    most_tokens_per_s: float
    """Of the fastest."""
    latency_s: float
    """Of a whole answer, median over the repeats, mean over the prompts."""
    weights_bytes: int
    """Parameters and buffers."""
    peak_bytes: int
    """The most that was allocated on a GPU while it wrote; 0 on a CPU."""
    num_repeats: int
    """Repeats, after one that is not counted."""
