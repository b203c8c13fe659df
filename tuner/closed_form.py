"""A trial's peak in closed form, in well under a millisecond: for Llama-type decoders as tuner trains them. Pure.

What lives when was read off traces of transformers 5.23 and PEFT 0.21; tests hold it against them. For the search's inner
loop and for many samples: where it does not apply, `why_not` says so, and a trace must be made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.layers import Layer, ranks_of
from tuner.lora import Bias
from tuner.peaks import Method, Part, Phase, Prediction
from tuner.prediction import Logits, Padding

if TYPE_CHECKING:
    from tuner.prediction import Question, Workload

FAMILIES = frozenset({"llama", "mistral", "qwen2"})
"""transformers' `model_type` of decoders with RMS norms, gated MLPs, rotary positions and grouped keys."""
RESERVED = 1.10
"""Reserved over allocated, an estimate; only the trace simulates the allocator."""
WORKSPACES = 2
ROUNDING = 512
QUANTIZED_BLOCK, NESTED_BLOCK = 64, 256
EIGHT_BIT_NUMBERS, PAGED_NUMBERS = 4096, 100_000
"""Sizes of a parameter from which bitsandbytes' AdamW keeps 8 bits, and from which it pages them out."""
ATTENTION_INPUTS, MLP_INPUTS = frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"gate_proj", "up_proj"})
"""Layers that read the same input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """What of a decoder's configuration decides on memory."""

    hidden: int
    mlp: int
    words: int
    queries: int
    """Width of all queries."""
    keys: int
    """Width of all keys, and of all values."""
    heads: int
    num_layers: int
    has_tied_embeddings: bool
    has_biases: bool
    """Of queries, keys and values."""


def shape_of(values: Mapping[str, Any]) -> DecoderShape | None:
    """Read a transformers configuration as a dict; None where it is of no decoder that the closed form knows."""
    if values.get("model_type") not in FAMILIES or values.get("mlp_bias") or values.get("attention_bias"):
        return None
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    width = values.get("head_dim") or hidden // heads
    return DecoderShape(
        hidden=hidden,
        mlp=values["intermediate_size"],
        words=values["vocab_size"],
        queries=heads * width,
        keys=(values.get("num_key_value_heads") or heads) * width,
        heads=heads,
        num_layers=values["num_hidden_layers"],
        has_tied_embeddings=bool(values.get("tie_word_embeddings")),
        has_biases=values["model_type"] == "qwen2",
    )


def why_not(question: Question) -> str:
    """Why the closed form does not apply to a trial; empty where it does."""
    work, lora = question.workload, question.lora
    reasons = {
        "a classification head": question.task != "causal-lm",
        "a baseline": question.baseline is not None or lora is None,
        "DoRA": lora is not None and lora.use_dora,
        "dropout": lora is not None and lora.lora_dropout > 0,
        "trained biases": lora is not None and lora.bias is not Bias.NONE,
        "eager attention": work.attention == "eager",
        "another type than bfloat16 with autocast": work.dtype != "bfloat16" or not work.autocast,
        "adapters that are not float32": work.adapter_dtype != "float32",
        "an upcast base": work.upcast,
        "logits that are not freed as tuner frees them": work.logits is not Logits.LEARNED,
        "a cache of keys and values": work.kv_cache,
        "generation": work.generation is not None,
        "a card without flash attention": not question.gpu.has_bfloat16,
    }
    return ", ".join(reason for reason, is_so in reasons.items() if is_so)


def closed_form(question: Question, shape: DecoderShape, layers: Sequence[Layer]) -> Prediction:
    """The peak of a trial to which `why_not` has nothing to say.

    Args:
        question: The trial.
        shape: Of the base.
        layers: The base's linear layers.
    """
    assert question.lora is not None  # noqa: S101 -- why_not has looked
    ranks = ranks_of(layers, question.lora)
    sizes = _Sizes(question.workload, shape, layers, ranks, question.gpu.workspace_bytes)
    phases = sizes.phases()
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    allocated = sum(phases[phase].values())
    reserved = round(allocated * RESERVED)
    parts = phases[phase] | {Part.FRAGMENTATION: reserved - allocated, Part.CONTEXT: question.gpu.context_bytes}
    return Prediction(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        context_bytes=question.gpu.context_bytes,
        capacity_bytes=question.gpu.memory_bytes,
        trainable_params=sizes.num_trained,
        phase=phase,
        last="",
        largest="",
        parts=tuple((part, parts[part]) for part in Part if parts.get(part)),
        phases=tuple((name, sum(found.values())) for name, found in phases.items()),
        method=Method.FORMULA,
    )


Parts = dict[Part, int]


