"""A worker that trains nothing: closed-form curves with the same signature, for tests of everything around a worker. No torch."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.trial import FailReason, Inspection, MemoryKind, Metrics, Outcome, TrialSpec, TrialState

if TYPE_CHECKING:
    from tuner.config import SweepConfig

NUM_VALIDATION = 400


class SyntheticWorker:
    """Gives plausible curves at once: accuracy rises with steps and rank, falls off a cliff at high learning rates.

    Args:
        config: The sweep; the rungs come from it.
        folder: Not used.
    """

    def __init__(self, config: SweepConfig, folder: Path | None) -> None:
        del folder
        self._config = config
        self._spec: TrialSpec | None = None
        self._steps = 0

    def inspect(self) -> Inspection:
        """Nothing is ever wrong."""
        return Inspection(
            problems=(),
            data_fingerprint="synthetic",
            num_train=1000,
            num_validation=NUM_VALIDATION,
            labels=("a", "b"),
            majority_share=0.5,
        )

    def start(self, spec: TrialSpec) -> None:
        """Begin at step 0."""
        self._spec = spec
        self._steps = 0

    def advance(self) -> Metrics | Outcome:
        """The next rung's numbers; a learning rate above 0.1 diverges."""
        assert self._spec is not None  # noqa: S101 -- start() comes first
        assert self._spec.lora is not None  # noqa: S101 -- sweeps always adapt something
        self._steps = next(rung for rung in self._config.rungs if rung > self._steps)
        if self._spec.learning_rate > 0.1:  # noqa: PLR2004 -- the cliff
            return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail="synthetic divergence")
        return _metrics(self._spec, self._steps, self._config.training.max_steps)

    def close(self) -> None:
        """Nothing to drop."""


def _metrics(spec: TrialSpec, steps: int, max_steps: int) -> Metrics:
    assert spec.lora is not None  # noqa: S101 -- checked by the caller
    ranks = spec.lora.ranks()
    total_rank = sum(ranks.values())
    fit = 1 - math.exp(-3 * steps / max_steps)
    skill = 0.95 - 0.4 / (1 + total_rank) - 0.3 * abs(math.log10(spec.learning_rate) + 2.5)
    noise = random.Random(f"{spec.seed}:{spec.params}:{steps}").gauss(0, 0.01)  # noqa: S311 -- reproducible, not secret
    accuracy = min(1.0, max(0.0, 0.5 + (skill - 0.5) * fit + noise))
    return Metrics(
        steps=steps,
        tokens=steps * 256,
        train_s=steps * 0.01,
        accuracy=round(accuracy * NUM_VALIDATION) / NUM_VALIDATION,
        loss=-math.log(max(accuracy, 1e-3)),
        num_validation=NUM_VALIDATION,
        trainable_params=770 + 768 * total_rank,
        peak_memory_bytes=100 * 2**20 + 2**20 * len(ranks) + 12 * 768 * total_rank,
        memory_kind=MemoryKind.CPU_ALLOCATED,
    )
