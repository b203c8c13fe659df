"""The moments at which a Llama-type decoder's memory may peak, each with the bytes that live then. Pure; runs on the driver.

h is the width of the model, f that of the MLP, q and k those of all query and of all key heads, R rows, S tokens of a row,
T = R S tokens, N learned tokens. Each moment was read off traces of transformers 5.23, PEFT 0.21 and bitsandbytes 0.50.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.prediction import Part, Phase
from tuner.sizes import FUSED_TOKENS, QUANTIZED_BLOCK, rounded_up
from tuner.workload import Padding

if TYPE_CHECKING:
    from tuner.workload import Workload

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""A block's linear layers, in its order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """A Llama-type decoder; its linear layers come as `Layer`s."""

    hidden: int
    """Width of the residual stream."""
    intermediate: int
    """Width inside the MLP."""
    vocab: int
    """Words."""
    num_heads: int
    """Of queries."""
    num_kv_heads: int
    """Of keys and of values."""
    head_dim: int
    """Width of each head."""
    num_layers: int
    """Blocks."""
    is_tied: bool
    """Whether the embeddings are the output's weights too."""
    sliding_window: int | None
    """Tokens that attention looks back; None for all."""

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Moment:
    """When the peak may be."""

    phase: Phase
    text: str
    parts: Mapping[Part, float]
    """Beside what is resident."""

    @property
    def num_bytes(self) -> float:
        """Beside what is resident."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Block:
    """A block's adapters."""

    ranks: Mapping[str, int]
    """Projection -> rank, of those that have one."""
    pairs: tuple[tuple[int, int], ...]
    """Numbers in A and in B of each adapter."""

    @property
    def gradient_bytes(self) -> int:
        """Of all its adapters, in float32."""
        return sum(rounded_up(4 * number) for pair in self.pairs for number in pair)

    @property
    def down_bytes(self) -> int:
        """Gradients of the MLP's last layer, the first that come."""
        return sum(rounded_up(4 * number) for number in self.pairs[-1]) if "down_proj" in self.ranks else 0

    @property
    def cast_bytes(self) -> int:
        """Of the 16-bit copies by which autocast computes."""
        return sum(rounded_up(2 * number) for pair in self.pairs for number in pair)


def moments_of(shape: DecoderShape, blocks: Sequence[Block], work: Workload, *, has_dropout: bool) -> Iterator[Moment]:
    """All at which a peak was ever seen."""
    gradients = sum(block.gradient_bytes for block in blocks)
    is_exact = work.optimizer == "adamw"
    stepping = {Part.GRADIENTS: gradients, Part.SCRATCH: gradients if is_exact else 0}
    yield Moment(
        Phase.OPTIMIZER, "square roots of the second moments" if is_exact else "norm of the gradients", stepping
    )
    yield from _Training(shape, blocks, work, has_dropout=has_dropout).moments()
    if work.eval_batch_size:
        yield from _evaluation(shape, blocks, work)


def _evaluation(shape: DecoderShape, blocks: Sequence[Block], work: Workload) -> Iterator[Moment]:
    passing = _Pass(shape, work, rows=work.eval_batch_size, tokens=work.eval_tokens, is_training=False)
    chosen, learned = 2 * shape.hidden * work.eval_learned_tokens, 2 * shape.vocab * work.eval_learned_tokens
    casts = 0
    for block in blocks:
        casts += block.cast_bytes
        inside = 3 * passing.h + casts + passing.shared + passing.mlp(block, is_kept=False)
        yield Moment(Phase.EVALUATION, "an MLP", {Part.ACTIVATIONS: inside})
    yield Moment(Phase.EVALUATION, "logits", {Part.ACTIVATIONS: passing.h + chosen + casts, Part.LOGITS: learned})
    yield Moment(Phase.EVALUATION, "log-softmax of what is scored", {Part.LOGITS: 4 * learned})