class _Sizes:
    """Bytes of one trial.

    Args:
        work: What is run.
        shape: Of the base.
        layers: The base's linear layers.
        ranks: Full name -> rank.
        workspace_bytes: Of each of cuBLAS's workspaces.
    """

    def __init__(
        self,
        work: Workload,
        shape: DecoderShape,
        layers: Sequence[Layer],
        ranks: Mapping[str, int],
        workspace_bytes: int,
    ) -> None:
        self._work = work
        self._shape = shape
        self._layers = layers
        self._ranks = ranks
        self._tensors = [
            ranks[layer.name] * width
            for layer in layers
            if layer.name in ranks
            for width in (layer.in_features, layer.out_features)
        ]
        self.num_trained = sum(self._tensors)
        self._names = {name.rpartition(".")[2] for name in ranks}
        self._tokens = work.batch_size * work.tokens
        self._saved = self._saved_by_block()
        self._static = self._always(workspace_bytes)

    def phases(self) -> dict[Phase, Parts]:
        """What lives at the peak of each phase."""
        work, words = self._work, self._shape.words
        learned, every = work.learned_tokens * words, self._tokens * words
        kept = self._gradients() if work.has_accumulation else {}
        stored = self._stored()
        forward = self._plus(kept, {Part.ACTIVATIONS: stored, Part.LOGITS: 2 * every + 8 * learned})
        inside = self._plus(kept, {Part.ACTIVATIONS: stored + self._passing()})
        # the gradient of what is learned is put back among all tokens, and that among those of the whole row
        at_loss = self._plus(kept, {Part.ACTIVATIONS: stored, Part.LOGITS: max(12 * learned, 4 * every)})
        found = {
            Phase.FORWARD: max(forward, inside, key=_total),
            Phase.BACKWARD: max([at_loss, *self._in_block(kept, stored)], key=_total),
            Phase.OPTIMIZER: self._plus(self._gradients(), {Part.SCRATCH: self._foreach()}),
        }
        if work.eval_batch_size:
            tokens = work.eval_batch_size * work.eval_tokens
            logits = {Part.LOGITS: 2 * tokens * words + 8 * work.eval_learned_tokens * words}
            found[Phase.EVALUATION] = self._plus(logits)
        return found

    def _plus(self, *others: Mapping[Part, int]) -> Parts:
        found = dict(self._static)
        for other in others:
            for part, num_bytes in other.items():
                found[part] = found.get(part, 0) + num_bytes
        return found

    def _always(self, workspace_bytes: int) -> Parts:
        shape, work = self._shape, self._work
        sizes = [layer.in_features * layer.out_features for layer in self._layers]
        is_quantized = work.quantization != "none"
        biases = (shape.queries + 2 * shape.keys) * shape.num_layers if shape.has_biases else 0
        tables = shape.words * shape.hidden * (1 if shape.has_tied_embeddings else 2)
        rest = 2 * (tables + shape.hidden * (2 * shape.num_layers + 1) + biases)
        return {
            Part.WEIGHTS: rest if is_quantized else rest + 2 * sum(sizes),
            Part.QUANTIZED: sum(_up(-(-size // 2)) for size in sizes) if is_quantized else 0,
            Part.QUANTIZATION: sum(map(self._scales, sizes)) if is_quantized else 0,
            Part.ADAPTERS: sum(_up(4 * size) for size in self._tensors),
            Part.OPTIMIZER: sum(map(self._state, self._tensors)),
            Part.SCRATCH: WORKSPACES * workspace_bytes,
        }

    def _scales(self, size: int) -> int:
        """Scales of a quantized weight, and the code book."""
        num = -(-size // QUANTIZED_BLOCK)
        if not self._work.double_quantization:
            return _up(4 * num) + ROUNDING
        return _up(num) + _up(4 * -(-num // NESTED_BLOCK)) + _up(4 * 256) + 2 * ROUNDING

    def _state(self, size: int) -> int:
        """AdamW's two moments."""
        if self._work.optimizer == "adamw" or size < EIGHT_BIT_NUMBERS:
            return 2 * _up(4 * size)
        is_paged = self._work.optimizer.startswith("paged") and size >= PAGED_NUMBERS
        return 2 * _up(4 * -(-size // NESTED_BLOCK)) + (0 if is_paged else 2 * _up(size))

    def _gradients(self) -> Parts:
        return {Part.GRADIENTS: self._static[Part.ADAPTERS]}

    def _foreach(self) -> int:
        """Torch's AdamW takes the root of all second moments at once."""
        return self._static[Part.ADAPTERS] if self._work.optimizer == "adamw" else 0

    def _stored(self) -> int:
        """What the forward pass leaves behind: all that is saved, or each block's input."""
        if not self._work.gradient_checkpointing:
            return sum(self._saved)
        casts = 2 * self.num_trained  # autocast keeps its copies of the adapters until the forward pass ends
        return (self._shape.num_layers + 1) * 2 * self._shape.hidden * self._tokens + casts + self._mask()

    def _saved_by_block(self) -> list[int]:
        """What each block saves for its backward pass."""
        shape, tokens = self._shape, self._tokens
        attention = 4 * (shape.queries + shape.keys + shape.heads)
        if self._work.padding is not Padding.NONE:
            attention += (
                4 * (shape.queries - shape.keys) + 2 * self._work.tokens
            )  # keys and values repeated, a mask of its own
        common = attention + 8 * shape.hidden + 8 + 6 * shape.mlp
        saved = [common * tokens] * shape.num_layers
        adapted: list[set[str]] = [set() for _ in saved]
        for layer in self._layers:
            if rank := self._ranks.get(layer.name):
                width = 0 if self._is_shared(layer, adapted[layer.block]) else 2 * layer.in_features
                adapted[layer.block].add(layer.name.rpartition(".")[2])
                saved[layer.block] += (2 * rank + width) * tokens + 2 * rank * (layer.in_features + layer.out_features)
        if not self._work.gradient_checkpointing:
            first = next(block for block, names in enumerate(adapted) if names)
            saved[:first] = [0] * first
            saved[first] -= tokens * self._before(adapted[first], attention)
        return saved

    def _before(self, adapted: set[str], attention: int) -> int:
        """Bytes a token of the first adapted block that lie before its first adapter: they need no gradient."""
        if adapted & ATTENTION_INPUTS:
            return 0
        if "o_proj" in adapted:
            return attention
        inputs = attention + 4 * self._shape.hidden
        return inputs if adapted & MLP_INPUTS else inputs + 6 * self._shape.mlp

    def _is_shared(self, layer: Layer, adapted: set[str]) -> bool:
        """Whether a layer's input has a copy already; each has its own unless its weight has 4 bits."""
        if self._work.quantization == "none":
            return False
        name = layer.name.rpartition(".")[2]
        return name == "o_proj" or any(name in group and adapted & group for group in (ATTENTION_INPUTS, MLP_INPUTS))

    def _mask(self) -> int:
        """A mask for all blocks, where there is one."""
        return 0 if self._work.padding is Padding.NONE else self._tokens * self._work.tokens

    def _passing(self) -> int:
        """What a block needs in passing on its way forward; its MLP is the most."""
        mlp = self._tokens * self._shape.mlp
        if self._work.quantization != "none":
            return 5 * mlp + self._dequantized()
        return 10 * mlp if self._names & (MLP_INPUTS | {"down_proj"}) else 7 * mlp

    def _passing_back(self) -> int:
        """What a block needs in passing on its way back, beside what it saved; read off traces."""
        hidden, mlp = self._shape.hidden, self._shape.mlp
        has_down, has_inputs = "down_proj" in self._names, bool(self._names & MLP_INPUTS)
        if self._work.quantization == "none":
            per_token = 8 * mlp + 3 * hidden if has_down else 7 * mlp if has_inputs else 6 * mlp
            return self._tokens * per_token
        missing = 2 * hidden * ((not self._names & ATTENTION_INPUTS) + (not has_inputs))
        if has_down:
            return self._tokens * (mlp + 2 * hidden + missing) + self._dequantized()
        return self._tokens * (3 * mlp if not has_inputs else 2 * mlp + 2 * hidden) + self._dequantized()

    def _dequantized(self) -> int:
        sizes = (layer.in_features * layer.out_features for layer in self._layers)
        return 2 * max(sizes) if self._work.quantization != "none" else 0

    def _in_block(self, kept: Parts, stored: int) -> list[Parts]:
        """The first and the last block of the backward pass, which begins at the last block with no gradients yet."""
        if not self._work.gradient_checkpointing:
            return []
        shape, passing = self._shape, self._passing_back()
        stored -= 2 * self.num_trained  # autocast's copies are gone
        block = 2 * shape.hidden * self._tokens
        first = self._plus(kept, {Part.ACTIVATIONS: stored + self._saved[-1], Part.SCRATCH: passing})
        last = self._plus(
            self._gradients(),
            {
                Part.ACTIVATIONS: stored - (shape.num_layers - 1) * block + self._saved[0],
                Part.SCRATCH: passing,
            },
        )
        return [first, last]


def _total(parts: Parts) -> int:
    return sum(parts.values())


def _up(num_bytes: int) -> int:
    return -(-num_bytes // ROUNDING) * ROUNDING
