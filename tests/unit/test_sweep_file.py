"""What a sweep file may say, what a person reads when it says something else, and the way back to a file."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tuner.config import Choices, Range, SweepConfig
from tuner.errors import ConfigError, Problem
from tuner.sweep_file import load_sweep_file, write_sweep_file

BASE = """\
name: base
model:
  name: ./model
  quantization: nf4
data:
  path: rows.jsonl
  max_length: 48
  validation: 400
training:
  max_steps: 120
  batch_size: 16
search:
  num_trials: 16
  seed: 1
  space:
    r: {choices: [1, 2, 4]}
    lora_dropout: {low: 0.0, high: 0.2}
    learning_rate: {low: 5e-4, high: 1e-2, log: true}
    target_modules:
      choices:
        attention: [query, value]
        all: [query, value, output.dense]
    rank_pattern:
      output.dense: {choices: [0, 4]}
pruning:
  min_steps: 30
resources:
  cpus_per_trial: 1
"""

R = "r: {choices: [1, 2, 4]}"
DROPOUT = "lora_dropout: {low: 0.0, high: 0.2}"
LEARNING_RATE = "learning_rate: {low: 5e-4, high: 1e-2, log: true}"
TARGETS = """target_modules:
      choices:
        attention: [query, value]
        all: [query, value, output.dense]
