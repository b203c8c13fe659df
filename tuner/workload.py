"""What a trial does to a card's memory: all that moves its peak, how a sweep file says it, and what the predictor is asked.

Pure; driver and predictor share it.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.config import ModelConfig
from tuner.gpus import Gpu, gpu_named
from tuner.lora import LoraSpec
from tuner.prediction import Prediction
from tuner.trial import Baseline

if TYPE_CHECKING:
    from tuner.config import MemoryConfig, SweepConfig
    from tuner.trial import Inspection, TrialSpec


OPTIMIZERS = {"adamw": "adamw_fused"}
"""What a worker takes on a card: torch's fused AdamW needs no memory in passing."""


class Padding(enum.StrEnum):
    """How the examples of a batch are brought to one length; it decides on the attention kernel."""

    NONE = "none"
    """All are equally long."""
    PADDED = "padded"
    PACKED = "packed"


class Logits(enum.StrEnum):
    """What becomes of the logits between the forward and the backward pass."""

    LEARNED = "learned"
    """Only those of tokens that are learned are computed, and turned into float32: as tuner trains."""
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
    """`adamw`, `adamw_fused`, `adamw_8bit` or `paged_adamw_8bit`."""
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


def gpu_of(config: SweepConfig, named: str | None = None) -> Gpu | None:
    """The card that a sweep is planned for; None where it names none.

    Args:
        config: The sweep.
        named: Another one.
    """
    asked = config.objectives.memory
    name = named or asked.gpu
    if name is None:
        return None
    gpu = gpu_named(name)
    return gpu if asked.context_mib is None else dataclasses.replace(gpu, context_mib=asked.context_mib)


def workload_of(config: SweepConfig, gpu: Gpu, inspection: Inspection | None = None) -> Workload:
    """What a trial of a sweep does to a card's memory.

    Args:
        config: The sweep.
        gpu: `compute_dtype: auto` is bfloat16 where it has that.
        inspection: Knows how long the examples are; without it they are as long as `data.max_length` allows.
    """
    asked, training = config.objectives.memory, config.training
    tokens = asked.longest_tokens or (inspection and inspection.longest_train) or config.data.max_length
    eval_tokens = (inspection and inspection.longest_validation) or config.data.max_length
    is_packed = training.packing and asked.padding == "auto"
    tokens = config.data.max_length if is_packed else tokens
    is_generating = training.task == "causal-lm"
    most = asked.learned_tokens or (inspection and inspection.most_learned) or tokens - 1
    most_scored = asked.learned_tokens or (inspection and inspection.most_scored) or eval_tokens - 1
    dtype = config.model.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpu.has_bfloat16 else "float32"
    return Workload(
        batch_size=training.batch_size,
        tokens=tokens,
        learned_tokens=training.batch_size * min(most, tokens) if is_generating else training.batch_size,
        padding=_padding(asked, training.batch_size, is_packed=is_packed),
        has_accumulation=training.gradient_accumulation_steps > 1,
        dtype=dtype,
        quantization=config.model.quantization,
        double_quantization=config.model.double_quantization,
        autocast=asked.autocast and dtype != "float32",
        adapter_dtype="float32" if asked.adapter_dtype == "float32" else dtype,
        upcast=asked.upcast,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=config.model.attention,
        logits=Logits(asked.logits),
        kv_cache=asked.kv_cache,
        optimizer=OPTIMIZERS.get(training.optimizer, training.optimizer),
        eval_batch_size=training.eval_batch_size,
        eval_tokens=eval_tokens,
        eval_learned_tokens=training.eval_batch_size * min(most_scored, eval_tokens)
        if is_generating
        else training.eval_batch_size,
        generation=_generation(asked),
    )


def question_about(spec: TrialSpec, config: SweepConfig, gpu: Gpu, workload: Workload, num_labels: int = 2) -> Question:
    """Ask for a trial's peak; what does not change it is left out, so that like trials are answered once."""
    lora = spec.lora
    if spec.baseline in {Baseline.FULL, Baseline.UNQUANTIZED_LORA}:
        workload = dataclasses.replace(workload, quantization="none")
    if spec.baseline is Baseline.FULL:
        lora = None
    if lora is not None:
        lora = dataclasses.replace(
            lora, lora_alpha=1.0, lora_dropout=0.1 if lora.lora_dropout else 0.0, use_rslora=False
        )
    return Question(
        model=config.model,
        task=config.training.task,
        num_labels=num_labels if config.training.task == "classification" else 0,
        lora=lora,
        baseline=spec.baseline,
        workload=workload,
        gpu=gpu,
    )


def _padding(asked: MemoryConfig, batch_size: int, *, is_packed: bool) -> Padding:
    if asked.padding != "auto":
        return Padding(asked.padding)
    if is_packed:
        return Padding.PACKED
    return Padding.PADDED if batch_size > 1 else Padding.NONE


def _generation(asked: MemoryConfig) -> Generation | None:
    if not asked.generation.batch_size:
        return None
    return Generation(
        batch_size=asked.generation.batch_size,
        prompt_tokens=asked.generation.prompt_tokens,
        new_tokens=asked.generation.new_tokens,
    )


def settings_text(workload: Workload) -> str:
    """All that moves a peak, with its values."""
    given = {name: value for name, value in dataclasses.asdict(workload).items() if value is not None}
    return "; ".join(f"{name} {_plain(value)}" for name, value in given.items())


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{name} {number}" for name, number in value.items())
    return str(value)
