"""One adapter, in PEFT's words. Pure; driver and worker share it."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Bias(enum.StrEnum):
    """Which biases of the base are trained with an adapter; PEFT's words."""

    NONE = "none"
    ALL = "all"
    LORA_ONLY = "lora_only"


class Init(enum.StrEnum):
    """How an adapter starts; PEFT's words."""

    DEFAULT = "default"
    """A uniform after Kaiming, B zero."""
    GAUSSIAN = "gaussian"
    """A normal with deviation 1 / r, B zero."""
    PISSA = "pissa"
    """Principal singular values of the weight, which is left with the rest. Source: arXiv 2404.02948."""
    OLORA = "olora"
    """QR decomposition of the weight, which is left with the rest. Source: arXiv 2406.01775."""
    EVA = "eva"
    """A from the singular vectors of the layer's inputs on training data, B zero. Source: arXiv 2410.07170."""
    LOFTQ = "loftq"
    """B A makes up for the error of quantization. Source: arXiv 2310.08659, one step on the quantized base."""

    @property
    def is_base_changed(self) -> bool:
        """Whether the adapter takes something out of the base weights."""
        return self in {Init.PISSA, Init.OLORA}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSpec:
    """One adapter, in PEFT's words. Which layers and ranks it means on a model is told by `tuner.layers`."""

    r: int
    """Rank of every target that `rank_pattern` does not name; at least 1."""
    lora_alpha: float
    """Scaling numerator at rank `r`."""
    lora_dropout: float
    """Probability in [0, 1)."""
    target_modules: tuple[str, ...]
    """`attention`, `mlp`, `all-linear`, or module names and dotted ends of them, such as `query` or `attention.output.dense`."""
    rank_pattern: tuple[tuple[str, int], ...] = ()
    """(selector, rank), a selector being a module, a group, a depth band, or `module@band`; rank 0 means "not adapted"."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead of alpha / r. Source: arXiv 2312.03732."""
    use_dora: bool = False
    """Learn each output's magnitude apart from its direction. Source: arXiv 2402.09353."""
    init_lora_weights: Init = Init.DEFAULT
    """How A and B start."""
    bias: Bias = Bias.NONE
    """Biases of the base that are trained too."""

    def alpha_at(self, r: int) -> float:
        """The alpha of a layer of rank `r`.

        LoRA keeps the factor on B A x the same for all layers, so that a rank of its own changes a layer's capacity alone;
        rsLoRA keeps alpha and lets the factor follow the rank, as its authors do.
        """
        return self.lora_alpha if self.use_rslora else self.lora_alpha / self.r * r

    def scaling_at(self, r: int) -> float:
        """The factor on B A x of a layer of rank `r`."""
        return self.alpha_at(r) / (math.sqrt(r) if self.use_rslora else r)
