"""Small sweep files for tests: one valid document, changed where a test wants it otherwise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tuner.config import SweepConfig
from tuner.sweep_file import load_sweep_file

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "all-minilm-l6-v2"
DATA = ROOT / "data" / "wordnet10.jsonl.gz"

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "model": {"name": str(MODEL)},
    "data": {"path": str(DATA), "max_length": 32, "validation": 40, "test": 10},
    "training": {"max_steps": 8, "batch_size": 4},
    "search": {
        "num_trials": 4,
        "sampler": "random",
        "start": "none",
        "space": {
            "r": {"choices": [1, 4, 8]},
            "lora_dropout": {"low": 0.0, "high": 0.3},
            "learning_rate": {"low": 0.001, "high": 0.01, "log": True},
            "target_modules": {"choices": {"qv": ["query", "value"], "all": ["query", "value", "intermediate.dense"]}},
            "rank_pattern": {"intermediate.dense": {"choices": [1, 2]}},
        },
    },
    "pruning": {"min_steps": 2},
    "resources": {"backend": "local"},
}


def document(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The small sweep with changes by dotted key; None as a value removes the key."""
    changed = copy.deepcopy(DOCUMENT)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        node = changed
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return changed


def write_sweep(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """Write the small sweep, changed, as `sweep-under-test.yaml`."""
    file = folder / "sweep-under-test.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(document(changes), stream)
    return file


def small_config(folder: Path, changes: dict[str, Any] | None = None) -> SweepConfig:
    """The small sweep, changed, as the driver sees it."""
    return load_sweep_file(write_sweep(folder, changes))
