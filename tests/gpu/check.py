"""Proves the CUDA path on a machine with a card, without Ray and without a model hub; writes one JSON.

    python tests/gpu/check.py --out gpu.json               # a Llama-shaped model of about 1B parameters
    python tests/gpu/check.py --out cpu.json --rehearse    # the same motions with a tiny model on the CPU

Builds the model from its configuration, runs the `gpu` tests and a short NF4 sweep on the local backend.
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
    from tuner.trial import TrialRecord

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "models" / "all-minilm-l6-v2"
SHAPES = {
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
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
        found["trials"] = _sweep(Path(folder), is_rehearsal=arguments.rehearse)
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
    """Random weights with the encoder's tokenizer: enough for memory and speed, nothing to learn."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SHAPES[shape])  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)  # type: ignore[no-untyped-call]
    model.to(dtype=torch.bfloat16).save_pretrained(folder / "model")  # type: ignore[call-arg]
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


def _sweep(folder: Path, *, is_rehearsal: bool) -> list[dict[str, Any]]:
    from tests.sweeps import write_sweep
    from tuner import sweep

    model = _build_model(folder, "tiny" if is_rehearsal else "llama-1b")
    changes = {
        "model.name": str(model),
        "training": {"max_steps": 40, "batch_size": 8},
        "search.space.target_modules": {
            "choices": {"qv": ["q_proj", "v_proj"], "all": ["q_proj", "v_proj", "up_proj"]}
        },
        "search.space.rank_pattern": {"up_proj": {"choices": [1, 2]}},
        "pruning": {"method": "none"},
        "resources": {"backend": "local", "gpus_per_trial": 0 if is_rehearsal else 1},
    }
    swept = sweep.run(write_sweep(folder, changes), out=folder / "out")
    return [_summary(record) for record in swept.records]


def _summary(record: TrialRecord) -> dict[str, Any]:
    summary = {"params": dict(record.spec.params), "outcome": asdict(record.outcome) if record.outcome else None}
    if record.last is None:
        return summary
    return summary | asdict(record.last) | {"tokens_per_s": record.last.tokens / record.last.train_s}


if __name__ == "__main__":
    main()
