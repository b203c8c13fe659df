"""The Python API: what `tuner` offers by name, without importing it all at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tuner


def printed_by(code: str) -> str:
    """What a fresh interpreter prints: which modules are loaded already decides what a lazy name finds."""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_the_names_offered_are_sorted_and_differ() -> None:
    assert sorted(set(tuner.__all__)) == tuner.__all__


@pytest.mark.parametrize("name", tuner.__all__)
def test_every_name_offered_resolves_and_is_callable(name: str) -> None:
    assert printed_by(f"import tuner; print(callable(tuner.{name}))") == "True"


def test_every_name_offered_can_be_imported_from_the_package() -> None:
    names = ", ".join(tuner.__all__)

    assert printed_by(f"from tuner import {names}; print(all(map(callable, ({names}))))") == "True"


def test_a_name_means_the_same_at_every_use() -> None:
    assert printed_by("import tuner; print(tuner.export is tuner.export)") == "True"


def test_dir_shows_every_name_offered() -> None:
    assert printed_by("import tuner; print(set(tuner.__all__) <= set(dir(tuner)))") == "True"


def test_an_unknown_name_is_an_attribute_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"^module 'tuner' has no attribute 'no_such_name'$"):
        _ = tuner.no_such_name

    assert not hasattr(tuner, "__wrapped__")


def test_importing_the_package_loads_none_of_its_modules() -> None:
    assert printed_by("import sys, tuner; print([name for name in sys.modules if name.startswith('tuner.')])") == "[]"
