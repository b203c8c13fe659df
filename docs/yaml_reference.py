"""Writes docs/yaml-reference.md from the models in tuner/config.py: `python docs/yaml_reference.py`. Run by hand.

Every word of it about a key comes from the model: the docstring under a field, its type, its limits and its default.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.config import SweepConfig
from tuner.dimensions import Choices, Range, Section, TargetChoices

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Schema = dict[str, Any]
"""A JSON schema as pydantic writes it."""
SECTIONS = {section.__name__: section for section in Section.__subclasses__()}

PAGE = Path(__file__).with_name("yaml-reference.md")

KINDS = {"integer": "whole number", "number": "number", "string": "text"}
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}

INTRODUCTION = """\
<!-- Written by docs/yaml_reference.py from tuner/config.py; change it there. -->

# The sweep file

One YAML file says all about a sweep: the model, the data, the choices, and what a trial gets. `tuner validate FILE`
checks a file and starts nothing; `--set key.key=value` puts a value over the file's for one run. A key that is not on
this page is an error, and so is a value of another type than the one given here.
"""

FORMS = """\
## Forms of a dimension

A key of `search.space` holds one value for all trials, or says what to choose from:

```yaml
r: 8                                              # fixed: every trial has it
r: {choices: [4, 8, 16]}                          # choices: one of these
r: {low: 4, high: 32, step: 4}                    # range: 4, 8, ..., 32
learning_rate: {low: 1e-4, high: 1e-2, log: true} # range, sampled on a logarithmic scale
```

The limits of a key hold for each of its choices, and for both ends of a range. `target_modules` chooses between sets of
modules, which have names:

```yaml
target_modules: [query, value]
target_modules: all-linear
target_modules: {choices: [attention, mlp, all-linear]}
target_modules: {choices: {qv: [query, value], mlp: [intermediate.dense]}}
```

A key of `rank_pattern` is a module, a dotted end of one, a group, a band of the depth, or the first two within a band:

```yaml
rank_pattern: {query: {choices: [4, 8]}, mlp: {low: 0, high: 4}, first: 2, query@last: 16}
```
"""


def reference() -> str:
    """The page, in Markdown."""
    schema = SweepConfig.model_json_schema()
    sections = "\n".join(_sections(schema, schema["$defs"], ()))
    forms = "\n".join(
        (
            _form("Range", Range[float]),
            _form("Choices", Choices[float]),
            _form("Choices of `target_modules`", TargetChoices),
        )
    )
    return f"{INTRODUCTION}\n{sections}\n{FORMS}\n{forms}"


def _sections(section: Schema, defs: Schema, place: tuple[str, ...]) -> Iterator[str]:
    """A chapter for a section, then one for each section inside it."""
    inner = {key: _section_behind(field, defs) for key, field in section["properties"].items()}
    leaves = {key: field for key, field in section["properties"].items() if inner[key] is None}
    title = f"`{'.'.join(place)}`" if place else "Top of the file"
    table = _table(leaves, section.get("required", []), defs, meanings(SECTIONS[section["title"]]))
    yield f"## {title}\n\n{section['description']}\n\n{table}"
    for key, schema in inner.items():
        if schema is not None:
            yield from _sections(schema, defs, (*place, key))


def _section_behind(field: Schema, defs: Schema) -> Schema | None:
    name = field.get("$ref", "").removeprefix("#/$defs/")
    return defs[name] if name.endswith("Config") else None


def _form(title: str, model: type[Section]) -> str:
    schema = model.model_json_schema()
    table = _table(schema["properties"], schema["required"], schema.get("$defs", {}), meanings(model))
    return f"### {title}\n\n{inspect.getdoc(model)}\n\n{table}"


def meanings(model: type[Section]) -> dict[str, str]:
    """The docstring under each field. Pydantic can read them too, but then does it whenever a sweep file is read: 0.2 s."""
    found = {}
    for kind in reversed([one for one in model.__mro__ if issubclass(one, Section)]):
        origin = kind.__pydantic_generic_metadata__["origin"] or kind
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(origin))).body
        for field, text in itertools.pairwise(tree.body):  # type: ignore[attr-defined]  # of a class
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = inspect.cleandoc(words)
    return found


def _table(fields: Schema, required: list[str], defs: Schema, means: Mapping[str, str]) -> str:
    rows = ["| key | allowed | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = "required" if key in required else _value(field["default"])
        cells = (f"`{key}`", allowed(field, defs), default, means[key].replace("\n", " "))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _value(value: object) -> str:
    return "not set" if value is None else f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def allowed(field: Schema, defs: Schema) -> str:
    """What a person may write for a key.

    Raises:
        NotImplementedError: The schema has a form that this page has no words for yet.
    """
    field = _followed(field, defs)
    match field:
        case {"anyOf": list(forms)} | {"oneOf": list(forms)}:
            return "; or ".join(allowed(form, defs) for form in _simplest_first(forms, defs))
        case {"type": "array", "items": dict(items)}:
            return f"list of {'at least one' if field.get('minItems') else 'any number'}: {allowed(items, defs)}"
        case {"type": "object"}:
            return _mapping(field, defs)
        case _:
            return _scalar(field)


def _followed(field: Schema, defs: Schema) -> Schema:
    name = field.get("$ref", "").removeprefix("#/$defs/")
    return _followed(defs[name], defs) if name else field


def _simplest_first(forms: list[Schema], defs: Schema) -> list[Schema]:
    """A value, then mappings with ever more keys. Null is left out: the default says "not set"."""
    followed = [_followed(form, defs) for form in forms]
    return sorted((form for form in followed if form.get("type") != "null"), key=lambda f: len(f.get("properties", ())))


def _scalar(field: Schema) -> str:
    match field:
        case {"const": value}:
            return f"`{value}`"
        case {"enum": list(values)}:
            return " or ".join(f"`{value}`" for value in values)
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "integer" | "number" | "string" as kind}:
            return ", ".join((KINDS[kind], *_limits(field)))
    msg = f"no words for {field}"
    raise NotImplementedError(msg)


def _limits(field: Schema) -> Iterator[str]:
    bounds = [words.format(field[limit]) for limit, words in BOUNDS.items() if limit in field]
    if bounds:
        yield " and ".join(bounds)
    if "pattern" in field:
        yield f"matching `{field['pattern']}`"
    elif "minLength" in field:
        yield "not empty"


def _mapping(field: Schema, defs: Schema) -> str:
    match field:
        case {"properties": {"low": _} as keys}:
            return f"`{{{', '.join(keys)}}}`"
        case {"properties": {"choices": {"type": "array"}}}:
            return "`{choices: [...]}`"
        case {"properties": {"choices": {"type": "object"}}}:
            return "`{choices: {name: [...], ...}}`"
        case {"additionalProperties": dict(values)}:
            return f"mapping from a name to: {allowed(values, defs)}"
    msg = f"no words for {field}"
    raise NotImplementedError(msg)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}")
