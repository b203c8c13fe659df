"""Proves the CUDA path on a machine with a card, without Ray and without a model hub; writes one JSON.

    python tests/gpu/check.py --out gpu.json                # models of 1 and 7B parameters, built on the spot
    python tests/gpu/check.py --out cpu.json --rehearse     # the same motions with a tiny model on the CPU
    python tests/gpu/check.py --out gpu.json --only start together

Each part runs in a process of its own, so that one that fails leaves the others alone, and what is not timed runs side by side:

- `start`: the card; random weights for folders under models/ that have none;
- `tests`: those marked gpu;
- `memory-0`, `memory-1`, `memory-2`: measured beside predicted (`cases.py`);
- `together`: trials in one pass against the same ones alone; what a step's time goes to; peaks;
- `sweep`: a short NF4 sweep with baselines.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.trial import Inspection, TrialRecord
    from tuner.worker.lockstep import Lockstep
    from tuner.worker.training import TrialRun

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "optuna", "accelerate")
LIMIT_S = 200
"""Of a part."""
MEMORY_PARTS = 3
STAGES = (
    ("start",),
    ("together",),
    ("tests", *(f"memory-{share}" for share in range(MEMORY_PARTS))),
    ("sweep",),
)
"""Parts that run at the same time."""
SIZES = (8, 4, 2, 1)
"""Trials together."""
MODELS = ROOT / "models"


def main() -> None:
    """Run the parts and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", action="store_true", help="one part, in this process")
    asked = parser.parse_args()
    if asked.here:
        with tempfile.TemporaryDirectory() as folder:
            found = PARTS[asked.only[0]](Path(folder), asked.rehearse)
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    whole: dict[str, Any] = {"versions": {package: metadata.version(package) for package in PACKAGES}}
    for stage in STAGES:
        for part, process in [(part, _started(part, asked)) for part in stage if part in asked.only]:
            whole[part] = _ended(part, process, asked)
            asked.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _file_of(part: str, asked: argparse.Namespace) -> Path:
    out: Path = asked.out
    return out.with_suffix(f".{part}.json")


