"""What float32 and bfloat16 cost on this CPU: processor time, accuracy and peak memory of three trials of the quickstart.

    .venv/bin/python benchmarks/by_hand/precision.py

One thread, no Ray, one type after the other; processor time is what other work on the machine moves least.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tuner.backends import worker_environment
from tuner.lora import LoraSpec
from tuner.sweep_file import load_sweep_file
from tuner.trial import Metrics, TrialSpec

FILE = Path("search_spaces/quickstart.yaml")
ADAPTERS = (
    (LoraSpec(r=1, lora_alpha=1.0, lora_dropout=0.1, target_modules=("query", "value")), 7.4e-3),
    (LoraSpec(r=4, lora_alpha=16.0, lora_dropout=0.1, target_modules=("attention",)), 4e-3),
    (LoraSpec(r=8, lora_alpha=16.0, lora_dropout=0.1, target_modules=("all-linear",)), 2e-3),
)


def main() -> None:
    """Print one line for each type and adapter."""
    os.environ.update(worker_environment(load_sweep_file(FILE)))
    from tuner.worker.host import Worker  # noqa: PLC0415 -- torch reads the environment when it is imported

    for dtype in ("float32", "bfloat16"):
        config = load_sweep_file(FILE, ["pruning.method=none", "search.budget={}", f"model.compute_dtype={dtype}"])
        worker = Worker(config, None)
        for number, (lora, learning_rate) in enumerate(ADAPTERS):
            worker.start(TrialSpec(number=number, lora=lora, learning_rate=learning_rate, seed=0))
            begun_s = time.process_time()
            last = [worker.advance() for _ in config.rungs][-1]
            assert isinstance(last, Metrics), last
            spent_s, mib = time.process_time() - begun_s, last.peak_memory_bytes / 2**20
            what = f"{dtype}, r {lora.r} on {', '.join(lora.target_modules)}"
            print(f"{what}: {spent_s:.1f} s of a processor, accuracy {last.accuracy:.4f}, {mib:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
