"""What is right alone and impossible together: refused with its key, its reason and its line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.sweeps import write_sweep
from tuner.errors import ConfigError
from tuner.sweep_file import load_sweep_file

if TYPE_CHECKING:
    from pathlib import Path

SPACE = "search.space"
INIT = f"{SPACE}.init_lora_weights"
CAUSAL = {"training.task": "causal-lm"}
STOLEN = "it takes a part out of the base weights, which are stored quantized and shared by all trials"
MAGNITUDES = "DoRA takes its magnitudes from the base before this start changes the weights"
BANDS = "must be a module, a group, a band (first, middle, last) or module@band, got"

REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # (changes, key, message, what the line told holds)
    (
        {"search.budget": {"steps": 7}},
        "search.budget.steps",
        "must be at least training.max_steps (8), or no trial could finish, got 7",
        "steps: 7",
    ),
    ({"pruning.floor": 1.5}, "pruning.floor", "must lie between 0 and 1 for accuracy, got 1.5", "floor: 1.5"),
    (
        {"pruning.floor": 0.5, "objectives.accuracy": "perplexity", **CAUSAL},
        "pruning.floor",
        "must be at least 1 for perplexity, got 0.5",
        "floor: 0.5",
    ),
    (
        {"logging": ["mlflow"]},
        "logging",
        "needs resources.backend: ray, whose loggers these are, got local",
        "logging:",
    ),
    (
        {f"{SPACE}.lora_scale": 2.0, f"{SPACE}.lora_alpha": 16},
        f"{SPACE}.lora_alpha",
        "can't be given together with lora_scale (alpha / r): one follows from the other",
        "lora_alpha: 16",
    ),
    (
        {"data.messages": "chat", "data.chat_template": "never", "training.task": "causal-lm"},
        "data.chat_template",
        "can't be never with data.messages: a chat has no other form",
        "chat_template: never",
    ),
    *(
        ({f"data.{key}": "x"}, f"data.{key}", "is for causal-lm, and training.task is classification", f"{key}: x")
        for key in ("messages", "choices", "system")
    ),
    (
        {INIT: "pissa"},
        INIT,
        f"pissa needs model.quantization: none, got nf4: {STOLEN}",
        "init_lora_weights: pissa",
    ),
    (
        {INIT: {"choices": ["default", "olora"]}, "model.quantization": "int8"},
        INIT,
        f"olora needs model.quantization: none, got int8: {STOLEN}",
        "init_lora_weights:",
    ),
    (
        {INIT: "loftq", "model.quantization": "int8"},
        INIT,
        "loftq makes up for the error of 4 bits and needs model.quantization nf4 or fp4, got int8",
        "init_lora_weights: loftq",
    ),
    (
        {INIT: {"choices": ["loftq", "default"]}, "model.quantization": "none"},
        INIT,
        "loftq makes up for the error of 4 bits and needs model.quantization nf4 or fp4, got none",
        "init_lora_weights:",
    ),
    (
        {f"{SPACE}.use_dora": True, "model.quantization": "int8"},
        f"{SPACE}.use_dora",
        "can't be used with model.quantization int8: PEFT's DoRA (0.21) loses the scales of 8-bit weights; nf4 is fine",
        "use_dora: true",
    ),
    (
        {INIT: "pissa", f"{SPACE}.use_dora": True, "model.quantization": "none"},
        INIT,
        f"pissa can't meet use_dora: {MAGNITUDES}",
        "init_lora_weights: pissa",
    ),
    (
        {INIT: {"choices": ["gaussian", "olora"]}, f"{SPACE}.use_dora": True, "model.quantization": "none"},
        INIT,
        f"olora can't meet use_dora: {MAGNITUDES}",
        "init_lora_weights:",
    ),
    (
        {INIT: "loftq", f"{SPACE}.use_dora": {"choices": [True, False]}},
        INIT,
        f"loftq can't meet use_dora: {MAGNITUDES}",
        "init_lora_weights: loftq",
    ),
    (
        {f"{SPACE}.rank_pattern": {"query@top": 2}},
        f"{SPACE}.rank_pattern.query@top",
        f"{BANDS} 'query@top'",
        "query@top: 2",
    ),
    (
        {f"{SPACE}.rank_pattern": {"@first": 2}},
        f"{SPACE}.rank_pattern.@first",
        f"{BANDS} '@first'",
        "@first': 2",
    ),
    (
        {f"{SPACE}.target_modules": ["query@2"], f"{SPACE}.rank_pattern": {}},
        f"{SPACE}.target_modules",
        f"{BANDS} 'query@2'",
        "target_modules:",
    ),
    (
        {f"{SPACE}.target_modules": {"choices": {"a": ["query"], "b": ["key@"]}}, f"{SPACE}.rank_pattern": {}},
        f"{SPACE}.target_modules",
        f"{BANDS} 'key@'",
        "target_modules:",
    ),
    (
        {"objectives.accuracy": "perplexity"},
        "objectives.accuracy",
        "must be one of accuracy, macro_f1 for classification, got 'perplexity'",
        "accuracy: perplexity",
    ),
    (
        {"objectives.accuracy": "macro_f1", **CAUSAL},
        "objectives.accuracy",
        ("must be one of exact_match, choice_accuracy, token_accuracy, perplexity for causal-lm, got 'macro_f1'"),
        "accuracy: macro_f1",
    ),
    (
        {"training.packing": True},
        "training.packing",
        "is for causal-lm: a text to classify needs a row of its own",
        "packing: true",
    ),
    (
        {"baselines.zero_shot": True},
        "baselines.zero_shot",
        "is for causal-lm: an untrained classification head only guesses",
        "zero_shot: true",
    ),
    (
        {"baselines.head_only": [0.01], **CAUSAL},
        "baselines.head_only",
        "is for classification: a causal language model gets no new head",
        "head_only:",
    ),
    (
        {"baselines.unquantized_lora": True, "model.quantization": "none"},
        "baselines.unquantized_lora",
        "says nothing here: model.quantization is none for all trials",
        "unquantized_lora: true",
    ),
    (
        {"training.optimizer": "paged_adamw_8bit"},
        "training.optimizer",
        "paged_adamw_8bit needs a GPU, and resources.gpus_per_trial is 0",
        "optimizer: paged_adamw_8bit",
    ),
]


@pytest.mark.parametrize(
    ("changes", "key", "message", "on_line"), REFUSED, ids=[f"{key}: {message}" for _, key, message, _ in REFUSED]
)
def test_what_is_impossible_together_is_the_one_problem_told(
    tmp_path: Path, changes: dict[str, Any], key: str, message: str, on_line: str
) -> None:
    file = write_sweep(tmp_path, changes)

    with pytest.raises(ConfigError) as caught:
        load_sweep_file(file)

    (problem,) = caught.value.problems
    assert (problem.key, problem.message) == (key, message)
    assert on_line in file.read_text(encoding="utf-8").splitlines()[(problem.line or 0) - 1]


TAKEN: list[dict[str, Any]] = [
    {f"{SPACE}.lora_alpha": {"choices": [16, 32]}},
    {INIT: {"choices": ["default", "loftq"]}, "model.quantization": "fp4"},
    {INIT: {"choices": ["pissa", "olora", "eva"]}, "model.quantization": "none"},
    {INIT: {"choices": ["default", "gaussian", "eva"]}, f"{SPACE}.use_dora": {"choices": [True, False]}},
    {f"{SPACE}.rank_pattern": {"query@first": 2, "mlp@last": 3, "middle": 4, "attention": 5}},
    {f"{SPACE}.target_modules": ["query@first", "mlp"]},
    {"objectives.accuracy": "macro_f1", "baselines.head_only": [0.01], "baselines.full": [1e-05]},
    {"objectives.accuracy": "perplexity", "training.packing": True, "baselines.zero_shot": True, **CAUSAL},
    {"training.optimizer": "paged_adamw_8bit", "resources.gpus_per_trial": 1},
    {"training.optimizer": "paged_adamw_8bit", "resources.gpus_per_trial": "auto"},
    {"baselines.unquantized_lora": True, "model.quantization": "int8"},
    {"data.path": None, "data.name": "org/rows", "data.subset": "easy"},
    {"logging": ["mlflow", "wandb", "tensorboard"], "resources.backend": "ray"},
]


@pytest.mark.parametrize("changes", TAKEN, ids=str)
def test_what_goes_together_is_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert load_sweep_file(write_sweep(tmp_path, changes)).name == "small"


def test_loggers_without_their_backend_are_told_beside_what_is_wrong_alone(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {"logging": ["wandb"], "search.num_trials": 0})

    with pytest.raises(ConfigError) as caught:
        load_sweep_file(file)

    assert {problem.key for problem in caught.value.problems} == {"logging", "search.num_trials"}


def test_every_impossible_start_is_told_in_the_same_order(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, {INIT: {"choices": ["pissa", "loftq", "olora"]}, f"{SPACE}.use_dora": True})

    with pytest.raises(ConfigError) as caught:
        load_sweep_file(file)

    told = [(problem.message.split()[0], "use_dora" in problem.message) for problem in caught.value.problems]
    assert told == [("loftq", True), ("olora", True), ("pissa", True), ("olora", False), ("pissa", False)]
