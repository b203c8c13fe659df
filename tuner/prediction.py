"""What is asked of the predictor, and what it answers. Pure; driver and predictor share it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tuner.config import ModelConfig
from tuner.gpus import Gpu
from tuner.lora import LoraSpec
from tuner.peaks import Prediction
from tuner.trial import Baseline


class Padding(enum.StrEnum):
    """How the examples of a batch are brought to one length; it decides on the attention kernel."""

    NONE = "none"
    """All are equally long."""
    PADDED = "padded"
    PACKED = "packed"


class Logits(enum.StrEnum):
    """What becomes of the logits between the forward and the backward pass."""

    LEARNED = "learned"
    """Those that are learned are turned into float32, the rest is freed: as tuner trains."""
    KEPT = "kept"
    """The model computes the loss, and its output lives on through the backward pass: a plain loop."""
    FREED = "freed"
    """The model computes the loss, and only that lives on: transformers' Trainer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """Text that is generated while the optimizer's state is in memory."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """All that moves the peak of a trial, beside model and adapter."""

    batch_size: int
    """Examples in a forward pass of training."""
    tokens: int
    """In each row of the longest batch."""
    learned_tokens: int
    """Most tokens of a training batch that are learned."""
    padding: Padding
    """How the examples come to one length."""
    has_accumulation: bool
    """Whether gradients of other batches live during a forward pass."""
    dtype: str
    """Of activations and of weights that are not quantized: `float32`, `float16` or `bfloat16`."""
    quantization: str
    """`nf4`, `fp4` or `none`."""
    double_quantization: bool
    """Whether the scales are quantized too."""
    autocast: bool
    """Whether adapters in float32 meet activations in `dtype` by autocast."""
    adapter_dtype: str
    """Of what is trained."""
    upcast: bool
    """Whether all that is not quantized was turned into float32, as PEFT's `prepare_model_for_kbit_training` does."""
    gradient_checkpointing: bool
    """Whether blocks are computed again in the backward pass."""
    attention: str
    """`sdpa`, `eager` or `flash_attention_2`."""
    logits: Logits
    """What becomes of them."""
    kv_cache: bool
    """Whether keys and values are kept as if to generate from them."""
    optimizer: str
    """`adamw`, `adamw_8bit` or `paged_adamw_8bit`."""
    eval_batch_size: int
    """Rows in a forward pass of an evaluation; 0 for none."""
    eval_tokens: int
    """In each row of the longest evaluation batch."""
    eval_learned_tokens: int
    """Most tokens of an evaluation batch that are scored."""
    generation: Generation | None = None
    """What is generated, if anything is."""
    is_cache_emptied: bool = True
    """Whether what loading has cached is given back before the first step, as tuner does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Which trial's peak is asked for."""

    model: ModelConfig
    """The base; only its configuration is read."""
    task: str
    """`classification` or `causal-lm`."""
    num_labels: int
    """Classes; 0 for causal language models."""
    lora: LoraSpec | None
    """The adapter; None in some baselines."""
    baseline: Baseline | None
    """What kind of baseline it is."""
    workload: Workload
    """What is run."""
    gpu: Gpu
    """Where."""
    is_whole: bool = False
    """Trace all layers, even where a few would tell about all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What comes back; one of the two is set."""

    prediction: Prediction | None = None
    """The peak."""
    problem: str = ""
    """Why it can't be predicted."""
