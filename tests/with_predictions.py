"""Runs a sweep in a process of its own, on the cluster that RAY_ADDRESS names, with predictions as a test says.

`python -m tests.with_predictions run|resume PLACE WORKER NEEDS`: the sweep file is in the folder PLACE, its folder is PLACE/out,
NEEDS is JSON: rank -> GiB that a trial of that rank is predicted to need on every card.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.builders import make_prediction
from tuner import sweep
from tuner.errors import TunerError
from tuner.predictor import Predictor
from tuner.workload import gpu_of

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction
    from tuner.trial import Inspection, TrialSpec

ROOT = Path(__file__).parent.parent
GIB = 2**30


def drive(
    verb: str, place: Path, address: str, worker: str, needs_gib: dict[int, float] | None = None
) -> subprocess.Popen[str]:
    """Begin to run or resume a sweep; its errors are the last lines of what it writes."""
    needs = json.dumps(needs_gib or {})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.with_predictions", verb, str(place), worker, needs],
        env={**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 240) -> str:
    """Wait for its end; all that it wrote if something went wrong, else nothing."""
    _, errors = process.communicate(timeout=timeout_s)
    return errors.strip() if process.returncode else ""


def main(verb: str, place: str, worker: str, needs: str) -> int:
    """Drive; an error is one message."""
    needs_gib = {int(rank): gib for rank, gib in json.loads(needs).items()}

    def predict_trial(
        _: Predictor, spec: TrialSpec, config: SweepConfig, inspection: Inspection, gpu: Gpu | None = None
    ) -> Prediction | None:
        card = gpu or gpu_of(config) or inspection.gpu
        if spec.lora is None or card is None or spec.lora.r not in needs_gib:
            return None
        return make_prediction(int(needs_gib[spec.lora.r] * GIB), capacity_bytes=card.memory_bytes)

    Predictor.predict_trial = predict_trial  # type: ignore[method-assign, assignment]
    try:
        if verb == "run":
            sweep.run(Path(place) / "sweep-under-test.yaml", out=Path(place) / "out", backend="ray", worker=worker)
        else:
            sweep.resume(Path(place) / "out", worker=worker)
    except TunerError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