def _started(part: str, asked: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--here", "--only", part, "--out", str(_file_of(part, asked))]
    return subprocess.Popen([*command, *(["--rehearse"] if asked.rehearse else [])])


def _ended(part: str, process: subprocess.Popen[bytes], asked: argparse.Namespace) -> Any:
    """What a part found, or what became of it."""
    begun_s = time.perf_counter()
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
    _say(f"{part}: ended with {process.returncode} after {time.perf_counter() - begun_s:.0f} s")
    file = _file_of(part, asked)
    if not file.exists():
        return {"ended with": process.returncode}
    found = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return found


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _start(folder: Path, is_rehearsal: bool) -> Any:
    """The card, and models for the examples."""
    import torch

    del folder
    if is_rehearsal:
        return {}
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: use --rehearse to go through the motions on the CPU")
    from tests.gpu.shapes import fill

    for place in MODELS.glob("*/config.json"):
        fill(place.parent)
    found = torch.cuda.get_device_properties(0)
    return {
        "card": found.name,
        "memory_mib": found.total_memory / 2**20,
        "capability": [found.major, found.minor],
        "cuda": torch.version.cuda,
    }


def _tests(folder: Path, is_rehearsal: bool) -> Any:
    """Those that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    del folder, is_rehearsal
    return {"returned": done.returncode, "output": done.stdout[-6000:]}


def _sweep(folder: Path, is_rehearsal: bool) -> Any:
    """NF4 with double quantization, sdpa; on a card bfloat16 and the paged optimizer too."""
    from tests.gpu.cases import write_sweep_with_baselines
    from tuner import sweep

    file = write_sweep_with_baselines(folder, is_rehearsal=is_rehearsal)
    begun_s = time.perf_counter()
    swept = sweep.run(file, out=folder / "out")
    return {
        "model_parameters": swept.inspection.model.num_params,
        "hardware": swept.inspection.hardware,
        "seconds": round(time.perf_counter() - begun_s, 1),
        "context_mib": None if is_rehearsal else _context_mib(),
        "trials": [_summary(record, swept.inspection) for record in swept.records],
    }


def _memory(folder: Path, is_rehearsal: bool, share: int = 0) -> Any:
    """Measured beside predicted; every third case."""
    from tests.gpu.cases import CASES, REHEARSED, write_case
    from tuner import sweep

    found: dict[str, Any] = {}
    names = list(REHEARSED if is_rehearsal else CASES)
    for number, name in enumerate(names[share::MEMORY_PARTS]):
        begun_s = time.perf_counter()
        try:
            swept = sweep.run(write_case(folder, CASES[name], is_rehearsal=is_rehearsal), out=folder / str(number))
            found[name] = [_peaks(record) for record in swept.records]
        except Exception:  # noqa: BLE001 -- told, and the rest goes on
            found[name] = traceback.format_exc()[-2000:]
        _say(f"{name}: {time.perf_counter() - begun_s:.1f} s {json.dumps(found[name])}")
    return found


def _context_mib() -> float:
    """What the card's memory has in use beside torch's allocator."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / 2**20


def _together(folder: Path, is_rehearsal: bool) -> Any:
    """Speed and memory of several trials in one pass."""
    from tests.gpu.cases import examples

    found: dict[str, Any] = {}
    for name, (file, changes) in examples(folder, MODELS, is_rehearsal=is_rehearsal).items():
        try:
            found[name] = _compared(file, changes)
        except Exception:  # noqa: BLE001 -- told, and the rest goes on
            found[name] = traceback.format_exc()[-2000:]
        _say(f"{name}: {json.dumps(found[name])}")
    return found


def _compared(file: Path, changes: list[str]) -> dict[str, Any]:
    from benchmarks.together.speed import measured, start
    from tuner.sweep_file import load_sweep_file

    config = load_sweep_file(file, changes)
    lockstep, runs = start(config, SIZES[0])
    found = measured(config, lockstep, runs, rounds=3, steps=2)
    found |= {
        "profile": {
            "alone": _profiled(runs[0].step),
            "together": _profiled(functools.partial(lockstep.step, runs)),
        }
    }
    return found | {"peak_mib": _peaks_together(lockstep, runs) if config.resources.uses_gpu else {}}


def _peaks_together(lockstep: Lockstep, runs: list[TrialRun]) -> dict[str, Any]:
    """MiB that the process has allocated and reserved at most, by trials together."""
    import torch

    peaks = {}
    for size in SIZES:
        lockstep.forget()
        del runs[size:]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            lockstep.step(runs)
        most = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        peaks[str(size)] = [round(num_bytes / 2**20, 1) for num_bytes in most]
    return peaks


def _profiled(step: Callable[[], Any]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    averages = recorded.key_averages()
    kernels = [one for one in averages if one.device_type.name == "CUDA"]
    return {
        "kernels": sum(one.count for one in kernels),
        "kernels_ms": sum(one.self_device_time_total for one in kernels) / 1e3,
        "processor_ms": sum(one.self_cpu_time_total for one in averages) / 1e3,
        "most_on_card": _top(kernels, "self_device_time_total"),
        "most_on_processor": _top(averages, "self_cpu_time_total"),
    }


def _top(averages: Any, key: str) -> list[Any]:
    most = sorted(averages, key=lambda one: -getattr(one, key))[:15]
    return [[one.key[:80], one.count, round(getattr(one, key) / 1e3, 2)] for one in most]


def _peaks(record: TrialRecord) -> dict[str, Any]:
    """Bytes of a trial, measured and predicted."""
    foretold = record.prediction
    return {
        "label": record.spec.label,
        "params": dict(record.spec.params),
        "outcome": asdict(record.outcome) if record.outcome else None,
        "allocated": record.last and record.last.peak_memory_bytes,
        "reserved": record.last and record.last.peak_reserved_bytes,
        "predicted_allocated": foretold and foretold.allocated_bytes,
        "predicted_reserved": foretold and foretold.reserved_bytes,
        "predicted_phase": foretold and foretold.phase,
    }


def _summary(record: TrialRecord, inspection: Inspection) -> dict[str, Any]:
    from tuner.layers import count_trainable

    summary = _peaks(record)
    if record.spec.lora is not None:
        summary["predicted_trainable_params"] = count_trainable(inspection.model, record.spec.lora)
    if record.last is None:
        return summary
    speed = {"tokens_per_s": round(record.last.tokens / record.last.train_s), "train_s": record.last.train_s}
    return summary | speed | {"trainable_params": record.last.trainable_params, "loss": record.last.loss}


PARTS: dict[str, Callable[[Path, bool], Any]] = {
    "start": _start,
    "tests": _tests,
    **{f"memory-{share}": functools.partial(_memory, share=share) for share in range(MEMORY_PARTS)},
    "sweep": _sweep,
    "together": _together,
}

if __name__ == "__main__":
    main()
