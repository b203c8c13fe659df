"""The choices of a search as a sweep file gives them: the `search.space` section. Driver and worker read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tuner.dimensions import Dimension, ModuleName, Option, Section, TargetChoices, Targets

Rank = Annotated[int, Field(ge=1)]
RankOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
InitName = Literal["default", "gaussian", "pissa", "olora", "eva", "loftq"]
BiasName = Literal["none", "all", "lora_only"]


class SpaceConfig(Section):
    """The choices: each a fixed value, `{choices: [...]}` or `{low: ..., high: ...}`."""

    r: Dimension[Rank]
    """Rank of the modules that `rank_pattern` does not name."""
    lora_scale: Dimension[Positive] | None = None
    """alpha / r; 2 by default. All modules have the same, and `lora_alpha` follows from it."""
    lora_alpha: Dimension[Positive] | None = None
    """Instead of `lora_scale`: alpha itself, at rank `r`; modules with ranks of their own keep alpha / r."""
    lora_dropout: Dimension[Probability] = 0.0
    """Dropout on the adapter's input."""
    learning_rate: Dimension[Positive]
    """Peak learning rate."""
    weight_decay: Dimension[NotNegative] = 0.0
    """AdamW's decoupled weight decay; not on biases and norms."""
    lora_plus_ratio: Dimension[Annotated[float, Field(ge=1)]] = 1.0
    """Learning rate of B over that of A; above 1 it is LoRA+."""
    use_rslora: Option[bool] = False
    """Scale by alpha / sqrt(r), with the same alpha for all modules."""
    use_dora: Option[bool] = False
    """Learn magnitude and direction apart (DoRA): more time and memory."""
    init_lora_weights: Option[InitName] = "default"
    """How adapters start. `pissa` and `olora` need `model.quantization: none`, `loftq` needs nf4 or fp4."""
    bias: Option[BiasName] = "none"
    """Biases of the base that are trained too."""
    target_modules: Targets
    """What is adapted: `all-linear`, `attention`, `mlp`, module names or dotted ends of them; one alone needs no list."""
    rank_pattern: dict[ModuleName, Dimension[RankOrNone]] = {}  # noqa: RUF012 -- pydantic gives each its own
    """Ranks of their own: by module, by `attention` or `mlp`, by depth (`first`, `middle`, `last` third),
    or `module@depth`; 0 means "not adapted". The most precise key wins."""

    def target_sets(self) -> dict[str, tuple[str, ...]]:
        """Name -> modules of every set that may be chosen; a fixed list is named by its modules."""
        if isinstance(self.target_modules, TargetChoices):
            return dict(self.target_modules.choices)
        return {"+".join(self.target_modules): self.target_modules}
