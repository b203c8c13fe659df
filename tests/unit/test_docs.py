"""The pages that people read: what they show exists, and what is generated is up to date."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from ruamel.yaml import YAML

from tests.builders import make_config
from tuner.cli import app
from tuner.config import SweepConfig
from tuner.space_config import SpaceConfig
from tuner.sweep_file import load_sweep_file

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GENERATOR = runpy.run_path(str(ROOT / "docs" / "yaml_reference.py"))
REFERENCE = (ROOT / "docs" / "yaml-reference.md").read_text(encoding="utf-8")
PAGES = [page for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (page := ROOT / name).exists()]
PAGES += sorted((ROOT / "docs").glob("*.md"))

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)")
FENCE = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"(?:^|[;&|$(][ \t]*)make((?:[ \t]+[\w=./-]+)+)", re.MULTILINE)
TUNER = re.compile(r"(?:^|[;&|$(/]\s*)tuner +([a-z][\w-]*)", re.MULTILINE)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_of(markdown: str) -> str:
    """All that stands in code blocks and between backticks, one piece a line."""
    outside = FENCE.sub("", markdown)
    return "\n".join([*FENCE.findall(markdown), *CODE.findall(outside)])


def heading_anchors(markdown: str) -> set[str]:
    """Anchors as GitHub makes them: lower case, no punctuation, dashes for spaces."""
    titles = re.findall(r"^#+ +(.+)$", FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def yaml_examples(markdown: str) -> Iterator[tuple[str, Any]]:
    """Key and value of every line in the page's YAML blocks."""
    for line in filter(None, "\n".join(FENCE.findall(markdown)).splitlines()):
        yield from YAML(typ="safe", pure=True).load(line).items()


def test_the_yaml_reference_is_what_the_models_say() -> None:
    assert GENERATOR["reference"]() == REFERENCE, "run `python docs/yaml_reference.py`"


def test_the_yaml_reference_names_every_section_and_key() -> None:
    keys = [key for part in SweepConfig.model_json_schema()["$defs"].values() for key in part.get("properties", ())]

    assert [key for key in keys if f"`{key}`" not in REFERENCE and f".{key}`" not in REFERENCE] == []


def test_the_yaml_reference_shows_only_forms_that_a_sweep_accepts() -> None:
    space = make_config().search.space.model_dump()
    examples = list(yaml_examples(REFERENCE))

    for key, value in examples:
        SpaceConfig.model_validate(space | {key: value})
    assert len(examples) > 4


def test_a_schema_without_words_is_an_error() -> None:
    with pytest.raises(NotImplementedError, match="no words for"):
        GENERATOR["allowed"]({"type": "unheard of"}, {})


@each_page
def test_links_within_the_repository_resolve(page: Path) -> None:
    markdown = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(FENCE.sub("", markdown)) if "://" not in link and ":" not in link]
    files = {link: page.parent / link.partition("#")[0] for link in links if not link.startswith("#")}

    assert [link for link, file in files.items() if not file.exists()] == []


@each_page
def test_links_within_a_page_name_one_of_its_headings(page: Path) -> None:
    markdown = page.read_text(encoding="utf-8")
    anchors = [link.removeprefix("#") for link in LINK.findall(markdown) if link.startswith("#")]

    assert set(anchors) <= heading_anchors(markdown)


@each_page
def test_the_make_targets_shown_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = " ".join(MAKE.findall(code_of(page.read_text(encoding="utf-8")))).split()

    assert [word for word in shown if "=" not in word and not word.startswith("-") and word not in targets] == []


@each_page
def test_the_tuner_commands_shown_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})
    shown = TUNER.findall(code_of(page.read_text(encoding="utf-8")))

    assert [command for command in shown if command not in commands] == []
    assert "run" in commands


def test_the_sweep_that_the_readme_shows_is_valid(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown
    (tmp_path / "shown.yaml").write_text(shown.group(1), encoding="utf-8")

    assert load_sweep_file(tmp_path / "shown.yaml").name == "my-sweep"
