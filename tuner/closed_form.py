"""A trial's peak by formula, in milliseconds, for Llama-type decoders trained as tuner trains them. Pure; runs on the driver.

What lives at a dozen moments is written down (`tuner.closed_form_moments`), and the largest wins. Where `why_not` names a
reason, a trace must be made.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tuner.closed_form_moments import Block, DecoderShape, moments_of
from tuner.gpus import NUM_WORKSPACES
from tuner.layers import Layer, ranks_of
from tuner.lora import Bias, LoraSpec
from tuner.prediction import Method, Part, Phase, Prediction
from tuner.sizes import (
    EIGHT_BIT_BLOCK,
    EIGHT_BIT_NUMBERS,
    MOST_HEAD_WIDTH,
    NESTED_BLOCK,
    PAGED_NUMBERS,
    QUANTIZED_BLOCK,
    rounded_up,
)
from tuner.trial import Baseline
from tuner.workload import Logits, Question, Workload

FAMILIES = ("llama", "mistral", "qwen2")
"""transformers' `model_type` of decoders with RMSNorm, SwiGLU, rotary positions and grouped queries."""
RESERVED = 1.40
"""Reserved over allocated, on the safe side: of 33 runs measured on a T4 the median has 1.11, the most 1.38. Only the trace
simulates the allocator."""


def shape_of(values: Mapping[str, object]) -> DecoderShape | None:
    """Read a transformers configuration; None where the model is no Llama-type decoder.

    Args:
        values: `config.to_dict()`.
    """
    heads, hidden = _int(values, "num_attention_heads"), _int(values, "hidden_size")
    needed = [_int(values, name) for name in ("intermediate_size", "vocab_size", "num_hidden_layers")]
    is_like = values.get("model_type") in FAMILIES and values.get("hidden_act", "silu") == "silu"
    if not (is_like and heads and hidden and all(needed)) or values.get("attention_dropout"):
        return None
    is_sliding = values.get("use_sliding_window", values["model_type"] != "qwen2")
    return DecoderShape(
        hidden=hidden,
        intermediate=needed[0],
        vocab=needed[1],
        num_heads=heads,
        num_kv_heads=_int(values, "num_key_value_heads") or heads,
        head_dim=_int(values, "head_dim") or hidden // heads,
        num_layers=needed[2],
        is_tied=bool(values.get("tie_word_embeddings", False)),
        sliding_window=_int(values, "sliding_window") or None if is_sliding else None,
    )


def why_not(question: Question, shape: DecoderShape | None, layers: Sequence[Layer]) -> str:
    """Why the formulas don't hold for a trial; empty where they do.

    Args:
        question: The trial.
        shape: Of its model.
        layers: The linear layers of its blocks.
    """
    if shape is None:
        return "the model is no Llama-type decoder"
    return next((reason for is_so, reason in _limits(question, shape, layers) if is_so), "")


def _limits(question: Question, shape: DecoderShape, layers: Sequence[Layer]) -> Iterator[tuple[bool, str]]:
    """(whether it is so, what the formulas don't cover)."""
    work, lora = question.workload, question.lora
    yield question.task != "causal-lm", "a classification head is trained"
    yield question.baseline is Baseline.FULL, "all weights are trained"
    yield lora is None, "there is no adapter"
    yield lora is not None and lora.use_dora, "DoRA computes norms of whole weights"
    yield lora is not None and lora.bias is not Bias.NONE, "biases are trained"
    yield work.dtype not in {"bfloat16", "float16"}, f"the model computes in {work.dtype}"
    yield work.quantization not in {"nf4", "fp4", "none"}, f"weights are in {work.quantization}"
    yield not work.autocast, "autocast is off"
    yield work.adapter_dtype != "float32", f"the adapter is in {work.adapter_dtype}"
    yield work.upcast, "what is not quantized was turned into float32"
    yield work.attention == "eager", "eager attention keeps its scores"
    yield not question.gpu.has_flash_attention, f"{question.gpu.name} has no flash attention"
    yield shape.head_dim > MOST_HEAD_WIDTH or shape.head_dim % 8 != 0, f"heads are {shape.head_dim} wide"
    longest = max(work.tokens, work.eval_tokens)
    window = shape.sliding_window
    yield window is not None and longest >= window, f"rows reach the sliding window of {window} tokens"
    yield work.logits is not Logits.LEARNED, "the model computes the loss"
    yield work.kv_cache, "keys and values are kept"
    yield work.generation is not None, "text is generated"
    # up to 6 % off on shallow models: which of the gate's and the product's gradients live together is not written down for this
    yield lora is not None and _is_mlp_halved(layers, lora), "one of gate_proj and up_proj is adapted without the other"


def _is_mlp_halved(layers: Sequence[Layer], lora: LoraSpec) -> bool:
    """Whether some block adapts just one of the two layers that read the MLP's input."""
    ranks = ranks_of(layers, lora)
    adapted = Counter(
        layer.block for layer in layers if layer.name in ranks and layer.name.endswith((".gate_proj", ".up_proj"))
    )
    return 1 in adapted.values()


