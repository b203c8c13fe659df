"""What tuner and other VRAM calculators say of the runs in tests/data/t4.json, whose peaks others measured on a Tesla T4.

    .venv/bin/pip install --no-deps --target build/peers fitcheck-llm==0.3.1 canifinetune==0.4.1 ftuneai==0.4.1 \
        fitscout==0.1.1 platformdirs pyyaml
    PYTHONPATH=.:build/peers .venv/bin/python benchmarks/vram/calculators.py

Each is asked through its own code with a run's own settings, as far as it has them, and held against the measured field that it
claims to predict. `process_mib` is peak reserved with the CUDA context: what nvidia-smi shows.

- tuner: traced, nothing fitted; allocated against `peak_allocated_mib`, reserved with context against `process_mib`.
- fitcheck-llm, tensors: its formulas without overhead, against `peak_allocated_mib`.
- fitcheck-llm, total: with an overhead fitted to rows 4 to 32 among others; only rows 0 to 3 are new to it. `process_mib`.
- canifinetune: total less its safety margin, as its reports compare it, against `peak_reserved_mib`.
- ftuneai: total, which it validates with nvidia-smi, against `process_mib`. Its flash attention stands for SDPA.
- fitscout: total with its allowance for the CUDA context, against `process_mib`. It knows no eager attention and takes adapters
  to be on q and v.
- accelerate, size: `accelerate estimate-memory`'s "Total Size" in the weights' dtype, against `after_load_allocated_mib`.
- accelerate, Adam: its "Training using Adam" in float16, which is full training, against `peak_allocated_mib`. N/A in int4: left
  empty.
- rule of thumb: 24 GB for LoRA and 9 GB for QLoRA of 7 billion parameters, in proportion. `process_mib`.
- LLaMA-Factory: the same with the 16 and 6 GB of its README's "Hardware Requirement" (estimated). `process_mib`.

A GB of a rule is 10^9 bytes.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from accelerate.commands.estimate import estimate_training_usage  # type: ignore[import-untyped]
from accelerate.utils import calculate_maximum_sizes  # type: ignore[import-untyped]
from canifinetune.estimator.memory import EstimateRequest  # type: ignore[import-not-found]
from canifinetune.estimator.memory import estimate as canifinetune_estimate
from fitcheck.config_parser import ModelConfig  # type: ignore[import-not-found]
from fitcheck.estimator import MemoryReport  # type: ignore[import-not-found]
from fitcheck.estimator import TrainingConfig as FitcheckConfig
from fitcheck.estimator import estimate as fitcheck_estimate
from fitcheck.gpu_db import GPU_DB  # type: ignore[import-not-found]
from fitscout.memory.estimator import estimate_memory as fitscout_estimate  # type: ignore[import-not-found]
from fitscout.model.profile import ModelProfile  # type: ignore[import-not-found]
from ftuneai.core import models as ftune  # type: ignore[import-not-found]
from ftuneai.core.memory import MemoryEstimator  # type: ignore[import-not-found]
from transformers import AutoConfig, AutoModel

from tests.unit.test_vram_t4 import answer

ROOT = Path(__file__).parents[2]
MIB = 2**20
T4 = GPU_DB["t4"]
MODEL_TYPES = {"Mistral": "mistral", "Llama": "llama", "Qwen2.5": "qwen2", "SmolLM2": "llama", "TinyLlama": "llama"}
"""By the first word of a model's name."""

Fields = dict[str, Any]
"""A model, or the settings of a run, as t4.json has them."""


class Calculator(NamedTuple):
    """A calculator, asked for one thing."""

    name: str
    package: str | None
    """None: no package, a rule."""
    claim: str
    """What it says it predicts."""
    against: str
    """The measured field which that is."""
    predict_mib: Callable[[Fields, Fields], float | None]
    """From a model and the settings of a run; None where it has no answer."""


