"""Sweep files: what is wrong is told with key, value and line; what is right is read and written back alike."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tests.sweeps import document, small_config, write_sweep
from tuner.config import SweepConfig
from tuner.dimensions import Choices, Range
from tuner.errors import ConfigError, Problem
from tuner.sweep_file import load_sweep_file, write_sweep_file

SPACE = "search.space"
TOP_KEYS = "name, model, data, training, search, objectives, pruning, resources, study, baselines, confirm, logging"
NO_PASSWORD = (
    "must hold no password, for reports and logs show this file; put it into PGPASSWORD or ~/.pgpass, which are read wherever "
    "a database is reached"
)
NO_KEY = (
    "must hold no key, for reports and logs show this file; keys are taken from where the cloud's own tools find them, such as "
    "AWS_ACCESS_KEY_ID or the instance's role"
)
SEARCHED = "{choices: [...]} or {low: ..., high: ...}"


def problems_of(file: Path, *overrides: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_sweep_file(file, overrides)
    assert caught.value.file == str(file)
    return caught.value.problems


BAD_VALUES = [
    # (changes, key, message, what the line told holds)
    ({"colour": 1}, "colour", f"is no known key; known here: {TOP_KEYS}", "colour: 1"),
    ({"serach": 1}, "serach", f"is no known key; did you mean 'search'? known here: {TOP_KEYS}", "serach: 1"),
    (
        {"logging": ["mlflow", "mlflow"], "resources.backend": "ray"},
        "logging",
        "entries must differ from each other, got ['mlflow', 'mlflow']",
        "logging:",
    ),
    (
        {"logging": ["comet"]},
        "logging.0",
        "must be 'mlflow', 'wandb' or 'tensorboard', got 'comet'",
        "logging: [comet]",
    ),
    ({"logging": "mlflow"}, "logging", "must be a list, got 'mlflow'", "logging: mlflow"),
    (
        {"objectives.acuracy": "accuracy"},
        "objectives.acuracy",
        "is no known key; did you mean 'accuracy'? known here: accuracy, trainable_params, memory",
        "acuracy: accuracy",
    ),
    (
        {"search.num_trails": 4},
        "search.num_trails",
        "is no known key; did you mean 'num_trials'? known here: num_trials, sampler, seed, start, budget, space",
        "num_trails: 4",
    ),
    (
        {f"{SPACE}.r": {"low": 1, "high": 8, "stpe": 1}},
        f"{SPACE}.r.stpe",
        "is no known key; did you mean 'step'? known here: low, high, log, step, choices",
        "stpe: 1",
    ),
    (
        {f"{SPACE}.r.low": 1},
        f"{SPACE}.r.low",
        "is no known key; known here: choices",
        "low: 1",
    ),
    (
        {"study.storage": "sqlite:///study.db"},
        "study.storage",
        "must be journal or postgresql://user@host:port/database, got 'sqlite:///study.db'",
        "storage:",
    ),
    (
        {"study.storage": "postgresql://me@host"},
        "study.storage",
        "must name a database, as in postgresql://user@host:port/database, got 'postgresql://me@host'",
        "storage:",
    ),
    ({"study.storage": "postgresql://me:pw@host/db"}, "study.storage", NO_PASSWORD, "storage:"),
    ({"study.storage": "postgresql://host/db?user=me&password=pw"}, "study.storage", NO_PASSWORD, "storage:"),
    (
        {"study": "postgresql://me:pw@host/db"},
        "study",
        "must be a mapping, got 'postgresql://me:...@host/db'",
        "study:",
    ),
    (
        {"resources.storage": "ftp://host/x"},
        "resources.storage",
        "must be one of s3://, gs://, abfs://, abfss://, file://, got 'ftp://host/x'",
        "storage:",
    ),
    (
        {"resources.storage": "s3://bucket"},
        "resources.storage",
        "must name a folder of its own, as in s3://bucket/sweeps/mine, got 's3://bucket'",
        "storage:",
    ),
    ({"resources.storage": "s3://key:word@bucket/x"}, "resources.storage", NO_KEY, "storage:"),
    ({"resources.storage": "s3://key@bucket/x"}, "resources.storage", NO_KEY, "storage:"),
    (
        {"resources.storage": "s3://bucket/x?anonymous=1"},
        "resources.storage",
        "takes the options endpoint_override, region, scheme, got anonymous",
        "storage:",
    ),
    ({"data": None}, "data", "is missing", None),
    ({"pruning.floor": "high"}, "pruning.floor", "must be 'auto', 'none' or a number, got 'high'", "floor: high"),
    (
        {"pruning.eval_examples": 0},
        "pruning.eval_examples",
        "must be auto, all or a whole number of at least 1, got 0",
        "eval_examples: 0",
    ),
    ({"pruning.audit": -1}, "pruning.audit", "must be at least 0, got -1", "audit: -1"),
    (
        {"pruning.method": "halving"},
        "pruning.method",
        "must be 'pareto', 'asha', 'median' or 'none', got 'halving'",
        "method:",
    ),
    ({"search.budget": {"steps": 0}}, "search.budget.steps", "must be at least 1, got 0", "steps: 0"),
    ({"search.budget": {"time_s": 0}}, "search.budget.time_s", "must be above 0, got 0", "time_s: 0"),
    ({"resources.memory_limit_gib": 0}, "resources.memory_limit_gib", "must be above 0, got 0", "memory_limit_gib: 0"),
    (
        {"data.path": None},
        "data.path",
        "give either path (a local file or folder) or name (a hub id), got neither",
        "data:",
    ),
    (
        {"data.name": "org/rows"},
        "data.path",
        "give either path (a local file or folder) or name (a hub id), got both",
        "path: ",
    ),
    ({f"{SPACE}.r": None}, f"{SPACE}.r", "is missing", "space:"),
    ({f"{SPACE}.r": {"high": 8}}, f"{SPACE}.r.low", "is missing", "r:"),
    ({"training": 3}, "training", "must be a mapping, got 3", "training: 3"),
    ({"training": [1]}, "training", "must be a mapping, got [1]", "training:"),
    ({f"{SPACE}.r": 0}, f"{SPACE}.r", "must be at least 1, got 0", "r: 0"),
    ({f"{SPACE}.r": 2.5}, f"{SPACE}.r", f"must be a whole number, {SEARCHED}, got 2.5", "r: 2.5"),
    ({f"{SPACE}.r": 4.0}, f"{SPACE}.r", f"must be a whole number, {SEARCHED}, got 4.0", "r: 4.0"),
    ({f"{SPACE}.r": True}, f"{SPACE}.r", f"must be a whole number, {SEARCHED}, got true", "r: true"),
    ({f"{SPACE}.r": "8"}, f"{SPACE}.r", f"must be a whole number, {SEARCHED}, got '8'", "r: '8'"),
    ({f"{SPACE}.r": {"low": 0, "high": 8}}, f"{SPACE}.r.low", "must be at least 1, got 0", "low: 0"),
    ({f"{SPACE}.r": {"low": 4, "high": 2}}, f"{SPACE}.r", "low must be below high, got low=4, high=2", "r:"),
    ({f"{SPACE}.r": {"low": 4, "high": 4}}, f"{SPACE}.r", "low must be below high, got low=4, high=4", "r:"),
    (
        {f"{SPACE}.lora_dropout": {"low": 0, "high": 0.5, "log": True}},
        f"{SPACE}.lora_dropout",
        "low must be above 0 with log: true, got 0.0",
        "lora_dropout:",
    ),
    (
        {f"{SPACE}.r": {"low": 1, "high": 8, "log": True, "step": 1}},
        f"{SPACE}.r",
        "step can't be used with log: true, got step=1",
        "r:",
    ),
    (
        {f"{SPACE}.r": {"low": 1, "high": 8, "step": 2}},
        f"{SPACE}.r",
        "step must divide high - low, so that high is reached, got low=1, high=8, step=2",
        "r:",
    ),
    ({f"{SPACE}.r": {"low": 1, "high": 8, "step": 0}}, f"{SPACE}.r.step", "must be at least 1, got 0", "step: 0"),
    ({f"{SPACE}.r": {"low": 1, "high": 8, "log": "yes"}}, f"{SPACE}.r.log", "must be true or false, got 'yes'", "log:"),
    ({f"{SPACE}.r": {"choices": []}}, f"{SPACE}.r.choices", "must hold at least 1 entry, got []", "choices: []"),
    ({f"{SPACE}.r": {"choices": 4}}, f"{SPACE}.r.choices", "must be a list, got 4", "choices: 4"),
    (
        {f"{SPACE}.r": {"choices": [1, 2, 1]}},
        f"{SPACE}.r",
        "choices must differ from each other, got [1, 2, 1]",
        "r:",
    ),
    ({f"{SPACE}.r": {"choices": [1, "two"]}}, f"{SPACE}.r.choices.1", "must be a whole number, got 'two'", "two"),
    ({f"{SPACE}.r": {"choices": [0, 1]}}, f"{SPACE}.r.choices.0", "must be at least 1, got 0", "[0, 1]"),
    ({f"{SPACE}.learning_rate": 0}, f"{SPACE}.learning_rate", "must be above 0, got 0", "learning_rate: 0"),
    ({f"{SPACE}.learning_rate": -0.1}, f"{SPACE}.learning_rate", "must be above 0, got -0.1", "learning_rate: -0.1"),
    (
        {f"{SPACE}.learning_rate": "fast"},
        f"{SPACE}.learning_rate",
        f"must be a number, {SEARCHED}, got 'fast'",
        "learning_rate: fast",
    ),
    (
        {f"{SPACE}.learning_rate": {"low": 0, "high": 0.1, "log": True}},
        f"{SPACE}.learning_rate.low",
        "must be above 0, got 0",
        "low: 0",
    ),
    ({f"{SPACE}.lora_dropout": 1.0}, f"{SPACE}.lora_dropout", "must be below 1, got 1.0", "lora_dropout: 1.0"),
    ({f"{SPACE}.lora_scale": 0}, f"{SPACE}.lora_scale", "must be above 0, got 0", "lora_scale: 0"),
    ({f"{SPACE}.lora_alpha": 0}, f"{SPACE}.lora_alpha", "must be above 0, got 0", "lora_alpha: 0"),
    ({f"{SPACE}.weight_decay": -0.1}, f"{SPACE}.weight_decay", "must be at least 0, got -0.1", "weight_decay: -0.1"),
    ({f"{SPACE}.lora_plus_ratio": 0.5}, f"{SPACE}.lora_plus_ratio", "must be at least 1, got 0.5", "ratio: 0.5"),
    ({f"{SPACE}.use_dora": 1}, f"{SPACE}.use_dora", "must be true or false, got 1", "use_dora: 1"),
    (
        {f"{SPACE}.use_rslora": {"choices": []}},
        f"{SPACE}.use_rslora.choices",
        "must hold at least 1 entry, got []",
        "[]",
    ),
    ({f"{SPACE}.bias": "some"}, f"{SPACE}.bias", "must be 'none', 'all' or 'lora_only', got 'some'", "bias: some"),
    (
        {f"{SPACE}.init_lora_weights": {"choices": ["default", "zeros"]}},
        f"{SPACE}.init_lora_weights.choices.1",
        "must be 'default', 'gaussian', 'pissa', 'olora', 'eva' or 'loftq', got 'zeros'",
        "zeros",
    ),
    (
        {f"{SPACE}.bias": {"choices": ["none", "none"]}},
        f"{SPACE}.bias",
        "choices must differ from each other, got ['none', 'none']",
        "bias:",
    ),
    ({"baselines.full": [0.001, "x"]}, "baselines.full.1", "must be a number, got 'x'", "x"),
    ({"baselines.full": 0.001}, "baselines.full", "must be a list, got 0.001", "full: 0.001"),
    ({"search.start": "best"}, "search.start", "must be 'recommended' or 'none', got 'best'", "start: best"),
    ({f"{SPACE}.target_modules": []}, f"{SPACE}.target_modules", "must hold at least 1 entry, got []", "modules: []"),
    ({f"{SPACE}.target_modules": [""]}, f"{SPACE}.target_modules.0", "must not be empty, got ''", "target_modules:"),
    (
        {f"{SPACE}.target_modules": 3},
        f"{SPACE}.target_modules",
        "must be a list or {choices: {name: [...], ...}}, got 3",
        "target_modules: 3",
    ),
    (
        {f"{SPACE}.target_modules": {"choices": {}}},
        f"{SPACE}.target_modules.choices",
        "must hold at least 1 entry, got {}",
        "choices: {}",
    ),
    (
        {f"{SPACE}.target_modules": {"choices": {"none": []}}},
        f"{SPACE}.target_modules.choices.none",
        "must hold at least 1 entry, got []",
        "none: []",
    ),
    (
        {f"{SPACE}.target_modules": {"choices": [["query"]]}},
        f"{SPACE}.target_modules.choices",
        "must be a mapping, got [['query']]",
        "choices:",
    ),
    (
        {f"{SPACE}.target_modules": {"choices": ["mlp", "mlp"]}},
        f"{SPACE}.target_modules.choices",
        "choices must differ from each other, got ['mlp', 'mlp']",
        "choices:",
    ),
    (
        {f"{SPACE}.lora_dropout": {"low": 0, "high": 0.5, "step": 0}},
        f"{SPACE}.lora_dropout",
        "step must be above 0, got 0.0",
        "lora_dropout:",
    ),
    (
        {f"{SPACE}.rank_pattern": {"query": -1}},
        f"{SPACE}.rank_pattern.query",
        "must be at least 0, got -1",
        "query: -1",
    ),
    (
        {f"{SPACE}.rank_pattern": {"": 1}},
        f"{SPACE}.rank_pattern",
        "each key must not be empty, got ''",
        "rank_pattern:",
    ),
    (
        {"pruning.min_steps": 9},
        "pruning.min_steps",
        "must be at most training.max_steps (8), got 9",
        "min_steps: 9",
    ),
    ({"pruning.reduction_factor": 1}, "pruning.reduction_factor", "must be at least 2, got 1", "reduction_factor: 1"),
    ({"pruning.confidence": 0.3}, "pruning.confidence", "must be at least 0.5, got 0.3", "confidence: 0.3"),
    (
        {"resources.gpus_per_trial": 1.5},
        "resources.gpus_per_trial",
        "must be whole above 1 (fractions share one card), got 1.5",
        "gpus_per_trial: 1.5",
    ),
    (
        {"resources.gpus_per_trial": "all"},
        "resources.gpus_per_trial",
        "must be auto or a number of at least 0, got 'all'",
        "gpus_per_trial: all",
    ),
    (
        {"resources.gpus_per_trial": -0.5},
        "resources.gpus_per_trial",
        "must be auto or a number of at least 0, got -0.5",
        "gpus_per_trial: -0.5",
    ),
    (
        {"resources.gpus_per_trial": True},
        "resources.gpus_per_trial",
        "must be auto or a number of at least 0, got True",
        "gpus_per_trial: true",
    ),
    (
        {"resources.max_trials_per_gpu": 0},
        "resources.max_trials_per_gpu",
        "must be at least 1, got 0",
        "max_trials_per_gpu: 0",
    ),
    ({"resources.node_wait_s": 0}, "resources.node_wait_s", "must be above 0, got 0", "node_wait_s: 0"),
    ({"resources.cpus_per_trial": -1}, "resources.cpus_per_trial", "must be above 0, got -1", "cpus_per_trial: -1"),
    ({"resources.backend": "dask"}, "resources.backend", "must be 'ray' or 'local', got 'dask'", "backend: dask"),
    (
        {"model.quantization": "int4"},
        "model.quantization",
        "must be 'nf4', 'fp4', 'int8' or 'none', got 'int4'",
        "quantization: int4",
    ),
    ({"model.revision": 4}, "model.revision", "must be text, got 4", "revision: 4"),
    (
        {"name": "a/b"},
        "name",
        "must be letters, digits, `.`, `-` and `_`, a letter or digit first, got 'a/b'",
        "name: a/b",
    ),
    ({"name": 12}, "name", "must be text, got 12", "name: 12"),
    (
        {f"{SPACE}.weight_decay": float("nan")},
        f"{SPACE}.weight_decay",
        "must be a finite number, got nan",
        "weight_decay: .nan",
    ),
    (
        {f"{SPACE}.weight_decay": float("inf")},
        f"{SPACE}.weight_decay",
        "must be a finite number, got inf",
        "weight_decay: .inf",
    ),
    ({"search.num_trials": 0}, "search.num_trials", "must be at least 1, got 0", "num_trials: 0"),
    (
        {"search.num_trials": float("inf")},
        "search.num_trials",
        "must be a whole number, got inf",
        "num_trials: .inf",
    ),
    ({"search.seed": 2**31}, "search.seed", "must be below 2147483648, got 2147483648", "seed: 2147483648"),
    ({"objectives.memory": 1}, "objectives.memory", "must be true, false or a mapping, got 1", "memory: 1"),
]


@pytest.mark.parametrize(
    ("changes", "key", "message", "on_line"), BAD_VALUES, ids=[f"{key}: {message}" for _, key, message, _ in BAD_VALUES]
)
def test_a_bad_value_is_the_one_problem_told_with_key_value_rule_and_line(
    tmp_path: Path, changes: dict[str, Any], key: str, message: str, on_line: str | None
) -> None:
    file = write_sweep(tmp_path, changes)

    (problem,) = problems_of(file)

    assert (problem.key, problem.message) == (key, message)
    lines = dict(enumerate(file.read_text(encoding="utf-8").splitlines(), start=1))
    assert (problem.line is None) == (on_line is None)
    assert (on_line or "") in lines.get(problem.line or 0, "")


NOT_A_SWEEP = [
    # (bytes of the file, message, line)
    (b"", f"must be a mapping with the keys {TOP_KEYS}, got nothing", None),
    (b"# only a comment\n", f"must be a mapping with the keys {TOP_KEYS}, got nothing", None),
    (b"- a\n", f"must be a mapping with the keys {TOP_KEYS}, got ['a']", None),
    (b"hello\n", f"must be a mapping with the keys {TOP_KEYS}, got 'hello'", None),
    (b"name: gl\xfchlein\n", "can't be read: is not UTF-8 text", None),
    (b"name: a\nmodel: b: c\n", "is not valid YAML: mapping values are not allowed here", 2),
    (b"name: [a\n", "is not valid YAML: expected ',' or ']', but got '<stream end>'", 2),
    (b"\tname: a\n", "is not valid YAML: found character '\\t' that cannot start any token", 1),
    (b"name: a\nname: b\n", 'is not valid YAML: found duplicate key "name" with value "b" (original value: "a")', 2),
    (b"name: *a\n", "is not valid YAML: found undefined alias 'a'", 1),
    (
        b"name: a\n---\nname: b\n",
        "is not valid YAML: expected a single document in the stream, but found another document",
        2,
    ),
    (b"&a\nname: *a\n", "is not valid YAML: it is nested too deep, or holds itself", None),
    (b"name: " + b"[" * 3000, "is not valid YAML: it is nested too deep, or holds itself", None),
]


@pytest.mark.parametrize(("raw", "message", "line"), NOT_A_SWEEP, ids=[str(raw[:20]) for raw, _, _ in NOT_A_SWEEP])
def test_a_file_that_holds_no_mapping_is_told_as_a_whole(
    tmp_path: Path, raw: bytes, message: str, line: int | None
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(raw)

    assert problems_of(file) == (Problem(key="", message=message, line=line),)


def test_a_file_that_is_not_there_is_a_problem_of_the_file(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path / "none.yaml")

    assert problem == Problem(key="", message="can't be read: No such file or directory")


def test_a_directory_is_a_problem_of_the_file(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path)

    assert problem == Problem(key="", message="can't be read: Is a directory")


def test_a_value_that_is_left_empty_is_nothing(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    text = file.read_text(encoding="utf-8").replace("num_trials: 4", "num_trials:")
    file.write_text(text, encoding="utf-8")

    (problem,) = problems_of(file)

    assert (problem.key, problem.message) == ("search.num_trials", "must be a whole number, got nothing")


@pytest.mark.parametrize("raw", [r'"\ud800": 1', r'model: {"\ud800": 1}', r'name: "\ud800"'])
def test_half_a_character_is_no_valid_text_wherever_it_stands(tmp_path: Path, raw: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(raw, encoding="utf-8")

    assert any("must be valid text, got '\\ud800'" in problem.message for problem in problems_of(file))


@pytest.mark.parametrize("raw", ["2001-13-45", "-_", "!!bool x", "!!int x", "!!float", "!!set x", "!!omap x"])
def test_a_value_that_the_yaml_library_stumbles_over_is_a_problem_of_the_file(tmp_path: Path, raw: str) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: {raw}\n", encoding="utf-8")

    (problem,) = problems_of(file)

    assert problem.message.startswith("is not valid YAML: a value can't be read")


def test_a_tag_of_one_s_own_means_nothing(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {f"{SPACE}.target_modules": ["query"], f"{SPACE}.rank_pattern": {}})
    file.write_text(file.read_text(encoding="utf-8").replace("[query]", "!list query"), encoding="utf-8")

    assert load_sweep_file(file).search.space.target_modules == ("query",)


def test_an_anchored_truth_value_is_still_one(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"objectives.memory": True})
    file.write_text(file.read_text(encoding="utf-8").replace("memory: true", "memory: &no false"), encoding="utf-8")

    assert load_sweep_file(file).objectives.memory.weigh is False


def test_a_hexadecimal_number_too_long_to_show_is_a_problem_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: 0x{'f' * 5000}", encoding="utf-8")

    (problem,) = problems_of(file)

    assert problem.message.startswith("is not valid YAML: a value can't be read (Exceeds the limit")


def test_problems_of_all_sections_are_told_together_by_line(tmp_path: Path) -> None:
    changes = {"training.batch_size": 0, "search.num_trials": 0, "colour": 1, f"{SPACE}.r": {"choices": [0, 0.5, 1]}}

    problems = problems_of(write_sweep(tmp_path, changes))

    assert [problem.key for problem in problems] == [
        "colour",
        "search.num_trials",
        f"{SPACE}.r.choices.0",
        f"{SPACE}.r.choices.1",
        "training.batch_size",
    ]
    lines = [problem.line or 0 for problem in problems]
    assert lines == sorted(lines)
    assert lines[0] > 0


def test_what_is_wrong_together_is_told_beside_what_is_wrong_alone(tmp_path: Path) -> None:
    changes = {f"{SPACE}.rank_pattern": {"a@b": 1}, "resources.gpus_per_trial": 1.5, "model.quantization": "int4"}

    keys = {problem.key for problem in problems_of(write_sweep(tmp_path, changes))}

    assert keys == {f"{SPACE}.rank_pattern.a@b", "resources.gpus_per_trial", "model.quantization"}


def test_the_error_reads_file_line_key_message(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a/b\n", encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_sweep_file(file)

    assert str(caught.value).splitlines() == [
        f"{file}: model: is missing",
        f"{file}: data: is missing",
        f"{file}: training: is missing",
        f"{file}: search: is missing",
        f"{file}:1: name: must be letters, digits, `.`, `-` and `_`, a letter or digit first, got 'a/b'",
    ]


def test_a_number_written_with_an_exponent_is_a_float(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)
    text = file.read_text(encoding="utf-8").replace("max_steps: 8", "max_steps: 8, max_grad_norm: 2e-4")
    file.write_text(text, encoding="utf-8")

    assert load_sweep_file(file).training.max_grad_norm == 0.0002


def test_a_whole_number_will_do_where_a_float_is_wanted(tmp_path: Path) -> None:
    scale = small_config(tmp_path, {f"{SPACE}.lora_scale": {"choices": [1, 2]}}).search.space.lora_scale

    assert scale == Choices[float](choices=(1.0, 2.0))


def test_steps_of_a_tenth_reach_what_they_reach_for_a_person(tmp_path: Path) -> None:
    dropout = small_config(tmp_path, {f"{SPACE}.lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1}}).search.space

    assert isinstance(dropout.lora_dropout, Range)
    assert dropout.lora_dropout.step == 0.1


def test_an_override_goes_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)

    config = load_sweep_file(file, ["search.num_trials=7", "search.num_trials=9", f"{SPACE}.learning_rate=2e-4"])

    assert config.search.num_trials == 9
    assert config.search.space.learning_rate == 0.0002


def test_an_override_makes_the_sections_on_its_way(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"pruning": None})

    assert load_sweep_file(file, ["pruning.method=none"]).pruning.method == "none"


def test_an_override_takes_any_yaml(tmp_path: Path) -> None:
    file = write_sweep(tmp_path)

    space = load_sweep_file(file, [f"{SPACE}.rank_pattern={{intermediate.dense: {{low: 1, high: 4}}}}"]).search.space

    assert space.rank_pattern == {"intermediate.dense": Range[int](low=1, high=4)}


def test_an_override_can_mend_the_file(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"search.num_trials": 0})

    assert load_sweep_file(file, ["search.num_trials=1"]).search.num_trials == 1


@pytest.mark.parametrize("override", ["search", "=3", ".name=3", "search..seed=1", ""])
def test_an_override_without_key_and_sign_is_malformed(tmp_path: Path, override: str) -> None:
    (problem,) = problems_of(write_sweep(tmp_path), override)

    assert problem == Problem(key="", message=f"--set takes key.key=value, got {override!r}")


@pytest.mark.parametrize("text", ["[", "a: b: c", "&a [*a]"])
def test_an_override_whose_value_is_no_yaml_is_told_with_its_key(tmp_path: Path, text: str) -> None:
    (problem,) = problems_of(write_sweep(tmp_path), f"{SPACE}.r={text}")

    assert problem == Problem(key=f"{SPACE}.r", message=f"--set takes a YAML value, got {text!r}")


def test_an_override_of_an_unknown_key_is_a_problem_with_the_nearest_hint(tmp_path: Path) -> None:
    (problem,) = problems_of(write_sweep(tmp_path), "search.num_trial=3")

    assert problem.key == "search.num_trial"
    assert problem.message.startswith("is no known key; did you mean 'num_trials'?")


def test_an_override_with_a_bad_value_is_told_like_the_file_s_own(tmp_path: Path) -> None:
    (problem,) = problems_of(write_sweep(tmp_path), "search.num_trials=")

    assert (problem.key, problem.message) == ("search.num_trials", "must be a whole number, got nothing")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"model.name": "../models/small", "data.path": "rows.jsonl"})

    assert config.model.name == str(tmp_path.parent / "models" / "small")
    assert config.data.path == str(tmp_path / "rows.jsonl")


def test_paths_are_absolute_though_the_file_was_named_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path, {"data.path": "rows.jsonl"})
    monkeypatch.chdir(tmp_path)

    assert load_sweep_file(Path("sweep-under-test.yaml")).data.path == str(tmp_path / "rows.jsonl")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    assert small_config(tmp_path, {"model.name": "~/small"}).model.name == str(tmp_path / "small")


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    assert small_config(tmp_path, {"model.name": "org/model"}).model.name == "org/model"


ROUND_TRIPS: list[dict[str, Any]] = [
    {},
    {"model.name": "org/model", "model.revision": "1e3"},
    {"model.name": "./small", "data.path": "../rows.jsonl.gz"},
    {"model.name": "..", "data.path": "~nobody.csv"},
    {f"{SPACE}.r": 4, f"{SPACE}.learning_rate": 1e-05, f"{SPACE}.lora_scale": 1},
    {f"{SPACE}.lora_dropout": {"low": 0.0, "high": 0.3, "step": 0.1}},
    {f"{SPACE}.target_modules": ["query", "no"], f"{SPACE}.rank_pattern": {"no": {"low": 0, "high": 4}}},
    {"data.text": "no", "data.label": "2001-01-01"},
    {"data.text": " # ü: \n"},
    {"resources.gpus_per_trial": "auto", "resources.max_trials_per_gpu": 8, "resources.node_wait_s": 5},
    {"resources.gpus_per_trial": 0.25, "resources.max_concurrent_trials": 2, "pruning": None},
    {
        f"{SPACE}.target_modules": "all-linear",
        f"{SPACE}.rank_pattern": {"attention@first": {"choices": [0, 8]}, "middle": 2, "mlp": {"low": 1, "high": 9}},
        f"{SPACE}.weight_decay": {"low": 0.0, "high": 0.1, "step": 0.05},
        f"{SPACE}.lora_plus_ratio": {"choices": [1, 16]},
        f"{SPACE}.use_rslora": {"choices": [False, True]},
        f"{SPACE}.use_dora": True,
        f"{SPACE}.init_lora_weights": {"choices": ["default", "eva"]},
        f"{SPACE}.bias": {"choices": ["none", "lora_only"]},
        f"{SPACE}.lora_alpha": {"low": 8, "high": 64, "log": True},
        "search.start": "recommended",
    },
    {
        "training": {
            "task": "causal-lm",
            "max_steps": 8,
            "gradient_accumulation_steps": 4,
            "packing": True,
            "gradient_checkpointing": True,
            "optimizer": "paged_adamw_8bit",
            "lr_scheduler_type": "cosine",
        },
        "data": {"name": "org/rows", "subset": "easy", "revision": "v1", "messages": "turns", "system": "Be short."},
        "model": {"name": "./small.gguf", "quantization": "fp4", "trust_remote_code": True, "allow_pickle": True},
        "objectives": {"accuracy": "choice_accuracy"},
        "baselines": {"zero_shot": True, "full": [1e-05, 0.0001], "unquantized_lora": True},
        "resources.gpus_per_trial": 1,
        f"{SPACE}.target_modules": {"choices": ["attention", "mlp"]},
        f"{SPACE}.rank_pattern": {},
    },
]


@pytest.mark.parametrize("changes", ROUND_TRIPS, ids=str)
@pytest.mark.parametrize("folder", [".", "deeper/down", "../beside"])
def test_a_sweep_that_was_written_loads_as_the_same_sweep_from_any_folder(
    tmp_path: Path, changes: dict[str, Any], folder: str
) -> None:
    start = tmp_path / "sweeps"
    start.mkdir()
    config = small_config(start, changes)
    written = start / folder / "written.yaml"
    written.parent.mkdir(parents=True, exist_ok=True)

    write_sweep_file(config, written)

    assert load_sweep_file(written) == config


def test_a_written_sweep_says_its_defaults_and_names_what_lies_near_by_relative_paths(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"model.name": "./small", "data.path": "rows.jsonl"})
    (tmp_path / "down").mkdir()
    written = tmp_path / "down" / "written.yaml"

    write_sweep_file(config, written)

    text = written.read_text(encoding="utf-8")
    assert "name: ../small\n" in text
    assert "path: ../rows.jsonl\n" in text
    assert "batch_size: 4\n" in text
    assert "warmup_ratio: 0.1\n" in text


Key = str | int


def leaves(node: object) -> list[tuple[Key, ...]]:
    """The place of every value that is neither a mapping nor a list."""
    match node:
        case dict():
            entries: list[tuple[Key, object]] = list(node.items())
        case list():
            entries = list(enumerate(node))
        case _:
            return [()]
    return [(key, *rest) for key, value in entries for rest in leaves(value)]


def put(root: dict[str, Any], place: tuple[Key, ...], value: object) -> None:
    node: Any = root
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value


def loaded_or_told(file: Path) -> SweepConfig | ConfigError:
    try:
        return load_sweep_file(file)
    except ConfigError as error:
        return error


PLACES = leaves(document())
# any parent of a leaf is a place too, so that whole sections are replaced as well
PARENTS = sorted({place[:depth] for place in PLACES for depth in range(1, len(place) + 1)}, key=str)
ODD_VALUES: list[object] = [None, "", "x", -1, 0, 1, 2.5, float("inf"), float("nan"), [], {}, [None], {"x": 1}, True]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PARENTS), st.sampled_from(ODD_VALUES)), min_size=1, max_size=2))
def test_whatever_stands_at_a_place_the_file_loads_or_its_problems_are_told(
    tmp_path_factory: pytest.TempPathFactory, replacements: list[tuple[tuple[Key, ...], object]]
) -> None:
    raw = document()
    for place, value in replacements:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # the first may have taken the place of the second
            put(raw, place, copy.deepcopy(value))
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(raw, stream)

    outcome = loaded_or_told(file)

    if isinstance(outcome, ConfigError):
        assert outcome.problems
        assert all(problem.key and problem.message for problem in outcome.problems)
        assert "should" not in str(outcome)  # pydantic's way to say it


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    line=st.integers(0, 60),
    text=st.text(st.characters(codec="utf-8"), max_size=8)
    | st.text("{}[]:,&*!|>%@`'\"#-? \t\n<~0123456789.xe_", max_size=8),
)
def test_whatever_is_written_behind_a_key_the_file_loads_or_its_problems_are_told(
    tmp_path_factory: pytest.TempPathFactory, line: int, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "behind-a-key.yaml"
    write_sweep_file(small_config(file.parent), file)  # a key to a line
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[line % len(lines)] = f"{lines[line % len(lines)].partition(':')[0]}: {text}"
    file.write_text("\n".join(lines), encoding="utf-8", newline="")

    loaded = loaded_or_told(file)

    assert isinstance(loaded, SweepConfig) or len(str(loaded).splitlines()) == len(loaded.problems)
