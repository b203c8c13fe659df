"""A worker that trains nothing: closed-form curves with the same signature, for tests of everything around a worker. No torch."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.layers import ALL_LINEAR, Group, Layer, ModelFacts, count_trainable, parse_selector, ranks_of
from tuner.trial import (
    Baseline,
    FailReason,
    HeldOut,
    Inspection,
    MemoryKind,
    Metrics,
    Outcome,
    Result,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.space_config import SpaceConfig

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
            num_test=self._config.data.test or 0,
            labels=("a", "b"),
            majority_share=0.5,
            model=synthetic_model(self._config.search.space),
        )

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """A rung takes no time: there is nothing to stop in the midst of."""

    def start(self, spec: TrialSpec) -> None:
        """Begin at step 0."""
        self._spec = spec
        self._steps = 0

    def advance(self) -> Result:
        """The next rung's numbers; a learning rate above 0.1 diverges."""
        assert self._spec is not None  # noqa: S101 -- start() comes first
        if self._spec.baseline is Baseline.ZERO_SHOT:
            return _metrics(self._spec, 0, self._config)
        if self._spec.scores is not None:
            return _metrics(self._spec, self._config.training.max_steps, self._config)
        self._steps = next(rung for rung in self._config.rungs if rung > self._steps)
        if self._spec.learning_rate > 0.1:  # noqa: PLR2004 -- the cliff
            return Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail="synthetic divergence")
        return _metrics(self._spec, self._steps, self._config)

    def close(self) -> None:
        """Nothing to drop."""


def synthetic_model(space: SpaceConfig) -> ModelFacts:
    """A model of six blocks that has every module which a space names, and more."""
    named = {target for targets in space.target_sets().values() for target in targets} | set(space.rank_pattern)
    modules = {parse_selector(key).name for key in named} - {"", ALL_LINEAR, *Group}
    names = sorted(modules | {"attention.q", "attention.v", "mlp.up", "mlp.down"})
    layers = tuple(
        Layer(
            name=f"blocks.{block}.{name}",
            group=Group.MLP if name.startswith("mlp") else Group.ATTENTION,
            block=block,
            num_blocks=6,
            in_features=64,
            out_features=64,
            has_bias=False,
        )
        for block in range(6)
        for name in names
    )
    return ModelFacts(layers=layers, num_params=10_000_000, hidden_size=64, family="synthetic", head_params=770)


def _metrics(spec: TrialSpec, steps: int, config: SweepConfig) -> Metrics:
    model = synthetic_model(config.search.space)
    ranks = ranks_of(model.layers, spec.lora) if spec.lora else {}
    total_rank = sum(ranks.values()) / 6
    fit = 1 - math.exp(-3 * steps / config.training.max_steps)
    skill = 0.95 - 0.4 / (1 + total_rank) - 0.3 * abs(math.log10(spec.learning_rate or 1e-3) + 2.5)
    accuracy = min(1.0, max(0.0, 0.5 + (skill - 0.5) * fit + _noise(spec, steps)))
    share = round(accuracy * NUM_VALIDATION) / NUM_VALIDATION
    return Metrics(
        steps=steps,
        tokens=steps * 256,
        train_s=steps * 0.01,
        accuracy=share,
        standard_error=math.sqrt(share * (1 - share) / NUM_VALIDATION),
        loss=-math.log(max(accuracy, 1e-3)),
        num_validation=NUM_VALIDATION,
        trainable_params=count_trainable(model, spec.lora),
        peak_memory_bytes=100 * 2**20 + 2**16 * len(ranks) + int(12 * 768 * total_rank),
        memory_kind=MemoryKind.CPU_ALLOCATED,
        held_out=_held_out(spec, accuracy, config)
        if spec.sees_test and steps in {0, config.training.max_steps}
        else None,
    )


def _held_out(spec: TrialSpec, accuracy: float, config: SweepConfig) -> HeldOut | None:
    num = config.data.test or 0
    if not num:
        return None
    share = round((0.99 * accuracy + 0.005 * _noise(spec, -1)) * num) / num
    error = math.sqrt(share * (1 - share) / num)
    draws = (random.Random(index).gauss(share, error) for index in range(100))  # noqa: S311 -- as above
    loss = -math.log(max(share, 1e-3))
    return HeldOut(accuracy=share, standard_error=error, loss=loss, num_test=num, resampled=tuple(draws))


def _noise(spec: TrialSpec, steps: int) -> float:
    return random.Random(f"{spec.seed}:{spec.params}:{steps}").gauss(0, 0.01)  # noqa: S311 -- reproducible, not secret
