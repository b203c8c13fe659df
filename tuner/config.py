"""What a sweep file may say: one model per section, and the checks that span sections. Driver and worker read it.

The docstring under a field is also its line in the YAML reference (`docs/yaml-reference.md`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType

if TYPE_CHECKING:
    from collections.abc import Iterator


class Section(BaseModel):
    """A mapping in the sweep file: frozen, no unknown keys, no silent conversions, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Place = tuple[str | int, ...]
"""Keys from the top of the file down; the number of an entry in a list."""
Number = TypeVar("Number", int, float)


class Range(Section, Generic[Number]):
    """Every value from `low` to `high`, both included."""

    low: Number
    """Smallest value."""
    high: Number
    """Largest value; above `low`."""
    log: bool = False
    """Sample on a logarithmic scale."""
    step: Number | None = None
    """Distance between neighbouring values; divides `high - low`, not together with `log`."""

    @model_validator(mode="after")
    def _ordered(self) -> Range[Number]:
        if self.low >= self.high:
            raise _wrong("low must be below high, got low={low}, high={high}", low=self.low, high=self.high)
        if self.log and self.low <= 0:
            raise _wrong("low must be above 0 with log: true, got {low}", low=self.low)
        if self.log and self.step is not None:
            raise _wrong("step can't be used with log: true, got step={step}", step=self.step)
        if self.step is not None and self.step <= 0:
            raise _wrong("step must be above 0, got {step}", step=self.step)
        if self.step is not None and not _is_reached(self.high, self.low, self.step):
            raise _wrong(
                "step must divide high - low, so that high is reached, got low={low}, high={high}, step={step}",
                low=self.low,
                high=self.high,
                step=self.step,
            )
        return self


class Choices(Section, Generic[Number]):
    """One of the values listed."""

    choices: Annotated[tuple[Number, ...], Field(strict=False, min_length=1)]
    """At least one value, none twice."""

    @model_validator(mode="after")
    def _distinct(self) -> Choices[Number]:
        if len(set(self.choices)) < len(self.choices):
            raise _wrong("choices must differ from each other, got {choices}", choices=list(self.choices))
        return self


def _is_reached(high: float, low: float, step: float) -> bool:
    # The numbers as written: three steps of 0.1 reach 0.3 for a person, and not in binary.
    return (Fraction(repr(high)) - Fraction(repr(low))) % Fraction(repr(step)) == 0


def _wrong(template: str, **values: object) -> PydanticCustomError:
    return PydanticCustomError("combination", template, values)


RANGE, CHOICES, FIXED = "<range>", "<choices>", "<fixed>"
TAGS = frozenset({RANGE, CHOICES, FIXED})
"""Markers that pydantic puts into the places of its errors; not part of any key."""


def _form(raw: object) -> str:
    if isinstance(raw, (Choices, TargetChoices)) or (isinstance(raw, dict) and "choices" in raw):
        return CHOICES
    return RANGE if isinstance(raw, (dict, Range)) else FIXED


# A plain alias would leave the limits of `Dimension[Rank]` out of Range and Choices: `typing` does not look into them.
Dimension = TypeAliasType(
    "Dimension",
    Annotated[
        Annotated[Range[Number], Tag(RANGE)] | Annotated[Choices[Number], Tag(CHOICES)] | Annotated[Number, Tag(FIXED)],
        Discriminator(_form),
    ],
    type_params=(Number,),
)
"""A fixed value, `{choices: [...]}`, or `{low: ..., high: ..., log: ..., step: ...}`."""

ModuleName = Annotated[str, Field(min_length=1)]
SetName = Annotated[str, Field(min_length=1)]
ModuleNames = Annotated[tuple[ModuleName, ...], Field(strict=False, min_length=1)]
Rank = Annotated[int, Field(ge=1)]
RankOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class TargetChoices(Section):
    """One of several named sets of modules."""

    choices: Annotated[dict[SetName, ModuleNames], Field(min_length=1)]
    """Name of the set -> module names; the report shows the name."""


Targets = Annotated[
    Annotated[TargetChoices, Tag(CHOICES)] | Annotated[ModuleNames, Tag(FIXED)],
    Discriminator(lambda raw: CHOICES if isinstance(raw, (dict, TargetChoices)) else FIXED),
]


class ModelConfig(Section):
    """The base model, frozen in every trial."""

    name: Annotated[str, Field(min_length=1)]
    """A folder, starting with `./`, `../`, `/` or `~` (relative to this file), or else a hub id such as `org/model`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    quantization: Literal["nf4", "none"] = "nf4"
    """How the frozen linear layers are stored: `nf4` is QLoRA, `none` is plain LoRA."""
    double_quantization: bool = True
    """Quantize the NF4 scales too (0.4 bits a parameter less)."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations; `auto` is bfloat16 on a GPU that has it, else float32."""


class DataConfig(Section):
    """Labelled examples: one file, split by a hash of the text, so that every run splits alike."""

    path: Annotated[str, Field(min_length=1)]
    """A .jsonl, .json, .csv or .parquet file, .gz allowed on the first three (relative to this file)."""
    text: str = "text"
    """Column with the input text."""
    label: str = "label"
    """Column with the class."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Longest input in tokens; the rest is cut off."""
    validation: Annotated[int, Field(ge=1)]
    """Examples for validation: all decisions are made on these."""
    test: Annotated[int, Field(ge=0)] = 0
    """Examples put aside, which no decision sees."""


class TrainingConfig(Section):
    """What all trials share."""

    task: Literal["classification"] = "classification"
    """What is learned."""
    max_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps of a full trial."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in a step."""
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples in a forward pass of an evaluation."""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Start of every random draw in training; the same for all trials, so that none wins by its seed."""