def main(runs: Path, results: Path) -> None:
    """Ask every calculator about every run, write a line for each, and print how wrong they are."""
    errors: dict[Calculator, list[float]] = defaultdict(list)
    with results.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["row", "calculator", "version", "claim", "predicted_mib", "against", "measured_mib", "error_percent"]
        )
        for index, row in enumerate(json.loads(runs.read_text(encoding="utf-8"))["rows"]):
            for calculator in CALCULATORS:
                predicted_mib = calculator.predict_mib(row["model"], row["run"])
                measured_mib = row["measured"][calculator.against]
                shown = ["", ""]
                if predicted_mib is not None:
                    error = 100 * (predicted_mib / measured_mib - 1)
                    errors[calculator].append(error)
                    shown = [f"{predicted_mib:.1f}", f"{error:.2f}"]
                number = version(calculator.package) if calculator.package else ""
                head = [index, calculator.name, number, calculator.claim]
                writer.writerow([*head, shown[0], calculator.against, f"{measured_mib:.1f}", shown[1]])
    for calculator, its in errors.items():
        mean, worst = sum(map(abs, its)) / len(its), max(its, key=abs)
        print(f"| {calculator.name} | {calculator.against} | {len(its)} | {mean:.1f} % | {worst:+.1f} % |")


def _tuner_allocated_mib(model: Fields, run: Fields) -> float:
    return answer(model, run).allocated_bytes / MIB


def _tuner_process_mib(model: Fields, run: Fields) -> float:
    return answer(model, run).total_bytes / MIB


def _fitcheck(model: Fields, run: Fields) -> MemoryReport:
    return fitcheck_estimate(
        ModelConfig(**model),
        FitcheckConfig(
            precision=run["precision"],
            quantization=run["quantization"],
            double_quant=run["double_quant"],
            optimizer=run["optimizer"],
            batch_size=run["batch_size"],
            seq_len=run["seq_len"],
            lora_rank=run["lora_rank"],
            lora_targets=run["lora_targets"],
            grad_checkpoint=run["grad_checkpoint"],
            flash_attn=run["kernel"] == "flash",
        ),
        T4,
    )


def _fitcheck_tensors_mib(model: Fields, run: Fields) -> float:
    report = _fitcheck(model, run)
    return float(report.total_mib - report.overhead_mib)


def _fitcheck_total_mib(model: Fields, run: Fields) -> float:
    return float(_fitcheck(model, run).total_mib)


def _canifinetune_mib(model: Fields, run: Fields) -> float:
    shape = {
        "family": _model_type(model),
        "num_hidden_layers": model["num_layers"],
        "num_key_value_heads": model["num_kv_heads"],
        "total_params": model["num_params"],
    }
    request = EstimateRequest(
        model_id=model["name"],
        override=model | shape,
        use_network=False,
        gpu_vram_gb=T4.vram_mib / 1024,
        method="qlora" if _is_quantized(run) else "lora",
        quantization=run["quantization"],
        base_dtype=run["precision"],
        seq_len=run["seq_len"],
        micro_batch_size=run["batch_size"],
        lora_rank=run["lora_rank"],
        lora_target_scope="attention",
        optimizer=run["optimizer"],
        gradient_checkpointing=run["grad_checkpoint"],
        attention_implementation=run["attn_impl"],
    )
    memory = canifinetune_estimate(request).memory
    return float(memory.total_estimated_gb - memory.safety_margin_gb) * 1024


def _ftuneai_mib(model: Fields, run: Fields) -> float:
    names = (
        "name",
        "hidden_size",
        "num_layers",
        "num_attention_heads",
        "num_kv_heads",
        "intermediate_size",
        "vocab_size",
    )
    spec = ftune.ModelSpec(
        **{name: model[name] for name in names},
        parameters=model["num_params"],
        max_seq_length=run["seq_len"],
        default_dtype=run["precision"],
    )
    config = ftune.TrainingConfig(
        method=ftune.FineTuneMethod.QLORA if _is_quantized(run) else ftune.FineTuneMethod.LORA,
        quantization=ftune.Quantization.INT4 if _is_quantized(run) else ftune.Quantization.NONE,
        batch_size=run["batch_size"],
        seq_length=run["seq_len"],
        gradient_checkpointing=run["grad_checkpoint"],
        optimizer=ftune.OptimizerType(run["optimizer"]),
        lora_rank=run["lora_rank"],
        lora_target=ftune.LoRATarget.ATTENTION_ALL,
        flash_attention=run["kernel"] == "flash",
    )
    return float(MemoryEstimator(spec, config).estimate().total_gb) * 1024


