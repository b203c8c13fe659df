"""Mutated example files, random YAML and YAML that is meant to hurt: a sweep or a ConfigError, and nothing built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sweeps import ROOT, write_sweep
from tuner.config import SweepConfig
from tuner.errors import ConfigError
from tuner.sweep_file import find_line, load_sweep_file

EXAMPLES = [file.read_bytes() for file in sorted((ROOT / "search_spaces").glob("*.yaml"))]
NUM_FUZZED = int(os.environ.get("TUNER_FUZZ", "60"))
"""Mutants a test; set it to run longer by hand."""
FUZZED = settings(
    max_examples=NUM_FUZZED,
    deadline=None,
    derandomize="TUNER_FUZZ" not in os.environ,
    suppress_health_check=[*HealthCheck],
)
PIECES = st.sampled_from(
    [b"", b"\n", b"\r", b"\x00", b"\t", b"  ", b": ", b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!!set ",
     b"{", b"}", b"[", b"]", b"'", b'"', b"|", b">", b"?", b"%", b"---\n", b"...\n", b"0x", b".inf", b"2001-13-45", b"9" * 5000,
     b"\xff\xfe", b"\xef\xbb\xbf", b"\\ud800", b"=", b"~", b"1e999", b"\xe2\x80\xa8"]
)  # fmt: skip


def loaded_or_told(file: Path) -> SweepConfig | str:
    """Any other error is the test's failure."""
    try:
        return load_sweep_file(file)
    except ConfigError as error:
        return str(error)


@FUZZED
@given(data=st.data())
def test_whatever_becomes_of_an_example_s_bytes_it_loads_or_its_problems_are_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    mutant = data.draw(st.sampled_from(EXAMPLES))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutant)))
        piece, num_gone = data.draw(PIECES | st.binary(max_size=3)), data.draw(st.integers(0, 8))
        mutant = mutant[:at] + piece + mutant[at + num_gone :]
    file = tmp_path_factory.getbasetemp() / "mutant.yaml"
    file.write_bytes(mutant)

    told = loaded_or_told(file)

    assert isinstance(told, SweepConfig) or str(file) in told


@FUZZED
@given(parts=st.lists(PIECES | st.sampled_from([b"name", b"model", b"search", b"space", b"r", b"x"]), max_size=25))
def test_random_yaml_is_told_to_be_no_sweep(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    file = tmp_path_factory.getbasetemp() / "random.yaml"
    file.write_bytes(b"".join(parts))

    assert str(file) in str(loaded_or_told(file))


def test_aliases_of_aliases_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    file = tmp_path / "laughs.yaml"
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    file.write_text("\n".join(lines))

    with pytest.raises(ConfigError, match=r"more than 100,000 values once its aliases are written out"):
        load_sweep_file(file)
    with pytest.raises(ConfigError, match=r"--set takes a YAML value"):
        load_sweep_file(write_sweep(tmp_path), [f"name={{{', '.join(lines)}}}"])


@pytest.mark.parametrize("size", [2**20 + 1, 2**24])
def test_a_file_that_is_far_too_large_is_told_without_being_read(tmp_path: Path, size: int) -> None:
    file = tmp_path / "large.yaml"
    file.touch()
    os.truncate(file, size)

    with pytest.raises(ConfigError, match="is larger than 1,048,576 bytes, which no sweep file is"):
        load_sweep_file(file)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:subprocess.Popen [['touch', '{marker}']]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
        "!!binary aGVsbG8=",
        "!include /etc/passwd",
        "!ENV ${{HOME}}",
    ],
)
def test_a_tag_builds_nothing(tmp_path: Path, tag: str) -> None:
    marker = tmp_path / "marker"
    file = write_sweep(tmp_path)
    text = file.read_text().replace("name: small", f"name: {tag.format(marker=marker)}")
    file.write_text(text)

    told = loaded_or_told(file)

    assert "name" in str(told)
    assert not isinstance(told, SweepConfig)
    assert not marker.exists()
    assert find_line(file, "name") is not None