class SpaceConfig(Section):
    """The choices: each a fixed value, `{choices: [...]}` or `{low: ..., high: ...}`."""

    r: Dimension[Rank]
    """Rank of the modules that `rank_pattern` does not name."""
    lora_scale: Dimension[Positive] = 2.0
    """alpha / r, the factor on the adapter's output; `lora_alpha` follows from it."""
    lora_dropout: Dimension[Probability] = 0.0
    """Dropout on the adapter's input."""
    learning_rate: Dimension[Positive]
    """Peak learning rate."""
    target_modules: Targets
    """Linear modules to adapt, by name or dotted end of the name: a list, or `{choices: {name: list, ...}}`."""
    rank_pattern: dict[ModuleName, Dimension[RankOrNone]] = {}
    """Ranks of their own for single target modules; 0 means "not adapted"."""

    def target_sets(self) -> dict[str, tuple[str, ...]]:
        """Name -> modules of every set that may be chosen; a fixed list is named by its modules."""
        if isinstance(self.target_modules, TargetChoices):
            return dict(self.target_modules.choices)
        return {"+".join(self.target_modules): self.target_modules}


class SearchConfig(Section):
    """How the space is searched."""

    num_trials: Annotated[int, Field(ge=1)]
    """Trials in all, stopped and failed ones included."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Start of the sampler's draws."""
    space: SpaceConfig
    """The choices."""


class ObjectivesConfig(Section):
    """What the front weighs against each other."""

    accuracy: Literal["accuracy"] = "accuracy"
    """Validation metric to maximise."""
    trainable_params: bool = True
    """Minimise the trainable parameters."""
    memory: bool = True
    """Minimise the peak memory of training."""


class PruningConfig(Section):
    """When a trial is stopped early."""

    method: Literal["pareto", "none"] = "pareto"
    """`pareto` stops a trial if another at the same rung costs no more and is better beyond the noise."""
    min_steps: Annotated[int, Field(ge=1)] | None = None
    """First rung, in steps; a quarter of `training.max_steps` by default."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Each rung is this many times the one before."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """How sure it must be that the other trial is the better one, given the size of the validation data."""


class ResourcesConfig(Section):
    """What a trial gets, and how trials are placed."""

    backend: Literal["ray", "local"] = "ray"
    """`ray` runs trials side by side on this machine or a cluster, `local` one after another in this process."""
    cpus_per_trial: Annotated[float, Field(gt=0)] = 1.0
    """CPU cores of a trial; fractions share a core."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a trial; fractions share a card, above 1 whole cards only."""
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    """Most trials at a time; as many as the cluster holds by default."""
    max_worker_restarts: Annotated[int, Field(ge=0)] = 2
    """How often a trial goes on from its last rung after its worker was lost."""
    max_failures_in_a_row: Annotated[int, Field(ge=1)] = 5
    """The sweep ends when this many trials fail one after another."""


class SweepConfig(Section):
    """One sweep file. Paths are absolute once it is loaded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the sweep's folder, `reports/<name>`: letters, digits, dots, dashes and underscores."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig
    objectives: ObjectivesConfig = ObjectivesConfig()
    pruning: PruningConfig = PruningConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which trials are evaluated, rising; the last is `training.max_steps`."""
        last = self.training.max_steps
        step = self.pruning.min_steps or max(1, last // 4)
        rungs = []
        while step < last:
            rungs.append(step)
            step *= self.pruning.reduction_factor
        return (*rungs, last)


def is_folder_name(name: str) -> bool:
    """Tell a model folder from a hub id by its first characters."""
    return name in {".", ".."} or name.startswith(("./", "../", "/", "~"))


def combination_problems(sections: dict[str, Section]) -> Iterator[tuple[Place, str]]:
    """Yield (place, message) for values that are right alone and impossible together.

    Args:
        sections: Section name -> parsed section, those that failed their own checks left out.
    """
    training, pruning = sections.get("training"), sections.get("pruning")
    if isinstance(training, TrainingConfig) and isinstance(pruning, PruningConfig):
        yield from _rung_problems(training, pruning)
    if isinstance(search := sections.get("search"), SearchConfig):
        yield from _space_problems(search.space)
    if isinstance(resources := sections.get("resources"), ResourcesConfig):
        yield from _resource_problems(resources)


def _rung_problems(training: TrainingConfig, pruning: PruningConfig) -> Iterator[tuple[Place, str]]:
    if pruning.min_steps is not None and pruning.min_steps > training.max_steps:
        yield (
            ("pruning", "min_steps"),
            f"must be at most training.max_steps ({training.max_steps}), got {pruning.min_steps}",
        )


def _space_problems(space: SpaceConfig) -> Iterator[tuple[Place, str]]:
    place = ("search", "space", "rank_pattern")
    sets = space.target_sets()
    known = sorted({module for modules in sets.values() for module in modules})
    for module in space.rank_pattern:
        if module not in known:
            yield (*place, module), f"must name one of the target_modules ({', '.join(known)})"
    for name, modules in sets.items():
        if all(_may_be_zero(space.rank_pattern.get(module)) for module in modules):
            yield (
                place,
                f"all modules of {name} may get rank 0 together, so that nothing is adapted; let one start at 1",
            )


def _may_be_zero(dimension: Range[int] | Choices[int] | int | None) -> bool:
    match dimension:
        case None:
            return False
        case Range():
            return dimension.low == 0
        case Choices():
            return 0 in dimension.choices
        case _:
            return dimension == 0


def _resource_problems(resources: ResourcesConfig) -> Iterator[tuple[Place, str]]:
    gpus = resources.gpus_per_trial
    if gpus > 1 and gpus != int(gpus):
        yield ("resources", "gpus_per_trial"), f"must be whole above 1 (fractions share one card), got {gpus}"
