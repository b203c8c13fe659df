"""Proves the CUDA path on a machine with a card, without Ray and without a model hub; writes one JSON.

    python tests/gpu/check.py --out gpu.json               # a Llama-shaped model of about 1B parameters
    python tests/gpu/check.py --out cpu.json --rehearse    # the same motions with a tiny model on the CPU

Builds the model from its configuration, runs the `gpu` tests and a short NF4 sweep on the local backend, and times trials that
make their steps together against the same trials one after another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.trial import Inspection, TrialRecord

ROOT = Path(__file__).parents[2]
SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
}
VOCABULARIES = {"llama-1b": 128256, "tiny": 64}
"""Words of the output layer, whose logits are a large part of the peak."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    """Run everything and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    found: dict[str, Any] = {"versions": {package: metadata.version(package) for package in PACKAGES}}
    if not arguments.rehearse:
        found |= _card()
        found["gpu_tests"] = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu"], cwd=ROOT, check=False
        ).returncode
    with tempfile.TemporaryDirectory() as folder:
        file = _sweep_file(Path(folder), is_rehearsal=arguments.rehearse)
        found["sweep"] = _sweep(file)
        found["together"] = _together(file)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(arguments.out.read_text(encoding="utf-8"))


def _card() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        sys.exit("no CUDA device: use --rehearse to go through the motions on the CPU")
    return {
        "card": torch.cuda.get_device_name(),
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
    }


def _build_model(folder: Path, shape: str) -> Path:
    """Random weights with a tokenizer of letters: enough for memory and speed, nothing to learn."""
    import torch
    from transformers import LlamaForCausalLM

    from tests.models import tiny_llama_config, tiny_tokenizer

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama_config(**SHAPES[shape], vocab_size=VOCABULARIES[shape]))
    model.to(dtype=torch.bfloat16).save_pretrained(folder / "model")  # type: ignore[call-arg]
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def _sweep_file(folder: Path, *, is_rehearsal: bool) -> Path:
    """Causal language model, NF4 with double quantization, sdpa; on a card bfloat16 and the paged optimizer too."""
    from tests.models import write_pairs
    from tests.sweeps import write_sweep

    model = _build_model(folder, "tiny" if is_rehearsal else "llama-1b")
    training = {"task": "causal-lm", "max_steps": 24, "batch_size": 8, "gradient_accumulation_steps": 2}
    if not is_rehearsal:
        training |= {"optimizer": "paged_adamw_8bit", "gradient_checkpointing": True}
    changes = {
        "model.name": str(model),
        "data": {"path": str(write_pairs(folder, 400)), "max_length": 64, "validation": 40},
        "training": training,
        "search.num_trials": 4,
        "search.space": {
            "r": {"choices": [4, 16]},
            "learning_rate": 0.001,
            "target_modules": {"choices": ["attention", "all-linear"]},
            "use_dora": {"choices": [False, True]},
        },
        "baselines": {"zero_shot": True, "full": [0.0001], "unquantized_lora": True},
        "pruning": {"method": "none"},
        "resources": {"backend": "local", "gpus_per_trial": 0 if is_rehearsal else 1},
        **({"objectives.memory": {"gpu": "L4-24GB"}} if is_rehearsal else {}),  # else for the card that is found
    }
    return write_sweep(folder, changes)


def _together(file: Path) -> dict[str, Any]:
    from benchmarks.together.speed import measured

    return measured(file, [], rounds=3, steps=3)


def _sweep(file: Path) -> dict[str, Any]:
    from tuner import sweep

    swept = sweep.run(file, out=file.parent / "out")
    return {
        "model_parameters": swept.inspection.model.num_params,
        "trials": [_summary(record, swept.inspection) for record in swept.records],
    }


def _summary(record: TrialRecord, inspection: Inspection) -> dict[str, Any]:
    from tuner.layers import count_trainable

    outcome = asdict(record.outcome) if record.outcome else None
    summary: dict[str, Any] = {"label": record.spec.label, "params": dict(record.spec.params), "outcome": outcome}
    if record.spec.lora is not None:
        summary["predicted_trainable_params"] = count_trainable(inspection.model, record.spec.lora)
    if record.prediction is not None:
        summary["predicted"] = asdict(record.prediction)
    if record.last is None:
        return summary
    return summary | asdict(record.last) | {"tokens_per_s": record.last.tokens / record.last.train_s}


if __name__ == "__main__":
    main()
