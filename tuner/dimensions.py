"""The forms that a value in a sweep file may take: one value, choices, a range, named sets of targets. Runs on the driver."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypeAliasType


class Section(BaseModel):
    """A mapping in the sweep file: frozen, no unknown keys, no silent conversions, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


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
            raise wrong("low must be below high, got low={low}, high={high}", low=self.low, high=self.high)
        if self.log and self.low <= 0:
            raise wrong("low must be above 0 with log: true, got {low}", low=self.low)
        if self.log and self.step is not None:
            raise wrong("step can't be used with log: true, got step={step}", step=self.step)
        if self.step is not None and self.step <= 0:
            raise wrong("step must be above 0, got {step}", step=self.step)
        if self.step is not None and not _is_reached(self.high, self.low, self.step):
            raise wrong(
                "step must divide high - low, so that high is reached, got low={low}, high={high}, step={step}",
                low=self.low,
                high=self.high,
                step=self.step,
            )
        return self


class Choices(Section, Generic[Value]):
    """One of the values listed."""

    choices: Annotated[tuple[Value, ...], Field(strict=False, min_length=1)]
    """At least one value, none twice."""

    @model_validator(mode="after")
    def _distinct(self) -> Choices[Value]:
        if len(set(self.choices)) < len(self.choices):
            raise wrong("choices must differ from each other, got {choices}", choices=list(self.choices))
        return self


def _is_reached(high: float, low: float, step: float) -> bool:
    # The numbers as written: three steps of 0.1 reach 0.3 for a person, and not in binary.
    return (Fraction(repr(high)) - Fraction(repr(low))) % Fraction(repr(step)) == 0


def wrong(template: str, **values: object) -> PydanticCustomError:
    """An error whose words are ours."""
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

Option = TypeAliasType(
    "Option",
    Annotated[
        Annotated[Choices[Value], Tag(CHOICES)] | Annotated[Value, Tag(FIXED)],
        Discriminator(lambda raw: CHOICES if isinstance(raw, (dict, Choices)) else FIXED),
    ],
    type_params=(Value,),
)
"""A fixed value, or `{choices: [...]}`."""

ModuleName = Annotated[str, Field(min_length=1)]
ModuleNames = Annotated[
    tuple[ModuleName, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(lambda raw: (raw,) if isinstance(raw, str) else raw),
]


def _named(raw: object) -> object:
    """A list of targets as a mapping: each is a set with its own name."""
    if not isinstance(raw, list) or not raw or not all(isinstance(target, str) for target in raw):
        return raw
    if len(set(raw)) < len(raw):
        raise wrong("choices must differ from each other, got {choices}", choices=raw)
    return {target: [target] for target in raw}


class TargetChoices(Section):
    """One of several named sets of targets."""

    choices: Annotated[dict[ModuleName, ModuleNames], Field(min_length=1), BeforeValidator(_named)]
    """Name of the set -> targets; the report shows the name."""


Targets = Annotated[
    Annotated[TargetChoices, Tag(CHOICES)] | Annotated[ModuleNames, Tag(FIXED)],
    Discriminator(lambda raw: CHOICES if isinstance(raw, (dict, TargetChoices)) else FIXED),
]


def options_of(option: Choices[Value] | Value) -> tuple[Value, ...]:
    """Every value that an option may take."""
    return option.choices if isinstance(option, Choices) else (option,)