def closed_form(question: Question, shape: DecoderShape, layers: Sequence[Layer]) -> Prediction:
    """A trial's peak, where `why_not` has nothing to say.

    What is reserved is taken for 1.40 times what is allocated, more than was ever measured, so that a trial that `fits` does.

    Args:
        question: The trial.
        shape: Of its model.
        layers: The linear layers of its blocks.

    Raises:
        ValueError: The formulas don't hold, or the adapter does not fit the model.
    """
    if (reason := why_not(question, shape, layers)) or question.lora is None:
        raise ValueError(f"there is no closed form for this trial: {reason}")
    blocks = _blocks(layers, ranks_of(layers, question.lora))
    work, gpu = question.workload, question.gpu
    has_dropout = question.lora.lora_dropout > 0
    resident = _resident(shape, layers, work) + _trained(blocks, work)
    resident[Part.SCRATCH] += NUM_WORKSPACES * gpu.workspace_bytes
    moments = list(moments_of(shape, blocks, work, has_dropout=has_dropout))
    most = max(moments, key=lambda moment: moment.num_bytes)
    parts = resident + Counter({part: math.ceil(number) for part, number in most.parts.items()})
    allocated = sum(parts.values())
    reserved = round(RESERVED * allocated)
    parts[Part.FRAGMENTATION] = reserved - allocated
    parts[Part.CONTEXT] = gpu.context_bytes
    phases = dict.fromkeys(Phase, 0)
    for moment in moments:
        phases[moment.phase] = max(phases[moment.phase], round(sum(resident.values()) + moment.num_bytes))
    return Prediction(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        context_bytes=gpu.context_bytes,
        capacity_bytes=gpu.memory_bytes,
        trainable_params=sum(number for block in blocks for pair in block.pairs for number in pair),
        phase=most.phase,
        last=most.text,
        largest="",
        parts=tuple((part, parts[part]) for part in Part if parts.get(part)),
        phases=tuple((phase, number) for phase, number in phases.items() if number),
        method=Method.FORMULA,
    )


def _blocks(layers: Sequence[Layer], ranks: Mapping[str, int]) -> list[Block]:
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        adapted = found.setdefault(layer.block, [])
        if layer.name in ranks:
            adapted.append(layer)
    known: dict[tuple[tuple[str, int], ...], Block] = {}
    blocks = []
    for _, adapted in sorted(found.items()):
        key = tuple((layer.name.rpartition(".")[2], ranks[layer.name]) for layer in adapted)
        if key not in known:
            pairs = tuple((r * one.in_features, r * one.out_features) for one, (_, r) in zip(adapted, key, strict=True))
            known[key] = Block(dict(key), pairs)
        blocks.append(known[key])
    return blocks


def _resident(shape: DecoderShape, layers: Sequence[Layer], work: Workload) -> Counter[Part]:
    """Weights, and what stands beside the quantized ones: packed numbers, scales, scales of scales, code books."""
    embeddings = (1 if shape.is_tied else 2) * rounded_up(2 * shape.vocab * shape.hidden)
    norms = (2 * shape.num_layers + 1) * rounded_up(2 * shape.hidden)
    parts = Counter({Part.WEIGHTS: embeddings + norms + 2 * rounded_up(2 * shape.head_dim)})
    shapes = Counter((layer.in_features * layer.out_features, layer.has_bias * layer.out_features) for layer in layers)
    for (numbers, bias), count in shapes.items():
        parts[Part.WEIGHTS] += count * rounded_up(2 * bias)
        if work.quantization == "none":
            parts[Part.WEIGHTS] += count * rounded_up(2 * numbers)
            continue
        parts[Part.QUANTIZED] += count * rounded_up(-(-numbers // 2))
        scales = -(-numbers // QUANTIZED_BLOCK)
        nested = rounded_up(scales) + rounded_up(4 * -(-scales // NESTED_BLOCK)) + rounded_up(4) + rounded_up(4 * 256)
        parts[Part.QUANTIZATION] += count * (
            rounded_up(4 * 16) + (nested if work.double_quantization else rounded_up(4 * scales))
        )
    return parts


def _trained(blocks: Sequence[Block], work: Workload) -> Counter[Part]:
    """Adapters in float32, and the optimizer's two moments of them."""
    numbers = Counter(number for block in blocks for pair in block.pairs for number in pair)
    return Counter(
        {
            Part.ADAPTERS: sum(count * rounded_up(4 * number) for number, count in numbers.items()),
            Part.OPTIMIZER: sum(count * _state_bytes(number, work.optimizer) for number, count in numbers.items()),
        }
    )


def _state_bytes(number: int, optimizer: str) -> int:
    if optimizer == "adamw_fused":
        return 2 * rounded_up(4 * number) + rounded_up(4)
    if optimizer == "adamw" or number < EIGHT_BIT_NUMBERS:
        return 2 * rounded_up(4 * number)
    scales = 2 * rounded_up(4 * -(-number // EIGHT_BIT_BLOCK))
    is_paged = optimizer.startswith("paged") and number >= PAGED_NUMBERS
    return scales if is_paged else scales + 2 * rounded_up(number)


def _int(values: Mapping[str, object], name: str) -> int:
    """A whole number of a configuration; 0 where it has none."""
    value = values.get(name)
    return value if isinstance(value, int) else 0
