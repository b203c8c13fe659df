"""Write the curves of finished sweeps as one table: `python benchmarks/pruning/record.py TASK FOLDER [FOLDER ...]`.

Each folder is a sweep of `TASK.yaml` with `pruning.method: none`, one per training seed. One line of `curves/TASK.csv` is a
configuration at a rung; `curves/TASK.json` is what was found in model and data.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pydantic import TypeAdapter

from tuner import sweep
from tuner.trial import Inspection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tuner.trial import ParamValue

CURVES = Path(__file__).parent / "curves"


def main() -> None:
    """Read the folders, write the table."""
    task, *folders = sys.argv[1:]
    sweeps = [sweep.load(folder) for folder in folders]
    table = pd.DataFrame([row for swept in sweeps for row in _rows(swept)])
    CURVES.mkdir(exist_ok=True)
    (CURVES / f"{task}.json").write_bytes(TypeAdapter(Inspection).dump_json(sweeps[0].inspection, indent=1))
    table.to_csv(CURVES / f"{task}.csv", index=False)
    print(f"{task}: {table.groupby('seed')['config'].nunique().to_dict()} configurations by seed, {len(table)} lines")


def _rows(swept: sweep.Sweep) -> Iterator[dict[str, ParamValue | None]]:
    for record in swept.records:
        if record.state.is_open:
            continue
        for metrics in record.curve:
            yield {
                "config": record.number,
                "seed": record.spec.seed,
                **dict(record.spec.params),
                "steps": metrics.steps,
                "accuracy": metrics.accuracy,
                "standard_error": metrics.standard_error,
                "loss": metrics.loss,
                "num_validation": metrics.num_validation,
                "trainable_params": metrics.trainable_params,
                "peak_memory_bytes": metrics.peak_memory_bytes,
                "train_s": metrics.train_s,
                "tokens": metrics.tokens,
                **dict(metrics.others),
                "outcome": record.outcome.reason if record.outcome else None,
            }


if __name__ == "__main__":
    main()
