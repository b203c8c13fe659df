"""A model as its linear layers: which of them a target means, at which rank, and what that costs in parameters.

Pure; driver and worker share it. The worker reads the layers off the model (`tuner.worker.architecture`), the driver needs
no torch to know what a trial will train.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuner.lora import LoraSpec

ALL_LINEAR = "all-linear"
"""The target that means every linear layer of the blocks; PEFT's word."""
BANDS = ("first", "middle", "last")
"""Thirds of a stack of blocks, from the input up."""


class Group(enum.StrEnum):
    """What a linear layer does in its block."""

    ATTENTION = "attention"
    MLP = "mlp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A linear layer inside the repeated blocks: what can be quantized and adapted."""

    name: str
    """Full dotted name."""
    group: Group | None
    """None where the model's blocks don't tell attention and MLP apart."""
    block: int
    """Number of its block, from 0."""
    num_blocks: int
    """Blocks in its stack."""
    in_features: int
    """Width of the input."""
    out_features: int
    """Width of the output."""
    has_bias: bool
    """Whether it adds a bias of `out_features` numbers."""

    @property
    def band(self) -> str:
        """Its third of the depth: block i of n is in third floor(3 i / n)."""
        return BANDS[3 * self.block // self.num_blocks]

    @property
    def short_name(self) -> str:
        """The name after the block's number: `self_attn.q_proj` of `model.layers.3.self_attn.q_proj`."""
        return self.name.partition(f".{self.block}.")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What a search must know of a base model."""

    layers: tuple[Layer, ...] = ()
    """Linear layers of the blocks, in the model's order."""
    num_params: int = 0
    """All weights, head included."""
    hidden_size: int = 0
    """Width of the residual stream."""
    family: str = ""
    """transformers' `model_type`, such as `llama`."""
    head_params: int = 0
    """Weights of the classification head, which is always trained; 0 for causal language models."""
    bias_params: int = 0
    """Biases outside of the head."""
    tree: str = ""
    """The model's modules as an indented list, set only where attention and MLP can't be told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selector:
    """A key of `rank_pattern`, or a target."""

    name: str
    """A module name, or a dotted end of one, or `attention`, `mlp`, `all-linear`; empty means any."""
    band: str
    """`first`, `middle`, `last`, or empty for any depth."""

    def fits(self, layer: Layer) -> bool:
        """Whether it means this layer."""
        return self.band in {"", layer.band} and self._names(layer)

    @property
    def precision(self) -> tuple[int, int, int]:
        """Of several that fit a layer the largest wins: a module before a group before a mere band, then the longer name."""
        rank = 0 if self.name in {"", ALL_LINEAR} else 1 if self.name in _GROUPS else 2
        return (rank, len(self.name) if rank > 1 else 0, 1 if self.band else 0)

    def _names(self, layer: Layer) -> bool:
        if self.name in {"", ALL_LINEAR}:
            return True
        if self.name in _GROUPS:
            return layer.group == self.name
        return layer.name == self.name or layer.name.endswith(f".{self.name}")


_GROUPS = frozenset(group.value for group in Group)


@functools.lru_cache(maxsize=1024)
def parse_selector(text: str) -> Selector:
    """Read `q_proj`, `attention`, `first` or `q_proj@first`.

    Raises:
        ValueError: There is no such depth band, or nothing before the `@`.
    """
    if text in BANDS:
        return Selector(name="", band=text)
    name, at, band = text.partition("@")
    if at and (band not in BANDS or not name):
        msg = f"must be a module, a group, a band ({', '.join(BANDS)}) or module@band, got {text!r}"
        raise ValueError(msg)
    return Selector(name=name, band=band)


def targeted(layers: Iterable[Layer], targets: Sequence[str]) -> tuple[Layer, ...]:
    """The layers that at least one of the targets means, in the model's order.

    Raises:
        ValueError: A target means no layer.
    """
    selectors = {target: parse_selector(target) for target in targets}
    layers = tuple(layers)
    unused = [target for target, selector in selectors.items() if not any(map(selector.fits, layers))]
    if unused:
        msg = f"no linear layer is named {', '.join(sorted(unused))}"
        raise ValueError(msg)
    return tuple(layer for layer in layers if any(selector.fits(layer) for selector in selectors.values()))


def deciding_key(layer: Layer, keys: Iterable[str]) -> str | None:
    """The key of a rank pattern that sets a layer's rank; None where no key fits it."""
    fitting = [key for key in keys if parse_selector(key).fits(layer)]
    return max(fitting, key=lambda key: parse_selector(key).precision, default=None)


def ranks_of(layers: Iterable[Layer], lora: LoraSpec) -> dict[str, int]:
    """Full name -> rank of every layer that is adapted, in the model's order.

    Raises:
        ValueError: A target or a key of the rank pattern means no layer.
    """
    pattern: Mapping[str, int] = dict(lora.rank_pattern)
    ranks, used = {}, set()
    for layer in targeted(layers, lora.target_modules):
        key = deciding_key(layer, pattern)
        used.add(key)
        ranks[layer.name] = lora.r if key is None else pattern[key]
    if idle := sorted(pattern.keys() - used):
        msg = f"rank_pattern sets no layer's rank by {', '.join(idle)}"
        raise ValueError(msg)
    return {name: r for name, r in ranks.items() if r > 0}


def count_trainable(model: ModelFacts, lora: LoraSpec | None) -> int:
    """Numbers that a trial will train, from shapes alone: r (d + k) for each layer, and what comes with it.

    Args:
        model: The base.
        lora: The adapter; None trains the head alone.

    Raises:
        ValueError: The adapter does not fit the model.
    """
    if lora is None:
        return model.head_params
    ranks = ranks_of(model.layers, lora)
    adapted = [layer for layer in model.layers if layer.name in ranks]
    count = sum(ranks[layer.name] * (layer.in_features + layer.out_features) for layer in adapted)
    if lora.use_dora:
        count += sum(layer.out_features for layer in adapted)
    return model.head_params + count + _trained_biases(model, adapted, lora.bias)


def _trained_biases(model: ModelFacts, adapted: Iterable[Layer], bias: str) -> int:
    if bias == "all":
        return model.bias_params
    if bias == "lora_only":
        return sum(layer.out_features for layer in adapted if layer.has_bias)
    return 0
