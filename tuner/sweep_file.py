"""Reads a sweep file into a SweepConfig, all problems at once and with lines; writes one back. Runs on the driver."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from tuner.addresses import without_secrets
from tuner.combinations import combination_problems
from tuner.config import Place, SweepConfig, is_folder_name
from tuner.dimensions import CHOICES, FIXED, RANGE, TAGS, Choices, Range
from tuner.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails


def load_sweep_file(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read and check a sweep file; nothing is started or written.

    Args:
        path: The YAML file.
        overrides: `key.key=value` each, put over what the file says; values are YAML.

    Raises:
        ConfigError: The file is missing, is no YAML, or says something that can't be; holds every problem.
    """
    document = _read(path)
    problems: list[Problem] = []
    for override in overrides:
        _override(document, override, file=str(path))
    sections = _sections(document, problems)
    problems += [
        Problem(key=_dotted(place), message=message, line=_line(document, place))
        for place, message in combination_problems(sections)
    ]
    if problems:
        raise ConfigError(str(path), tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return _with_paths(SweepConfig.model_validate(_plain(document)), lambda name: _absolute(name, path.parent))


def find_line(path: Path, key: str) -> int | None:
    """The line of a key in a sweep file, or of the deepest parent of it that the file has.

    Args:
        path: A file that `load_sweep_file` takes.
        key: Dotted.
    """
    return _line(_read(path), tuple(key.split(".")))


def write_sweep_file(config: SweepConfig, path: Path) -> None:
    """Write the sweep as resolved, defaults included; paths nearby become relative to the file."""
    path.write_text(sweep_text(config, lambda name: _relative(name, path.parent)), encoding="utf-8")


def sweep_text(config: SweepConfig, path_text: Callable[[str], str]) -> str:
    """The sweep as resolved, defaults included, as YAML.

    Args:
        config: The sweep.
        path_text: How an absolute path is to be written.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(_with_paths(config, path_text).model_dump(mode="json"), stream)
    return stream.getvalue()


def _read(path: Path) -> CommentedMap:
    try:
        document = _parse(_text(path))
    except OSError as error:
        raise _unreadable(path, f"can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _unreadable(path, "can't be read: is not UTF-8 text") from error
    except YAMLError as error:
        raise _unreadable(path, f"is not valid YAML: {_reason(error)}", _line_of(error)) from error
    if not isinstance(document, CommentedMap):
        keys = ", ".join(SweepConfig.model_fields)
        raise _unreadable(path, f"must be a mapping with the keys {keys}, got {_shown(_plain(document))}")
    return document


def _text(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(LARGEST_BYTES + 1)  # not all: it may be a device, or a model by mistake
    if len(data) > LARGEST_BYTES:
        raise _unreadable(path, f"is larger than {LARGEST_BYTES:,} bytes, which no sweep file is")
    return data.decode("utf-8")


def _parse(text: str) -> object:
    """Read YAML 1.2, where 2e-4 is a number and `no` a word (PyYAML reads 1.1).

    Raises:
        YAMLError: Also where ruamel lets errors of Python through, as for `2001-13-45`, `-_` and `!!set x`.
    """
    try:
        node = YAML(typ="rt").load(text)
        if _size(node, {}) > MOST_VALUES:
            message = f"it has more than {MOST_VALUES:,} values once its aliases are written out"
            raise YAMLError(message)
        repr(_plain(node))  # fails here, and not later: a node that holds itself, a hexadecimal number too long to show
    except RecursionError as error:
        message = "it is nested too deep, or holds itself"
        raise YAMLError(message) from error
    except (ValueError, LookupError, AttributeError) as error:
        message = f"a value can't be read ({error})"
        raise YAMLError(message) from error
    return cast("object", node)


def _size(node: object, known: dict[int, int]) -> int:
    """Values in a document, those behind aliases as often as they are named; each is looked at once."""
    if not isinstance(node, (Mapping, list, tuple)):
        return 1
    if id(node) not in known:
        known[id(node)] = 1
        parts = [*node, *node.values()] if isinstance(node, Mapping) else node
        known[id(node)] += sum(_size(part, known) for part in parts)
    return known[id(node)]


LARGEST_BYTES, MOST_VALUES = 2**20, 100_000
"""Far above any sweep; a few lines of aliases of aliases can stand for billions of values."""


def _unreadable(path: Path, message: str, line: int | None = None) -> ConfigError:
    return ConfigError(str(path), (Problem(key="", message=message, line=line),))


def _reason(error: YAMLError) -> str:
    if not isinstance(error, MarkedYAMLError) or not error.problem:
        return str(error).splitlines()[0]
    needs_context = error.context and error.problem.startswith("but ")
    return f"{error.context}, {error.problem}" if needs_context else error.problem


def _line_of(error: YAMLError) -> int | None:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return mark.line + 1 if mark else None


def _override(document: CommentedMap, override: str, *, file: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        message = f"--set takes key.key=value, got {without_secrets(override)!r}"
        raise ConfigError(file, (Problem(key="", message=message),))
    *parents, last = key.split(".")
    node: Any = document
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    try:
        node[last] = _plain(_parse(text))  # plain, because the lines of `text` are not lines of the file
    except YAMLError as error:
        message = f"--set takes a YAML value, got {without_secrets(text)!r}"
        raise ConfigError(file, (Problem(key=key, message=message),)) from error


def _sections(document: CommentedMap, problems: list[Problem]) -> dict[str, object]:
    """Check each section by itself, so that one bad section hides nothing of the others."""
    try:
        config = SweepConfig.model_validate(_plain(document))
    except ValidationError as error:
        problems += [_problem(document, detail) for detail in error.errors(include_url=False) if not _is_echo(detail)]
    else:
        return dict(config)
    return dict(_valid_sections(document))


def _valid_sections(document: CommentedMap) -> Iterator[tuple[str, object]]:
    for name, field in SweepConfig.model_fields.items():
        if name not in document and field.is_required():
            continue
        raw = _plain(document[name]) if name in document else field.get_default()
        try:
            yield name, TypeAdapter(field.rebuild_annotation()).validate_python(raw)
        except ValidationError:
            continue  # told already, by the whole


def _problem(document: CommentedMap, detail: ErrorDetails) -> Problem:
    place = _place(detail)
    return Problem(key=_dotted(place), message=_message(detail), line=_line(document, place))


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because its entries, each told already, are wrong."""
    return detail["type"] == "too_short" and isinstance(detail["input"], (list, dict)) and bool(detail["input"])


def _place(detail: ErrorDetails) -> Place:
    """Where in the file: pydantic's own marks left out, and the mapping in place of an empty key in it."""
    place = tuple(part for part in detail["loc"] if part not in TAGS)
    return place[:-2] if place[-1:] == (_IN_KEY,) else place


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"])
    last = detail["loc"][-1] if detail["loc"] else ""  # the file itself, where a key of it is no text
    limits = {
        name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in detail.get("ctx", {}).items()
    }
    message = _MESSAGES.get(detail["type"], "{text}, got {got}").format_map(
        limits
        | {
            "text": detail["msg"].replace("Input should", "must"),
            "got": _shown(detail["input"]),
            "or_searched": _OR_SEARCHED if last == FIXED else "",
            "or_sets": _OR_SETS if last == FIXED else "",
        }
    )
    return f"each key {message}" if last == _IN_KEY else message


_IN_KEY = "[key]"
"""Pydantic's mark for a problem with a mapping's key."""
_OR_SEARCHED = ", {choices: [...]} or {low: ..., high: ...}"
_OR_SETS = " or {choices: {name: [...], ...}}"
_MESSAGES = {
    "missing": "is missing",
    "combination": "{text}",
    "greater_than_equal": "must be at least {ge}, got {got}",
    "greater_than": "must be above {gt}, got {got}",
    "less_than_equal": "must be at most {le}, got {got}",
    "less_than": "must be below {lt}, got {got}",
    "finite_number": "must be a finite number, got {got}",
    "literal_error": "must be {expected}, got {got}",
    "string_pattern_mismatch": "must be letters, digits, `.`, `-` and `_`, a letter or digit first, got {got}",
    "string_too_long": "must be at most {max_length} characters long, got {got}",
    "string_too_short": "must not be empty, got {got}",
    "too_short": "must hold at least {min_length} entry, got {got}",
    "int_type": "must be a whole number{or_searched}, got {got}",
    "int_from_float": "must be a whole number{or_searched}, got {got}",
    "float_type": "must be a number{or_searched}, got {got}",
    "bool_type": "must be true or false, got {got}",
    "string_type": "must be text, got {got}",
    "string_unicode": "must be valid text, got {got}",
    "tuple_type": "must be a list{or_sets}, got {got}",
    "dict_type": "must be a mapping, got {got}",
    "model_type": "must be a mapping, got {got}",
    "model_attributes_type": "must be a mapping, got {got}",
}
"""Kind of pydantic's error -> what a person reads."""

_LONGEST_SHOWN = 80


def _shown(value: object) -> str:
    """A value as the file has it, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = without_secrets(repr(value if isinstance(value, (int, float, str, list, dict)) else str(value)))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _unknown_key(loc: Place) -> str:
    known = _keys_at(loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"is no known key; {hint}known here: {', '.join(known)}"


def _keys_at(loc: Place) -> list[str]:
    """The keys that the models allow at a place, which pydantic's marks may end."""
    if loc[-1:] == (RANGE,):
        return [*Range.model_fields, *Choices.model_fields]
    if loc[-1:] == (CHOICES,):
        return list(Choices.model_fields)
    model: type[BaseModel] = SweepConfig
    for part in loc:
        model = cast("type[BaseModel]", model.model_fields[str(part)].annotation)
    return list(model.model_fields)


def _line(document: object, place: Place) -> int | None:
    """The line of a key, or of the deepest parent of it that the file has."""
    line = None
    for part in place:
        if not isinstance(document, (CommentedMap, CommentedSeq)) or part not in (document.lc.data or {}):
            break
        line = document.lc.data[part][0] + 1
        document = document[part]
    return line


def _plain(node: object) -> object:
    """The document without ruamel's types, which pydantic's strict mode does not take."""
    match node:
        case Mapping():
            return {str(key): _plain(value) for key, value in node.items()}
        case list() | tuple():
            return [_plain(value) for value in node]
        case bool() | ScalarBoolean():
            return bool(node)
        case int() | float() | str():
            return next(plain(node) for plain in (int, float, str) if isinstance(node, plain))
        case TaggedScalar():
            return str(node.value)  # a tag of one's own means nothing here
        case _:
            return node


def _with_paths(config: SweepConfig, resolve: Callable[[str], str]) -> SweepConfig:
    model, data = config.model, config.data
    if is_folder_name(model.name):
        model = model.model_copy(update={"name": resolve(model.name)})
    if model.config is not None and is_folder_name(model.config):
        model = model.model_copy(update={"config": resolve(model.config)})
    if data.path is not None:
        data = data.model_copy(update={"path": resolve(data.path)})
    return config.model_copy(update={"model": model, "data": data})


def _absolute(name: str, folder: Path) -> str:
    return os.path.normpath(folder.absolute() / os.path.expanduser(name))  # noqa: PTH111 -- Path's raises on ~nobody


def _relative(name: str, folder: Path) -> str:
    folder = folder.absolute()
    if os.path.commonpath([name, folder]) == folder.anchor:
        return name
    path = os.path.relpath(name, folder)
    return path if path == ".." or path.startswith("../") else f"./{path}"
