"""What the frozen encoder reaches with nothing but a trained head: the line that LoRA must beat.

    .venv/bin/python benchmarks/frozen_head.py [search_spaces/quickstart.yaml]

Trains the head alone with the sweep's data, batches and steps, over seven learning rates and three seeds, and prints the
validation accuracy of each; the best learning rate's mean is what README.md quotes.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from tuner.backends import TrialWorker, worker_environment
from tuner.sweep_file import load_sweep_file
from tuner.trial import Metrics, TrialSpec

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (0, 1, 2)


def main() -> None:
    """Print one line per learning rate."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "search_spaces/quickstart.yaml")
    config = load_sweep_file(file, ["pruning.method=none"])
    os.environ.update(worker_environment(config))
    from tuner.worker.host import Worker  # noqa: PLC0415 -- torch reads the environment when it is imported

    worker = Worker(config, None)
    for learning_rate in LEARNING_RATES:
        specs = [TrialSpec(number=0, lora=None, learning_rate=learning_rate, seed=seed) for seed in SEEDS]
        scores = [_last_accuracy(worker, spec, num_rungs=len(config.rungs)) for spec in specs]
        mean = statistics.mean(scores)
        listed = ", ".join(f"{score:.4f}" for score in scores)
        print(f"learning rate {learning_rate:g}: mean accuracy {mean:.4f} (seeds {SEEDS}: {listed})", flush=True)


def _last_accuracy(worker: TrialWorker, spec: TrialSpec, *, num_rungs: int) -> float:
    worker.start(spec)
    results = [worker.advance() for _ in range(num_rungs)]
    if isinstance(results[-1], Metrics):
        return results[-1].accuracy
    raise RuntimeError(str(results[-1]))


if __name__ == "__main__":
    main()
