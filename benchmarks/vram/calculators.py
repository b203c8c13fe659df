"""tuner's prediction beside other calculators, on the peaks of tests/data/t4.json that others measured on a Tesla T4.

    .venv/bin/pip install --no-deps --target build/peers ftuneai==0.4.1 pyyaml
    .venv/bin/pip download --no-deps --no-binary :all: --dest build fitcheck-llm==0.3.1
    tar -xf build/fitcheck_llm-0.3.1.tar.gz -C build
    PYTHONPATH=.:build/peers .venv/bin/python benchmarks/vram/calculators.py build/fitcheck_llm-0.3.1/data/measurements

Each is asked with a row's own settings, and held against what it claims to predict:

- tuner: traced; peak allocated, and reserved with the CUDA context, which is what the process takes of the card.
- fitcheck-llm: its predictions as its archive stores them, of the version of each run's day, with constants fitted to such rows.
- ftuneai 0.4.1: `MemoryEstimator`, for what the process takes.
- accelerate's `estimate-memory` (documented): training with Adam takes four times the model's size; it knows no LoRA. In 16 bits.
- rule of thumb: 24 GB for LoRA and 9 GB for QLoRA of 7B parameters, in proportion.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from ftuneai.core.memory import MemoryEstimator  # type: ignore[import-not-found]
from ftuneai.core.models import (  # type: ignore[import-not-found]
    FineTuneMethod,
    LoRATarget,
    ModelSpec,
    Quantization,
    TrainingConfig,
)

from tests.unit.test_vram_t4 import ARCHIVE, MIB, T4, answer

RESULTS = Path(__file__).parent / "results"
GB = 1e9
ALLOCATED, PROCESS = "peak_allocated_mib", "process_mib"
THUMB_GB = {"none": 24.0, "nf4": 9.0}
"""Of a model of 7 billion parameters."""

Row = dict[str, Any]


def main(archive: Path) -> None:
    """Ask all, write a line for each row and calculator, and the summary."""
    stored = _stored(archive)
    found = [line for row in ARCHIVE["rows"] for line in _asked(row, stored)]
    table = pd.DataFrame(found)
    table["error"] = table["predicted_mib"] / table["measured_mib"] - 1
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / "calculators.csv", index=False, float_format="%.4f")
    summary = table.groupby(["calculator", "against"], sort=False)["error"].agg(
        rows="count", mean=lambda errors: errors.abs().mean(), worst=lambda errors: max(errors, key=abs)
    )
    lines = ["| calculator | against | rows | mean error | worst |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {against} | {line.rows:.0f} | {line['mean']:.1%} | {line.worst:+.1%} |"
        for (name, against), line in summary.iterrows()
    ]
    (RESULTS / "calculators.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _asked(row: Row, stored: dict[tuple[float, float], Row]) -> list[Row]:
    model, run, measured = row["model"], row["run"], row["measured"]
    prediction = answer(model, run)
    reserved = (prediction.reserved_bytes + T4.context_bytes) / MIB
    theirs = stored[measured["peak_allocated_mib"], measured["peak_reserved_mib"]]["predicted"]
    weights_mib = model["num_params"] * 2 / MIB
    thumb_mib = THUMB_GB[run["quantization"]] * GB / MIB * model["num_params"] / 7e9
    claims = {
        ("tuner", ALLOCATED): prediction.allocated_bytes / MIB,
        ("tuner", PROCESS): reserved,
        ("fitcheck-llm, as archived", ALLOCATED): theirs["total_mib"] - theirs["overhead_mib"],
        ("fitcheck-llm, as archived", PROCESS): theirs["total_mib"],
        ("ftuneai 0.4.1", PROCESS): _ftune_mib(model, run),
        ("accelerate estimate-memory, Adam", ALLOCATED): 4 * weights_mib,
        ("rule of thumb", PROCESS): thumb_mib,
    }
    return [
        {
            "calculator": name,
            "against": against,
            "model": model["name"],
            **{key: run[key] for key in ("quantization", "kernel", "batch_size", "seq_len", "lora_rank")},
            "predicted_mib": predicted,
            "measured_mib": measured[against],
        }
        for (name, against), predicted in claims.items()
    ]


def _stored(archive: Path) -> dict[tuple[float, float], Row]:
    """Runs of fitcheck's archive by what was measured."""
    runs = [run for file in archive.glob("*.json") for run in json.loads(file.read_text()).get("runs", [])]
    return {
        (run["measured"]["peak_allocated_mib"], run["measured"]["peak_reserved_mib"]): run
        for run in runs
        if "peak_reserved_mib" in run["measured"] and "activation_layer_mib" in run["predicted"]
    }


def _ftune_mib(model: Row, run: Row) -> float:
    spec = ModelSpec(
        name=model["name"],
        parameters=model["num_params"],
        hidden_size=model["hidden_size"],
        num_layers=model["num_layers"],
        num_attention_heads=model["num_attention_heads"],
        num_kv_heads=model["num_kv_heads"],
        intermediate_size=model["intermediate_size"],
        vocab_size=model["vocab_size"],
        max_seq_length=run["seq_len"],
        default_dtype="float16",
    )
    is_quantized = run["quantization"] == "nf4"
    config = TrainingConfig(
        method=FineTuneMethod.QLORA if is_quantized else FineTuneMethod.LORA,
        quantization=Quantization.INT4 if is_quantized else Quantization.NONE,
        batch_size=run["batch_size"],
        seq_length=run["seq_len"],
        gradient_checkpointing=run["grad_checkpoint"],
        lora_rank=run["lora_rank"],
        lora_target=LoRATarget.ATTENTION_ALL,
        flash_attention=run["kernel"] != "eager",
    )
    return float(MemoryEstimator(spec, config).estimate().total_gb) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