class _Pass:
    """A forward pass in bytes: tensors of T rows in 16 bits are named by their width.

    Args:
        shape: The model.
        work: Quantization and padding.
        rows: Of the batch.
        tokens: Of each row.
        is_training: Whether dropout is on.
        has_dropout: Of the adapters.
    """

    def __init__(
        self,
        shape: DecoderShape,
        work: Workload,
        *,
        rows: int,
        tokens: int,
        is_training: bool,
        has_dropout: bool = False,
    ) -> None:
        self.T = T = rows * tokens  # noqa: N806 -- as the formulas have it
        self.h, self.f, self.q, self.k = (
            2 * T * width for width in (shape.hidden, shape.intermediate, shape.query, shape.key)
        )
        self.norm = 2 * self.h + 4 * T
        self.heads = 4 * shape.num_heads * rows * (tokens if work.padding is Padding.NONE else -(-tokens // 32) * 32)
        self._is_masked = work.padding is not Padding.NONE
        self._is_quantized = work.quantization != "none"
        self._has_dropout = has_dropout and is_training
        self._backward_weight = 2 * shape.hidden * shape.intermediate if self._is_quantized else 0
        self.weight = self._backward_weight if T > FUSED_TOKENS else 0
        self.scales = self.weight / (QUANTIZED_BLOCK / 2) if work.double_quantization else 0.0
        self.mask = 2 * rows * tokens * (-(-tokens // 8) * 8) if self._is_masked else 0
        self.shared = 4 * T * shape.head_dim + 24 * T + self.mask / 2

    def attention_saved(self, block: Block, *, is_reached: bool) -> float:
        """What an attention and the norm before it leave for the backward pass.

        Args:
            block: Its adapters.
            is_reached: Whether its input has a gradient.
        """
        adapted = [name for name in PROJECTIONS[:3] if name in block.ranks]
        saved = self.norm if is_reached else 0.0
        if is_reached or adapted:
            keys = self.q if self._is_masked else self.k  # repeated for each query head
            saved += 2 * self.q + 2 * keys + self.heads + self.mask
        elif "o_proj" in block.ranks:
            saved += self.q
        saved += self._inputs(len(adapted), self.h, is_reached=is_reached)
        if "o_proj" in block.ranks:
            saved += self._copy(self.q)
        return saved

    def mlp_saved(self, block: Block, *, is_reached: bool) -> float:
        """What an MLP and the norm before it leave, less what goes into its last layer."""
        adapted = [name for name in ("gate_proj", "up_proj") if name in block.ranks]
        saved = self.norm if is_reached else 0.0
        saved += 3 * self.f if is_reached or adapted else 0.0
        return saved + self._inputs(len(adapted), self.h)

    def down_saved(self, block: Block) -> float:
        """What the MLP's last layer keeps of its input."""
        return self._inputs(1, self.f) if "down_proj" in block.ranks else 0.0

    def lora_saved(self, block: Block) -> float:
        """What lies between A and B, and both in 16 bits."""
        return block.cast_bytes + 2 * self.T * sum(block.ranks.values())

    def mlp(self, block: Block, *, is_kept: bool, is_cut: bool = False) -> float:
        """The most that lives in an MLP's forward pass, its norm's output and what it saves included.

        Args:
            block: Its adapters.
            is_kept: Whether a backward pass follows.
            is_cut: Whether it ends as soon as everything is there again that the backward pass needs.
        """
        gate = self._copy(self.h) if "gate_proj" in block.ranks else 0.0
        kept = self.norm + self.f + gate if is_kept else 0.0
        up = self.h + kept + self.f + self._linear("up_proj", block, self.h, self.f, is_kept=is_kept)
        if is_cut and "down_proj" not in block.ranks:
            return up
        kept += 2 * self.f + (self._copy(self.h) if "up_proj" in block.ranks else 0.0) if is_kept else 0.0
        last = self._linear("down_proj", block, self.f, self.h, is_kept=is_kept, is_cut=is_cut)
        product = 0.0 if is_kept else 2 * self.f  # gate and up, which are freed before the last layer
        return max(up, self.h + kept + self.f + max(last, product))

    def coming(self, block: Block) -> float:
        """Gradients that wait, beside that of the residual stream, until a block is computed again.

        bitsandbytes keeps weights without autograd's knowing, so that the last layer's own gradient is there already.
        """
        if "down_proj" in block.ranks:
            return self.h
        return self.f if self._is_quantized else 0.0

    def down_backward(self, block: Block) -> float:
        """The most beside what is saved when gradients reach the product of gate and up."""
        is_adapted = "down_proj" in block.ranks
        most: float = max(3 * self.f, (1 + is_adapted) * self.f + self._backward_weight)
        if is_adapted and self._has_dropout and not self._is_quantized:
            most = max(most, 4.5 * self.f)
        return most

    def _linear(self, name: str, block: Block, x: float, y: float, *, is_kept: bool, is_cut: bool = False) -> float:
        """The most in a layer from x to y, beside x."""
        base = y + self.weight + self.scales
        if name not in block.ranks:
            return base
        kept = self._copy(x) if is_kept else 0.0
        if self._is_quantized:
            return max(base, 2 * y, (y if is_cut else 3 * y) + kept)
        dropped = 2.5 * x if self._has_dropout else 0.0
        first = y + 2 * x + x + dropped  # a copy in float32, which autocast turns back
        return first if is_cut else max(first, 3 * y + 2 * x + kept)

    def _copy(self, x: float) -> float:
        """What an adapter keeps of its input beside the input: 16 bits again, or what dropout leaves and where."""
        if self._has_dropout:
            return 1.5 * x
        return 0.0 if self._is_quantized else x

    def _inputs(self, count: int, x: float, *, is_reached: bool = True) -> float:
        """What `count` adapters of one input keep of it; where dropout hit is not kept if that has no gradient."""
        if not count:
            return 0.0
        copy = self._copy(x)
        return count * (copy if is_reached else min(copy, x)) or x


class _Training:
    """A step of training, with the gradients that are there already.

    Args:
        shape: The model.
        blocks: Its adapters.
        work: What is run.
        has_dropout: Of the adapters.
    """

    def __init__(self, shape: DecoderShape, blocks: Sequence[Block], work: Workload, *, has_dropout: bool) -> None:
        self._shape, self._blocks, self._work = shape, blocks, work
        rows, tokens = work.batch_size, work.tokens
        self._pass = _Pass(shape, work, rows=rows, tokens=tokens, is_training=True, has_dropout=has_dropout)
        self._is_again = work.gradient_checkpointing
        # PEFT gives the embeddings a gradient where blocks are computed again
        self._first = -1 if self._is_again else next(number for number, block in enumerate(blocks) if block.ranks)
        self._given = sum(block.gradient_bytes for block in blocks) if work.has_accumulation else 0
        self._attention = [self._attention_of(number) for number in range(len(blocks))]
        self._saved = [self._saved_of(number) for number in range(len(blocks))]

    def moments(self) -> Iterator[Moment]:
        """Those of the forward and of the backward pass."""
        yield from self._forward()
        yield from self._loss()
        yield from self._backward()

    def _attention_of(self, number: int) -> float:
        """What a block's attention and its adapters leave for the backward pass."""
        block, is_reached = self._blocks[number], number > self._first
        if number < self._first:
            return 0.0
        return self._pass.attention_saved(block, is_reached=is_reached) + self._pass.lora_saved(block)

    def _saved_of(self, number: int) -> float:
        """What a block leaves for its backward pass, or has by then again."""
        block = self._blocks[number]
        if number < self._first:
            return 0.0
        is_reached = number > self._first or any(name in block.ranks for name in PROJECTIONS[:4])
        mlp = self._pass.mlp_saved(block, is_reached=is_reached)
        return self._attention[number] + mlp + self._pass.down_saved(block)

    def _left(self, number: int) -> float:
        """What lies between forward and backward pass of a block: its input alone, where it is computed again."""
        if number < self._first:
            return 0.0
        return self._pass.h if self._is_again else self._saved[number]

    def _forward(self) -> Iterator[Moment]:
        """The MLP of each block, then the logits of what is learned."""
        passing, is_again = self._pass, self._is_again
        held: float = passing.shared
        casts = 0
        for number, block in enumerate(self._blocks):
            is_kept = number >= self._first and not is_again
            casts += block.cast_bytes if not is_kept else 0
            streams = (1 if number == 0 else 2) * passing.h  # the embeddings, and what comes into the block
            held_now = max(held + self._left(number), passing.shared + streams) if is_again else held + streams
            inside = held_now + passing.h + (self._attention[number] if is_kept else 0)
            inside += casts + passing.mlp(block, is_kept=is_kept)
            yield self._moment(Phase.FORWARD, "an MLP", self._given, activations=inside)
            held += self._left(number)
        held += passing.norm
        yield self._moment(Phase.FORWARD, "the last norm", self._given, held + 6 * passing.h + casts)
        num = self._work.learned_tokens
        learned, chosen = self._words(num), 2 * self._shape.hidden * num
        yield self._moment(Phase.FORWARD, "logits", self._given, held + passing.h + chosen + casts, learned)
        yield self._moment(Phase.FORWARD, "log-softmax of what is learned", self._given, held, 4 * learned)

    def _loss(self) -> Iterator[Moment]:
        """The gradient of the logits in float32, then that of the last norm."""
        held = self._pass.shared + self._pass.norm + sum(map(self._left, range(len(self._blocks))))
        learned = self._words(self._work.learned_tokens)
        yield self._moment(Phase.BACKWARD, "gradient of log-softmax", self._given, held, 6 * learned)
        yield self._moment(Phase.BACKWARD, "gradient of the last norm", self._given, held, scratch=10 * self._pass.h)

    def _backward(self) -> Iterator[Moment]:
        """The MLP of each block, the last block first, as gradients come and what is saved goes."""
        passing, is_again = self._pass, self._is_again
        held = passing.shared + sum(map(self._left, range(len(self._blocks))))
        gradients = 0
        for number in reversed(range(max(self._first, 0), len(self._blocks))):
            block = self._blocks[number]
            given = self._given or gradients
            own = 0 if self._given else block.down_bytes
            base = held + passing.h
            saved = self._saved[number] if is_again else 0
            inside = saved - passing.down_saved(block)
            yield self._moment(
                Phase.BACKWARD, "gradient of an MLP", given + own, base + inside, scratch=passing.down_backward(block)
            )
            if is_again:
                coming = passing.coming(block)
                again = passing.h + self._attention[number] + passing.mlp(block, is_kept=True, is_cut=True)
                yield self._moment(Phase.BACKWARD, "an MLP, computed again", given, base + again, scratch=coming)
            held -= self._left(number)
            gradients += block.gradient_bytes
        yield self._moment(Phase.BACKWARD, "the last gradient", gradients, passing.shared + passing.h)

    def _words(self, rows: int) -> int:
        """Logits of so many rows in 16 bits."""
        return 2 * self._shape.vocab * rows

    @staticmethod
    def _moment(
        phase: Phase, text: str, gradients: float, activations: float, logits: float = 0, *, scratch: float = 0
    ) -> Moment:
        parts = {
            Part.GRADIENTS: gradients,
            Part.ACTIVATIONS: activations,
            Part.LOGITS: logits,
            Part.SCRATCH: scratch,
        }
        return Moment(phase, text, parts)
