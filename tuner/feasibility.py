"""Whether a trial can fit into the memory limit, known before it begins. Pure; runs on the driver.

Where the sweep names a card, or runs on one, by its predicted peak. Else only what is certain counts: weights, gradients and
optimizer state that a trial must hold at the same time, and trials that were found too large and ask for less in every respect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.front import GIB
from tuner.layers import count_trainable, ranks_of
from tuner.prediction import Verdict
from tuner.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tuner.config import SweepConfig
    from tuner.layers import ModelFacts
    from tuner.lora import LoraSpec
    from tuner.trial import TrialRecord

BYTES_QUANTIZED = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
"""Of a weight in a quantized linear layer, its scales not counted."""
BYTES_TRAINED = {"adamw": 16, "paged_adamw_8bit": 8}
"""Of a trained number: float32 weight and gradient, and AdamW's two moments where they can't be paged out."""


def misfit(record: TrialRecord, config: SweepConfig) -> tuple[str, float] | None:
    """Tell why a trial's predicted peak is too large, and by how many GiB; None where it may fit or nothing is predicted."""
    found = record.prediction
    if found is None:
        return None
    limit = config.resources.memory_limit_gib
    needed, there = (found.allocated_bytes + found.context_bytes) / GIB, found.capacity_bytes / GIB
    if found.verdict is Verdict.DOES_NOT_FIT:
        return f"predicted to need {needed:.2f} GiB in its {found.phase}, the card has {there:.2f} GiB", needed - there
    allocated = found.allocated_bytes / GIB
    if limit is not None and allocated > limit:
        return (
            f"predicted to need {allocated:.2f} GiB in its {found.phase}, the limit is {limit:g} GiB",
            allocated - limit,
        )
    return None


def too_large(
    record: TrialRecord, config: SweepConfig, model: ModelFacts, records: Iterable[TrialRecord]
) -> tuple[str, float] | None:
    """Tell why a trial of the search cannot fit, and by how much.

    Args:
        record: The trial, nothing of which has run.
        config: The sweep, with its limit.
        model: The base.
        records: Trials so far.

    Returns:
        (reason for people, GiB above the limit, above 0); None where it may fit, or where there is no limit.
    """
    if record.prediction is not None:
        return misfit(record, config)
    limit, lora = config.resources.memory_limit_gib, record.spec.lora
    if limit is None or not model.layers or lora is None:
        return None
    least = least_bytes(lora, config, model) / GIB
    if least > limit:
        return (
            f"weights, gradients and optimizer state alone take {least:.2f} GiB, the limit is {limit:g} GiB",
            least - limit,
        )
    for other in records:
        if other.state is TrialState.INFEASIBLE and other.spec.lora and other.last is not None:
            asks_less = _asks_no_more(other.spec.lora, lora, model)
            if asks_less and (excess := other.last.peak_memory_bytes / GIB - limit) > 0:
                return f"trial {other.number} asks for no more in any layer and was too large", excess
    return None


def least_bytes(lora: LoraSpec, config: SweepConfig, model: ModelFacts) -> float:
    """Bytes that a training step holds at the same time, activations and buffers not counted.

    Args:
        lora: The adapter.
        config: Says how the base is stored and which optimizer is used.
        model: The base.
    """
    linear = sum(layer.in_features * layer.out_features for layer in model.layers)
    plain = 2 if config.model.compute_dtype == "bfloat16" or config.resources.uses_gpu else 4
    base = linear * BYTES_QUANTIZED.get(config.model.quantization, plain) + (model.num_params - linear) * plain
    return base + count_trainable(model, lora) * BYTES_TRAINED[config.training.optimizer]


def _asks_no_more(one: LoraSpec, other: LoraSpec, model: ModelFacts) -> bool:
    """Whether the first adapter needs no more memory than the other, layer by layer."""
    if one.use_dora > other.use_dora or one.bias != other.bias or bool(one.lora_dropout) > bool(other.lora_dropout):
        return False
    ranks = ranks_of(model.layers, other)
    return all(r <= ranks.get(name, 0) for name, r in ranks_of(model.layers, one).items())