def _fitscout_mib(model: Fields, run: Fields) -> float:
    renamed = {"name", "num_params", "head_dim"}
    profile = ModelProfile(
        **{name: value for name, value in model.items() if name not in renamed}, params=model["num_params"]
    )
    estimate = fitscout_estimate(
        profile,
        method="qlora" if _is_quantized(run) else "lora",
        micro_batch=run["batch_size"],
        seq_len=run["seq_len"],
        grad_ckpt=run["grad_checkpoint"],
        lora_rank=run["lora_rank"],
    )
    return float(estimate.total_gb) * 1024


def _accelerate_size_mib(model: Fields, run: Fields) -> float:
    return _float32_bytes(*model.items()) / (8 if _is_quantized(run) else 2) / MIB


def _accelerate_adam_mib(model: Fields, run: Fields) -> float | None:
    dtype = "int4" if _is_quantized(run) else "float16"
    largest = max(estimate_training_usage(_float32_bytes(*model.items()), dtype).values())
    return None if largest == -1 else largest / MIB


@functools.cache
def _float32_bytes(*fields: tuple[str, Any]) -> int:
    """As accelerate's `create_empty_model` and `gather_data` count them: of `AutoModel`, which has no language model head."""
    model = dict(fields)
    config = AutoConfig.for_model(
        _model_type(model),
        **{
            name: value
            for name, value in model.items()
            if name not in {"name", "num_params", "num_layers", "num_kv_heads"}
        },
        num_hidden_layers=model["num_layers"],
        num_key_value_heads=model["num_kv_heads"],
    )
    with init_empty_weights():
        empty = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return int(calculate_maximum_sizes(empty)[0])


def _in_proportion(lora_gb: float, qlora_gb: float) -> Callable[[Fields, Fields], float]:
    """A rule that gives a memory for 7 billion parameters."""
    return lambda model, run: (qlora_gb if _is_quantized(run) else lora_gb) * 1e9 / MIB * model["num_params"] / 7e9


def _is_quantized(run: Fields) -> bool:
    return bool(run["quantization"] == "nf4")


def _model_type(model: Fields) -> str:
    return MODEL_TYPES[model["name"].split("-")[0]]


CALCULATORS = [
    Calculator("tuner, allocated", "tuner", "tensors at the peak", "peak_allocated_mib", _tuner_allocated_mib),
    Calculator("tuner, process", "tuner", "the process's peak", "process_mib", _tuner_process_mib),
    Calculator(
        "fitcheck-llm, tensors", "fitcheck-llm", "tensors at the peak", "peak_allocated_mib", _fitcheck_tensors_mib
    ),
    Calculator("fitcheck-llm, total", "fitcheck-llm", "the process's peak", "process_mib", _fitcheck_total_mib),
    Calculator("canifinetune", "canifinetune", "peak reserved", "peak_reserved_mib", _canifinetune_mib),
    Calculator("ftuneai", "ftuneai", "nvidia-smi's peak", "process_mib", _ftuneai_mib),
    Calculator("fitscout", "fitscout", "peak with CUDA context", "process_mib", _fitscout_mib),
    Calculator("accelerate, size", "accelerate", "loaded model", "after_load_allocated_mib", _accelerate_size_mib),
    Calculator("accelerate, Adam", "accelerate", "full training", "peak_allocated_mib", _accelerate_adam_mib),
    Calculator("rule of thumb", None, "card needed", "process_mib", _in_proportion(24, 9)),
    Calculator("LLaMA-Factory", None, "card needed", "process_mib", _in_proportion(16, 6)),
]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Other VRAM calculators on the measured runs.")
    parser.add_argument("--runs", type=Path, default=ROOT / "tests/data/t4.json")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/calculators.csv")
    arguments = parser.parse_args()
    main(arguments.runs, arguments.results)
