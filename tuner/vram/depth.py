"""A deep model's peak from shallow ones: blocks of a kind all add the same, so a few of each kind tell about all."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tuner.layers import Layer, ranks_of
from tuner.prediction import Method, Phase, Prediction
from tuner.vram.predict import Case, PhaseSeen, Seen, look, prediction_from
from tuner.worker.architecture import layers_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from tuner.lora import LoraSpec

MOST_KINDS = 3
"""Beyond that tracing all blocks is as fast."""

Kind = tuple[object, ...]
"""What makes a block's memory: its type, and the rank of each of its layers."""


def predict_by_depth(case: Case, model: PreTrainedModel) -> Prediction | None:
    """Extrapolate in the number of blocks; None where that is not known to be right or saves nothing.

    Args:
        case: The trial, on the whole model.
        model: Its base, without weights.
    """
    layers = layers_of(model)
    kinds = _kinds(case, layers)
    counts = Counter(kinds)
    depths = _depths(counts)
    if (
        depths is None
        or sum(map(len, depths)) >= len(kinds)
        or len(kinds) != model.config.get_text_config().num_hidden_layers
    ):
        return None
    first, *others = [look(_shallow(case, layers, kinds, depth)) for depth in depths]
    weights = [(counts[kind] - depths[0].count(kind)) / _more(depths, kind) for kind in counts]
    return prediction_from(_combined(first, others, weights), case.gpu, Method.EXTRAPOLATED)


def _kinds(case: Case, layers: Sequence[Layer]) -> list[Kind]:
    """The kind of each block, in order."""
    ranks = ranks_of(layers, case.lora) if case.lora else {}
    types = getattr(case.config.get_text_config(), "layer_types", None) or []
    blocks: dict[int, list[object]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append((layer.short_name, ranks.get(layer.name, 0)))
    return [(*types[block : block + 1], *found) for block, found in sorted(blocks.items())]


def _depths(counts: Counter[Kind]) -> list[list[Kind]] | None:
    """The kinds of the blocks of each shallow model: one to start from, and one with more of each kind."""
    kinds = list(counts)
    if not kinds or len(kinds) > MOST_KINDS:
        return None
    if len(kinds) == 1:
        return [kinds * 2, kinds * 4]
    return [kinds, *([one for kind in kinds for one in [kind] * (1 + (kind == more))] for more in kinds)]


def _more(depths: list[list[Kind]], kind: Kind) -> int:
    """Blocks of a kind that its own shallow model has beyond the first."""
    return max(depth.count(kind) for depth in depths) - depths[0].count(kind)


def _shallow(case: Case, layers: Sequence[Layer], kinds: list[Kind], chosen: list[Kind]) -> Case:
    """The trial on a model of a few blocks; every layer keeps its rank, by its full name."""
    sources = [kinds.index(kind) for kind in chosen]
    config = copy.deepcopy(case.config)
    text: PretrainedConfig = config.get_text_config()
    text.num_hidden_layers = len(sources)
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[source] for source in sources]
    lora = case.lora and _shallow_lora(case.lora, layers, sources)
    return dataclasses.replace(case, config=config, lora=lora)


def _shallow_lora(lora: LoraSpec, layers: Sequence[Layer], sources: Sequence[int]) -> LoraSpec:
    ranks = ranks_of(layers, lora)
    pattern = tuple(
        (layer.name.replace(f".{source}.", f".{place}.", 1), ranks[layer.name])
        for place, source in enumerate(sources)
        for layer in layers
        if layer.block == source and layer.name in ranks
    )
    return dataclasses.replace(lora, target_modules=tuple(name for name, _ in pattern), rank_pattern=pattern)


def _combined(first: Seen, others: Sequence[Seen], weights: Sequence[float]) -> Seen:
    """The first with so many times what each of the others has more; what is reserved and unused depends little on depth."""

    def whole(start: float, ends: Iterable[float]) -> float:
        return start + sum(weight * (end - start) for end, weight in zip(ends, weights, strict=True))

    def phase_of(phase: Phase) -> PhaseSeen:
        seen, theirs = first.phases[phase], [other.phases[phase].parts for other in others]
        names = {*seen.parts, *(name for parts in theirs for name in parts)}
        parts = {name: whole(seen.parts.get(name, 0), [one.get(name, 0) for one in theirs]) for name in names}
        return dataclasses.replace(seen, parts=parts)

    return Seen(
        phases={phase: phase_of(phase) for phase in first.phases},
        slack_bytes=first.slack_bytes,
        unused_bytes=max(seen.unused_bytes for seen in (first, *others)),
        trainable_params=whole(first.trainable_params, [other.trainable_params for other in others]),
    )
