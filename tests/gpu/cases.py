"""Sweeps whose peaks are measured beside what was predicted: two adapters each, on a card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.shapes import build, fill, write_long_pairs
from tests.sweeps import ROOT, write_sweep

ADAPTERS = {
    "r": {"choices": [16]},
    "learning_rate": 0.0001,
    "lora_dropout": 0.0,
    "target_modules": {"choices": ["attention", "all-linear"]},
}
STEPS = 3
"""Enough for the largest batch with the optimizer's state in memory, and for an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is asked of the card."""

    shape: str = "llama-1b"
    """Key of `SHAPES`."""
    rows: int = 4
    """Examples in a batch; as many in an evaluation's."""
    tokens: int = 512
    """In the longest example."""
    is_ragged: bool = True
    """Whether the examples differ in length, so that a batch has a mask."""
    changes: dict[str, Any] = field(default_factory=dict)
    """To the sweep, by dotted key."""


CHECKPOINTED = {"training.gradient_checkpointing": True}
CASES = {
    "nf4": Case(),
    "nf4, equal lengths": Case(is_ragged=False, changes={"objectives.memory.padding": "none"}),
    "nf4, checkpointed": Case(changes=CHECKPOINTED),
    "nf4, checkpointed, paged 8-bit, accumulated": Case(
        changes={
            **CHECKPOINTED,
            "training.optimizer": "paged_adamw_8bit",
            "training.gradient_accumulation_steps": 2,
        }
    ),
    "nf4, packed, checkpointed": Case(tokens=1024, changes={**CHECKPOINTED, "training.packing": True}),
    "nf4, 2 x 2048, checkpointed": Case(rows=2, tokens=2048, changes=CHECKPOINTED),
    "nf4, dropout": Case(changes={"search.space.lora_dropout": 0.1}),
    "nf4, DoRA": Case(changes={"search.space.use_dora": True}),
    "nf4, eager attention": Case(changes={"model.attention": "eager"}),
    "nf4, float32": Case(rows=2, changes={"model.compute_dtype": "float32"}),
    "fp4, plain scales": Case(changes={"model.quantization": "fp4", "model.double_quantization": False}),
    "16 bits": Case(changes={"model.quantization": "none"}),
    "full fine-tuning": Case(changes={**CHECKPOINTED, "baselines": {"full": [0.0001]}, "search.num_trials": 1}),
    "mistral-7b nf4, checkpointed": Case(shape="mistral-7b", changes=CHECKPOINTED),
    "mistral-7b nf4, 1 x 2048": Case(shape="mistral-7b", rows=1, tokens=2048, is_ragged=False),
}
REHEARSED = ("nf4", "nf4, packed, checkpointed", "full fine-tuning")
"""What the rehearsal on a CPU goes through."""


def write_case(folder: Path, case: Case, *, is_rehearsal: bool) -> Path:
    """The sweep file of a case; the rehearsal takes a tiny model and short texts."""
    tokens = case.tokens // 4 if is_rehearsal else case.tokens
    prompt = tokens * 3 // 4
    data = write_long_pairs(folder, 60, prompt, is_ragged=case.is_ragged)
    changes = {
        "model.name": str(build(folder, "tiny" if is_rehearsal else case.shape)),
        "data": {"path": str(data), "max_length": tokens + 16, "validation": 8},
        "training": {"task": "causal-lm", "max_steps": STEPS, "batch_size": case.rows, "eval_batch_size": case.rows},
        "search.num_trials": 2,
        "search.seed": 1,  # draws one of each
        "search.space": dict(ADAPTERS),
        "pruning": {"method": "none"},
        "resources": {"backend": "local", "gpus_per_trial": 0 if is_rehearsal else 1},
    }
    if is_rehearsal:
        changes["objectives.memory.gpu"] = "L4-24GB"  # else for the card that is found
    return write_sweep(folder, changes | case.changes)


def write_sweep_with_baselines(folder: Path, *, is_rehearsal: bool) -> Path:
    """Four trials of 24 steps and all kinds of baselines."""
    case = Case(rows=8, tokens=128, changes=BASELINES | ({} if is_rehearsal else PAGED))
    return write_case(folder, case, is_rehearsal=is_rehearsal)


BASELINES = {
    "training.max_steps": 24,
    "training.gradient_accumulation_steps": 2,
    "search.num_trials": 4,
    "search.space.target_modules": {"choices": ["attention", "all-linear"]},
    "search.space.use_dora": {"choices": [False, True]},
    "baselines": {"zero_shot": True, "full": [0.0001], "unquantized_lora": True},
}
PAGED = {"training.optimizer": "paged_adamw_8bit", "training.gradient_checkpointing": True}


def examples(folder: Path, models: Path, *, is_rehearsal: bool) -> dict[str, tuple[Path, list[str]]]:
    """Sweep files whose trials are to compute together, and what is changed in them; those whose model is there."""
    own = write_case(folder, Case(rows=8, tokens=128), is_rehearsal=is_rehearsal)
    found: dict[str, tuple[Path, list[str]]] = {"llama": (own, [])}
    changes = [] if is_rehearsal else ["resources.gpus_per_trial=1"]
    if (models / "all-minilm-l6-v2").is_dir():
        found["quickstart"] = ROOT / "search_spaces" / "quickstart.yaml", changes
    if (models / "smollm2").is_dir():
        model = f"model.name={fill(models / 'smollm2')}"
        found["tool-calling"] = ROOT / "search_spaces" / "tool-calling-smollm2.yaml", [*changes, model]
    return found