"""
OUTPUT_RANK = "output.dense: {choices: [0, 4]}"
SPACE = "search.space"

WORDS_OF_PYDANTIC = ("should", "Input", "validation,", "Tuple", "dictionary", "<", "[key]")


def edited(old: str, new: str) -> str:
    assert BASE.count(old) == 1
    return BASE.replace(old, new)


def written(folder: Path, text: str = BASE) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_sweep_file(path, overrides)
    assert caught.value.file == str(path)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems), "a problem is one line"
    return caught.value.problems


@pytest.mark.parametrize(
    ("old", "new", "key", "line", "message"),
    [
        # sections and keys
        ("pruning:", "prunning:", "prunning", 25, "is no known key; did you mean 'pruning'? known here: name, model, data"),
        ("max_length: 48", "max_lenght: 48", "data.max_lenght", 7, "did you mean 'max_length'? known here: path, text"),
        ("  min_steps: 30", "  zzz: 30", "pruning.zzz", 26, "is no known key; known here: method, min_steps"),
        ("  validation: 400\n", "", "data.validation", 5, "is missing"),
        ("pruning:\n  min_steps: 30", "pruning:", "pruning", 25, "must be a mapping, got nothing"),
        ("pruning:\n  min_steps: 30", "pruning: [30]", "pruning", 25, "must be a mapping, got [30]"),
        ("name: base", "name: a/b", "name", 1, "must be letters, digits, `.`, `-` and `_`, a letter or digit first, got 'a/b'"),
        ("name: base", "name: .hidden", "name", 1, "a letter or digit first, got '.hidden'"),
        ("name: base", "name: 2024-01-01", "name", 1, "must be text, got '2024-01-01'"),
        ("quantization: nf4", "quantization: int8", "model.quantization", 4, "must be 'nf4' or 'none', got 'int8'"),
        ("rows.jsonl", "''", "data.path", 6, "must not be empty, got ''"),
        ("max_length: 48", "max_length: 2", "data.max_length", 7, "must be at least 4, got 2"),
        ("batch_size: 16", "batch_size: '16'", "training.batch_size", 11, "must be a whole number, got '16'"),
        ("batch_size: 16", "weight_decay: .inf", "training.weight_decay", 11, "must be a finite number, got inf"),
        ("batch_size: 16", "max_grad_norm: 0", "training.max_grad_norm", 11, "must be above 0, got 0"),
        ("num_trials: 16", "num_trials: 0", "search.num_trials", 13, "must be at least 1, got 0"),
        ("seed: 1", "seed: 2147483648", "search.seed", 14, "must be below 2147483648, got 2147483648"),
        ("cpus_per_trial: 1", "cpus_per_trial: -1", "resources.cpus_per_trial", 28, "must be above 0, got -1"),
        ("cpus_per_trial: 1", "cpus_per_trial: true", "resources.cpus_per_trial", 28, "must be a number, got true"),
        ("cpus_per_trial: 1", "gpus_per_trial: .inf", "resources.gpus_per_trial", 28, "must be a finite number, got inf"),
        ("min_steps: 30", "confidence: 1", "pruning.confidence", 26, "must be below 1, got 1"),
        # ranks
        (R, "r: 0", f"{SPACE}.r", 16, "must be at least 1, got 0"),
        (R, "r: 4.0", f"{SPACE}.r", 16, "must be a whole number, {choices: [...]} or {low: ..., high: ...}, got 4.0"),
        (R, "r: true", f"{SPACE}.r", 16, "must be a whole number, {choices: [...]} or {low: ..., high: ...}, got true"),
        (R, "r: [1, 2]", f"{SPACE}.r", 16, "{choices: [...]} or {low: ..., high: ...}, got [1, 2]"),
        (R, "r:", f"{SPACE}.r", 16, "{choices: [...]} or {low: ..., high: ...}, got nothing"),
        (R, "r: .nan", f"{SPACE}.r", 16, "must be a whole number, {choices: [...]} or {low: ..., high: ...}, got nan"),
        (R, "r: {low: 8, high: 4}", f"{SPACE}.r", 16, "low must be below high, got low=8, high=4"),
        (R, "r: {low: 4, high: 4}", f"{SPACE}.r", 16, "low must be below high, got low=4, high=4"),
        (R, "r: {low: 0, high: 4}", f"{SPACE}.r.low", 16, "must be at least 1, got 0"),
        (R, "r: {low: 1}", f"{SPACE}.r.high", 16, "is missing"),
        (R, "r: {low: 1, high: 9, step: 0}", f"{SPACE}.r.step", 16, "must be at least 1, got 0"),
        (R, "r: {low: 1, high: 9, log: true, step: 2}", f"{SPACE}.r", 16, "step can't be used with log: true, got step=2"),
        (R, "r: {low: 1, high: 8, step: 2}", f"{SPACE}.r", 16, "step must divide high - low, so that high is reached, got low=1"),
        (R, "r: {low: 1, high: 8, lgo: true}", f"{SPACE}.r.lgo", 16, "did you mean 'log'? known here: low, high, log, step, choices"),
        (R, "r: {choices: []}", f"{SPACE}.r.choices", 16, "must hold at least 1 entry, got []"),
        (R, "r: {choices: [4, 4]}", f"{SPACE}.r", 16, "choices must differ from each other, got [4, 4]"),
        (R, "r: {choices: [4, four]}", f"{SPACE}.r.choices.1", 16, "must be a whole number, got 'four'"),
        (R, "r: {choices: [4, 0]}", f"{SPACE}.r.choices.1", 16, "must be at least 1, got 0"),
        (R, "r: {choices: 4}", f"{SPACE}.r.choices", 16, "must be a list, got 4"),
        (R, "r: {choices: [4], low: 1}", f"{SPACE}.r.low", 16, "is no known key; known here: choices"),
        # numbers
        (DROPOUT, "lora_dropout: 1.0", f"{SPACE}.lora_dropout", 17, "must be below 1, got 1.0"),
        (DROPOUT, "lora_dropout: {low: 0.1, high: 1.0}", f"{SPACE}.lora_dropout.high", 17, "must be below 1, got 1.0"),
        (DROPOUT, "lora_dropout: {low: .nan, high: 0.1}", f"{SPACE}.lora_dropout.low", 17, "must be a finite number, got nan"),
        (DROPOUT, "lora_dropout: {low: 0, high: 0.1, log: true}", f"{SPACE}.lora_dropout", 17, "low must be above 0 with log: true, got 0"),
        (DROPOUT, "lora_dropout: {low: 0, high: 0.1, log: 1}", f"{SPACE}.lora_dropout.log", 17, "must be true or false, got 1"),
        (DROPOUT, "lora_scale: 0", f"{SPACE}.lora_scale", 17, "must be above 0, got 0"),
        (LEARNING_RATE, "learning_rate: -0.1", f"{SPACE}.learning_rate", 18, "must be above 0, got -0.1"),
        (LEARNING_RATE, "learning_rate: 1e999", f"{SPACE}.learning_rate", 18, "must be a finite number, got inf"),
        (LEARNING_RATE, "learning_rate: '2e-4'", f"{SPACE}.learning_rate", 18, "must be a number, {choices: [...]} or {low: ..., high: ...}, got '2e-4'"),
        # modules
        (TARGETS, "target_modules: query\n", f"{SPACE}.target_modules", 19, "must be a list or {choices: {name: [...], ...}}, got 'query'"),
        (TARGETS, "target_modules: []\n", f"{SPACE}.target_modules", 19, "must hold at least 1 entry, got []"),
        (TARGETS, "target_modules: [query, '']\n", f"{SPACE}.target_modules.1", 19, "must not be empty, got ''"),
        (TARGETS, "target_modules: {choices: {}}\n", f"{SPACE}.target_modules.choices", 19, "must hold at least 1 entry, got {}"),
        (TARGETS, "target_modules: {choices: [query]}\n", f"{SPACE}.target_modules.choices", 19, "must be a mapping, got ['query']"),
        ("[query, value]", "query", f"{SPACE}.target_modules.choices.attention", 21, "must be a list, got 'query'"),
        ("[query, value]", "[]", f"{SPACE}.target_modules.choices.attention", 21, "must hold at least 1 entry, got []"),
        ("[query, value]", "\n        - query\n        - 7", f"{SPACE}.target_modules.choices.attention.1", 23, "must be text, got 7"),
        ("attention:", "'':", f"{SPACE}.target_modules.choices", 20, "each key must not be empty, got ''"),
        # ranks of modules
        (OUTPUT_RANK, "key: 4", f"{SPACE}.rank_pattern.key", 24, "must name one of the target_modules (output.dense, query, value)"),
        (OUTPUT_RANK, "out.dense: 4", f"{SPACE}.rank_pattern.out.dense", 24, "must name one of the target_modules (output.dense"),
        (OUTPUT_RANK, "output.dense: -1", f"{SPACE}.rank_pattern.output.dense", 24, "must be at least 0, got -1"),
        (OUTPUT_RANK, "query: {low: 0, high: 4}\n      value: 0", f"{SPACE}.rank_pattern", 23, "all modules of attention may get rank 0"),
        (OUTPUT_RANK, "[output.dense]", f"{SPACE}.rank_pattern", 23, "must be a mapping, got ['output.dense']"),
        # sections against each other
        ("min_steps: 30", "min_steps: 121", "pruning.min_steps", 26, "must be at most training.max_steps (120), got 121"),
        ("cpus_per_trial: 1", "gpus_per_trial: 1.5", "resources.gpus_per_trial", 28, "must be whole above 1 (fractions share one card), got 1.5"),
    ],
)  # fmt: skip
def test_a_bad_value_is_told_with_its_key_line_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, key: str, line: int, message: str
) -> None:
    (problem,) = problems_of(written(tmp_path, edited(old, new)))

    assert (problem.key, problem.line) == (key, line)
    assert message in problem.message
    assert not any(word in problem.message for word in WORDS_OF_PYDANTIC)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "must be a mapping with the keys name, model, data, training, search"),
        ("# only a comment\n", None, "got nothing"),
        ("- name: base\n", None, "got [{'name': 'base'}]"),
        ("base\n", None, "got 'base'"),
        ("name: [", 1, "is not valid YAML: expected the node content"),
        ("name: base\n\tmodel: x\n", 2, "is not valid YAML: found character '\\t' that cannot start any token"),
        (f"{BASE}name: again\n", 29, 'is not valid YAML: found duplicate key "name"'),
        (f"{BASE}---\nname: again\n", 29, "expected a single document in the stream, but found another document"),
        ("name: *other\n", 1, "is not valid YAML: found undefined alias 'other'"),
        ("name: a\x01b\n", None, "is not valid YAML: unacceptable character #x0001"),
        ("name: 2024-13-01\n", None, "is not valid YAML: a value can't be read (month must be in 1..12"),
        ("name: !!bool x\n", None, "is not valid YAML: a value can't be read"),
    ],
)
def test_text_that_is_no_mapping_is_told_as_one_problem_of_the_whole_file(
    tmp_path: Path, text: str, line: int | None, message: str
) -> None:
    (problem,) = problems_of(written(tmp_path, text))

    assert (problem.key, problem.line) == ("", line)
    assert message in problem.message


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.yaml") == (Problem(key="", message="can't be read: No such file or directory"),)


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == (Problem(key="", message="can't be read: Is a directory"),)


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes("name: Größe\n".encode("latin-1"))

    assert problems_of(path) == (Problem(key="", message="can't be read: is not UTF-8 text"),)


def test_all_problems_are_told_at_once_by_rising_lines(tmp_path: Path) -> None:
    text = BASE.replace("name: base", "name: a b").replace(R, "r: 0").replace("max_steps: 120", "max_steps: 20")
    text = text.replace("cpus_per_trial: 1", "gpus_per_trial: 2.5").replace("num_trials", "num_trails")

    problems = problems_of(written(tmp_path, text))

    assert [(problem.key, problem.line) for problem in problems] == [
        ("name", 1),
        ("search.num_trials", 12),
        ("search.num_trails", 13),
        ("search.space.r", 16),
        ("pruning.min_steps", 26),
        ("resources.gpus_per_trial", 28),
    ]


def test_every_missing_section_is_told(tmp_path: Path) -> None:
    problems = problems_of(written(tmp_path, "name: base\n"))

    assert [problem.key for problem in problems] == ["model", "data", "training", "search"]


def test_a_range_written_as_choices_by_mistake_is_told_with_the_right_key(tmp_path: Path) -> None:
    problems = problems_of(written(tmp_path, edited(R, "r: {choises: [1, 2]}")))

    assert [problem.key for problem in problems] == [f"{SPACE}.r.low", f"{SPACE}.r.high", f"{SPACE}.r.choises"]
    assert "did you mean 'choices'?" in problems[-1].message


def test_a_set_of_modules_without_choices_is_told_with_the_right_key(tmp_path: Path) -> None:
    problems = problems_of(written(tmp_path, edited(TARGETS, "target_modules: {all: [query, value, output.dense]}\n")))

    assert [(problem.key, problem.message) for problem in problems] == [
        (f"{SPACE}.target_modules.choices", "is missing"),
        (f"{SPACE}.target_modules.all", "is no known key; known here: choices"),
    ]


def test_a_long_value_is_cut_in_its_message(tmp_path: Path) -> None:
    (problem,) = problems_of(written(tmp_path, edited("nf4", "x" * 1000)))

    assert len(problem.message) < 150


def test_a_file_without_problems_loads(tmp_path: Path) -> None:
    config = load_sweep_file(written(tmp_path))

    assert config.search.space.r == Choices[int](choices=(1, 2, 4))
    assert config.pruning.min_steps == 30
    assert config.training.warmup_ratio == 0.1


def test_exponents_are_numbers_with_and_without_a_dot(tmp_path: Path) -> None:
    config = load_sweep_file(written(tmp_path, edited("low: 5e-4, high: 1e-2", "low: 2e-4, high: 1.0E-2")))

    assert isinstance(config.search.space.learning_rate, Range)
    assert (config.search.space.learning_rate.low, config.search.space.learning_rate.high) == (0.0002, 0.01)


def test_a_step_that_fits_in_decimals_is_taken(tmp_path: Path) -> None:
    config = load_sweep_file(written(tmp_path, edited(DROPOUT, "lora_dropout: {low: 0.0, high: 0.3, step: 0.1}")))

    assert isinstance(config.search.space.lora_dropout, Range)
    assert config.search.space.lora_dropout.step == 0.1


def test_anchors_and_merges_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    text = edited("quantization: nf4", "double_quantization: &no false\n  compute_dtype: &type float32")
    text = text.replace("lora_dropout: {low", "lora_dropout: &dropout {low").replace(
        LEARNING_RATE, "learning_rate: {<<: *dropout, low: 0.1}"
    )

    config = load_sweep_file(written(tmp_path, text))

    assert config.model.double_quantization is False
    assert config.search.space.learning_rate == Range[float](low=0.1, high=0.2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./model", "{folder}/model"),
        ("../model", "{parent}/model"),
        ("..", "{parent}"),
        ("/models/x", "/models/x"),
        ("org/model", "org/model"),
        ("~/model", "/home/me/model"),
    ],
)
def test_a_model_folder_is_relative_to_the_file_and_a_hub_id_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    config = load_sweep_file(written(tmp_path, edited("./model", name)))

    assert config.model.name == expected.format(folder=tmp_path, parent=tmp_path.parent)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rows.jsonl", "{folder}/rows.jsonl"), ("../a/../rows.csv", "{parent}/rows.csv"), ("/data/x.csv", "/data/x.csv")],
)
def test_the_data_file_is_relative_to_the_sweep_file(tmp_path: Path, name: str, expected: str) -> None:
    config = load_sweep_file(written(tmp_path, edited("rows.jsonl", name)))

    assert config.data.path == expected.format(folder=tmp_path, parent=tmp_path.parent)


def test_paths_do_not_depend_on_how_the_file_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_sweep_file(written(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert load_sweep_file(Path("sweep.yaml")) == whole


def test_an_unknown_home_is_no_crash(tmp_path: Path) -> None:
    config = load_sweep_file(written(tmp_path, edited("./model", "~nobody-of-this-name/model")))

    assert config.model.name == f"{tmp_path}/~nobody-of-this-name/model"


def test_overrides_are_put_over_the_file(tmp_path: Path) -> None:
    config = load_sweep_file(
        written(tmp_path),
        [
            "search.num_trials=3",
            "search.space.learning_rate=2e-4",
            "search.space.r={low: 1, high: 4}",
            "model.name=a/b=c",
        ],
    )

    assert config.search.num_trials == 3
    assert config.search.space.learning_rate == 0.0002
    assert config.search.space.r == Range[int](low=1, high=4)
    assert config.model.name == "a/b=c"


def test_overrides_build_on_each_other_and_the_later_wins(tmp_path: Path) -> None:
    overrides = [
        "search.space.r={low: 1, high: 4}",
        "search.space.r.high=8",
        "objectives.memory=true",
        "objectives.memory=false",
    ]

    config = load_sweep_file(written(tmp_path), overrides)

    assert config.search.space.r == Range[int](low=1, high=8)
    assert config.objectives.memory is False


@pytest.mark.parametrize(
    ("override", "key", "line", "message"),
    [
        ("num_trials", "", None, "--set takes key.key=value, got 'num_trials'"),
        ("=3", "", None, "--set takes key.key=value, got '=3'"),
        ("search..seed=3", "", None, "--set takes key.key=value, got 'search..seed=3'"),
        ("search.seed=[", "search.seed", None, "--set takes a YAML value, got '['"),
        ("search.seed=2024-13-01", "search.seed", None, "--set takes a YAML value, got '2024-13-01'"),
        ("search.seed=", "search.seed", 14, "must be a whole number, got nothing"),
        ("search.sede=3", "search.sede", 12, "is no known key; did you mean 'seed'?"),
        ("serach.seed=3", "serach", None, "is no known key; did you mean 'search'?"),
        ("search.space.r={low: 0, high: 3}", "search.space.r.low", 16, "must be at least 1, got 0"),
        ("training.max_steps=20", "pruning.min_steps", 26, "must be at most training.max_steps (20), got 30"),
    ],
)
def test_a_bad_override_is_told(tmp_path: Path, override: str, key: str, line: int | None, message: str) -> None:
    (problem,) = problems_of(written(tmp_path), override)

    assert (problem.key, problem.line) == (key, line)
    assert message in problem.message


def test_a_written_sweep_loads_as_an_equal_one(tmp_path: Path) -> None:
    config = load_sweep_file(written(tmp_path))

    write_sweep_file(config, tmp_path / "again.yaml")

    assert load_sweep_file(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("name", ["..", "../..", "../..odd/model", "./~me/model", "/models/x", "org/model"])
def test_a_sweep_written_to_another_folder_names_the_same_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "from" / "here").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    config = load_sweep_file(written(tmp_path / "from" / "here", edited("./model", name)))

    write_sweep_file(config, tmp_path / "to" / "sweep.yaml")

    assert load_sweep_file(tmp_path / "to" / "sweep.yaml") == config


def test_a_folder_moved_with_its_sweep_keeps_its_model_and_data(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_sweep_file(load_sweep_file(written(tmp_path / "old")), tmp_path / "old" / "sweep.yaml")

    (tmp_path / "old").rename(tmp_path / "new")

    config = load_sweep_file(tmp_path / "new" / "sweep.yaml")
    assert (config.model.name, config.data.path) == (f"{tmp_path}/new/model", f"{tmp_path}/new/rows.jsonl")


def test_every_default_is_written_out(tmp_path: Path) -> None:
    write_sweep_file(load_sweep_file(written(tmp_path)), tmp_path / "again.yaml")

    document = YAML(typ="safe", pure=True).load(tmp_path / "again.yaml")
    assert set(document) == set(SweepConfig.model_fields)
    assert document["training"]["lr_scheduler_type"] == "linear"


def places(node: object, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document below its top."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, child in children for found in ((*place, key), *places(child, (*place, key)))]


DOCUMENT = YAML(typ="safe", pure=True).load(BASE)
ODD_VALUES = st.sampled_from(
    [None, "", "~", "..", -1, 0, 1, 2.5, 1e999, float("nan"), [], {}, [1], {"choices": []}, True]
)
EDITS = st.lists(st.tuples(st.sampled_from(places(DOCUMENT)), ODD_VALUES | st.text(max_size=5)), min_size=1, max_size=4)


def replace_at(document: dict[str, Any], edit: tuple[tuple[Any, ...], object]) -> dict[str, Any]:
    """Put a value at a place, where an earlier edit has left the place."""
    *parents, last = edit[0]
    node: Any = document
    for part in parents:
        node = node[part] if part in places_in(node) else None
    if last in places_in(node):
        node[last] = edit[1]
    return document


def places_in(node: object) -> set[Any]:
    return set(node) if isinstance(node, dict) else set(range(len(node))) if isinstance(node, list) else set()


def load_or_tell(path: Path) -> SweepConfig | None:
    """Load, and hold ConfigError to its promises."""
    try:
        return load_sweep_file(path)
    except ConfigError as error:
        assert error.problems
        assert all(problem.message and "\n" not in problem.message for problem in error.problems)
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (folder := tmp_path_factory.mktemp("fuzz")).joinpath("other").mkdir()
    return folder


@given(edits=EDITS)
@settings(max_examples=150, deadline=None)
def test_any_values_load_and_survive_writing_or_are_told(folder: Path, edits: list[tuple[Any, Any]]) -> None:
    document = functools.reduce(replace_at, edits, copy.deepcopy(DOCUMENT))
    with (folder / "sweep.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(document, file)

    config = load_or_tell(folder / "sweep.yaml")

    if config is not None:
        write_sweep_file(config, folder / "other" / "sweep.yaml")
        assert load_sweep_file(folder / "other" / "sweep.yaml") == config


@given(
    line=st.integers(min_value=0, max_value=BASE.count("\n") - 1),
    text=st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
    | st.text(alphabet="{}[]:,&*!|>%@`'\"#-? \t\n<~0123456789.xe_", max_size=12),
)
@settings(max_examples=300, deadline=None)
def test_any_text_after_a_key_loads_or_is_told(folder: Path, line: int, text: str) -> None:
    lines = BASE.splitlines()
    lines[line] = f"{lines[line].partition(':')[0]}: {text}"
    path = folder / "text.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")

    load_or_tell(path)
