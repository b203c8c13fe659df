"""Saved adapters: read, written, and put into other forms, uniform for serving engines or of a smaller rank. Runs on the worker.

A is (r, in), B is (out, r), s is the factor on B A x. Which form which engine reads rightly: docs/serving.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tuner.layers import Layer
from tuner.worker.starts import BASE

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
SERVING_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Of the uniform form: vLLM has kernels for these alone, and LoRAX scales wrongly at others that are no multiple of 16."""
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Projections that engines compute as one: SGLang wants all of a row adapted or none."""
HARMLESS_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; with others PEFT changes it at every load."""
OTHER_FORMULAS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
"""Fields of PEFT's LoraConfig that, where set, make an adapter something else than W x + s B A x on linear layers."""
NEUTRAL: Mapping[str, Any] = {
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_ga_config": None,
    "loftq_config": {},
}
"""Fields that say how an adapter was started or found its layers: of no use where the start is plain and the layers are named."""
HALF = re.compile(rf"{re.escape(BASE)}(?P<name>.+)\.lora_(?P<half>[AB])\.weight")
"""Key of an A or a B on a linear layer."""


class FormError(ValueError):
    """The adapter has no such form; says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterWeights:
    """An adapter as it stands in its files."""

    config: Mapping[str, Any]
    """`adapter_config.json`, in PEFT's words."""
    tensors: Mapping[str, torch.Tensor]
    """`adapter_model.safetensors`: A and B of each layer, and whole modules that were trained with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """What an adapter adds to one layer: B A x."""

    a_RI: torch.Tensor
    """float32, (r, in)."""
    b_OR: torch.Tensor
    """float32, (out, r), the scale within."""


def read_adapter(folder: Path) -> AdapterWeights:
    """Read an adapter's two files; never a pickle.

    Raises:
        OSError: A file is missing or can't be read.
        ValueError: A file is broken, or the adapter is no LoRA.
    """
    for file in (folder / CONFIG, folder / TENSORS):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {file.name}; adapters are read from safetensors only")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{folder} holds a broken adapter: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ValueError(f"{folder / CONFIG}: peft_type must be LORA, got {kind!r}")
    return AdapterWeights(config=config, tensors=tensors)


def write_adapter(weights: AdapterWeights, folder: Path) -> None:
    """Write an adapter as PEFT does, into a folder that is made if need be.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous().cpu() for name, value in weights.tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    # PEFT sorts patterns too (0.21), and so changes which of two that overlap comes first and counts
    text = json.dumps(dict(sorted(weights.config.items())), indent=2)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def as_serving(weights: AdapterWeights, layers: Sequence[Layer]) -> AdapterWeights:
    """The uniform form, which every engine reads alike: one rank, scale 1, the same modules in each block.

    A and B are padded with zeros and B takes the scale, so that B A x is what it was; layers that an engine expects beside
    the adapted ones get a B A of zero. A and B keep their dtype where that loses nothing, else they become float32.

    Args:
        weights: As trained.
        layers: The linear layers of the base's blocks.

    Raises:
        FormError: Some of what was trained has no place in this form.
        ValueError: The adapter is not whole, or does not fit the layers.
    """
    _refuse([*_problems(weights), *_serving_problems(weights, layers)])
    pairs = _pairs(weights)
    r = _serving_rank(len(pair.a_RI) for pair in pairs.values())
    chosen = _completed(layers, pairs)
    uniform = {
        **{key: value for key, value in NEUTRAL.items() if key in weights.config},
        "r": r,
        "lora_alpha": r,
        "target_modules": _targets(layers, {layer.name for layer in chosen}),
        "init_lora_weights": True,
    }
    padded = {layer.name: _padded(pairs.get(layer.name), layer, r) for layer in chosen}
    return _with_pairs(weights, padded, uniform)


def as_rank(weights: AdapterWeights, rank: int) -> AdapterWeights:
    """The adapter cut to a rank: of each layer's B A the best approximation; layers of at most this rank stay.

    Source: Eckart and Young 1936 (https://doi.org/10.1007/BF02288367): the largest singular values are the best choice in
    Frobenius norm. How much is lost is told by `lost_share`.

    Args:
        weights: As trained.
        rank: The largest that is left, at least 1.

    Raises:
        FormError: B A is not all that was trained on a layer.
        ValueError: The adapter is not whole, or the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    _refuse(_problems(weights))
    pairs = {name: _cut(pair, rank) for name, pair in _pairs(weights).items()}
    ranks = {name: len(pair.a_RI) for name, pair in pairs.items()}
    r = max(ranks.values())
    pattern = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != r}
    return _with_pairs(weights, pairs, {"r": r, "lora_alpha": r, "rank_pattern": pattern, "alpha_pattern": pattern})


def lost_share(weights: AdapterWeights, rank: int) -> dict[str, float]:
    """Layer -> |B A - its cut to the rank| / |B A| in Frobenius norm, within [0, 1]; 0 where B A is zero.

    Raises:
        FormError: B A is not all that was trained on a layer.
        ValueError: The adapter is not whole.
    """
    _refuse(_problems(weights))
    lost = {}
    for name, pair in _pairs(weights).items():
        strength = _svd(pair)[1]
        whole = float(strength.norm())
        lost[name] = float(strength[rank:].norm()) / whole if whole and len(pair.a_RI) > rank else 0.0
    return lost


def _pairs(weights: AdapterWeights) -> dict[str, _Pair]:
    """Every layer's A and B by full name, in the order of the file."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in weights.tensors.items():
        if found := HALF.fullmatch(key):
            halves.setdefault(found["name"], {})[found["half"]] = value.float()
    if not halves:
        raise ValueError("the adapter holds no A and B of any linear layer")
    return {name: _pair(weights.config, name, pair) for name, pair in halves.items()}


def _pair(config: Mapping[str, Any], name: str, halves: Mapping[str, torch.Tensor]) -> _Pair:
    if halves.keys() != {"A", "B"}:
        raise ValueError(f"the adapter is not whole: {name} has {' and '.join(halves)} alone")
    r, scale = _rank_and_scale(config, name)
    a_RI, b_OR = halves["A"], halves["B"]
    if not a_RI.shape[0] == b_OR.shape[1] == r:
        raise ValueError(f"{name}: the config says rank {r}, A is {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}")
    return _Pair(a_RI=a_RI, b_OR=b_OR * scale)


def _rank_and_scale(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Of one layer, as PEFT 0.21 sets them (tuners/lora/model.py)."""
    ranks: Mapping[str, int] = config.get("rank_pattern") or {}
    alphas: Mapping[str, float] = config.get("alpha_pattern") or {}
    r = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    return r, alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _with_pairs(weights: AdapterWeights, pairs: Mapping[str, _Pair], changes: Mapping[str, Any]) -> AdapterWeights:
    """The adapter with other A and B, at scale 1 under the changes to its config; all else stays."""
    halves = {}
    for name, pair in pairs.items():
        halves[f"{BASE}{name}.lora_A.weight"] = pair.a_RI
        halves[f"{BASE}{name}.lora_B.weight"] = pair.b_OR
    plain = {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "inference_mode": True}
    config = {**weights.config, **plain, **changes}
    own = {value.dtype for key, value in weights.tensors.items() if HALF.fullmatch(key)}
    return AdapterWeights(config=config, tensors={**_narrowed(halves, own), **_others(weights)})


def _narrowed(tensors: dict[str, torch.Tensor], dtypes: Collection[torch.dtype]) -> dict[str, torch.Tensor]:
    """All in the one dtype that they came in if no number is rounded, else all as they are."""
    if len(dtypes) > 1:
        return tensors
    (dtype,) = dtypes
    narrow = {name: value.to(dtype) for name, value in tensors.items()}
    return narrow if all(torch.equal(narrow[name].float(), value) for name, value in tensors.items()) else tensors


def _others(weights: AdapterWeights) -> dict[str, torch.Tensor]:
    """What is neither A nor B."""
    return {key: value for key, value in weights.tensors.items() if not HALF.fullmatch(key)}


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise FormError("; ".join(problems))


def _problems(weights: AdapterWeights) -> list[str]:
    """Why B A is not all that was trained on a layer."""
    config, start = weights.config, weights.config.get("init_lora_weights", True)
    problems = [f"{field} is set, so that more than s B A is added" for field in OTHER_FORMULAS if config.get(field)]
    if config.get("use_dora"):
        problems.append("DoRA trains each output's magnitude, which A and B can't hold")
    if config.get("lora_bias"):
        problems.append("lora_bias adds a bias after B, which A and B can't hold")
    if start not in HARMLESS_STARTS:
        problems.append(f"init_lora_weights: {start!r} changes the base when PEFT loads the adapter")
    if embeddings := sorted(key.removeprefix(BASE) for key in weights.tensors if ".lora_embedding_" in key):
        problems.append(f"embeddings are adapted, which engines drop or refuse: {', '.join(embeddings)}")
    return problems


def _serving_problems(weights: AdapterWeights, layers: Iterable[Layer]) -> list[str]:
    """What engines drop or refuse, beside what is no plain pair."""
    problems = []
    if (bias := weights.config.get("bias", "none")) != "none":
        problems.append(f"biases of the base were trained (bias: {bias!r}), which engines refuse or ignore")
    names = {found["name"] for found in map(HALF.fullmatch, weights.tensors) if found}
    if outside := sorted(names - {layer.name for layer in layers}):
        problems.append(f"only linear layers of the blocks are adapted by every engine, not {', '.join(outside)}")
    if bias == "none" and (
        strange := sorted(key.removeprefix(BASE) for key in _others(weights) if not _is_expected(weights, key))
    ):
        problems.append(f"only a classification head may stand beside A and B, not {', '.join(strange)}")
    return problems


def _is_expected(weights: AdapterWeights, key: str) -> bool:
    """Whether a tensor is of a classification head, or has been told of by `_problems`."""
    heads = weights.config.get("modules_to_save") or ()
    is_classifier = str(weights.config.get("task_type")).endswith("_CLS")
    is_head = is_classifier and any(re.match(rf"(.*\.)?{re.escape(head)}\.", key) for head in heads)
    is_told = ".lora_magnitude_vector" in key or ".lora_embedding_" in key or key.endswith(".lora_B.bias")
    return is_head or is_told


def _serving_rank(ranks: Iterable[int]) -> int:
    largest = max(ranks)
    fitting = [rank for rank in SERVING_RANKS if rank >= largest]
    if not fitting:
        raise FormError(f"engines serve ranks up to {SERVING_RANKS[-1]}, the largest here is {largest}; cut it first")
    return fitting[0]


def _completed(layers: Iterable[Layer], adapted: Collection[str]) -> tuple[Layer, ...]:
    """The layers to adapt so that each block of a stack has the same, and groups are whole; in the model's order."""
    layers = tuple(layers)
    used = {place for layer in layers if layer.name in adapted for place in _beside(_place(layer))}
    return tuple(layer for layer in layers if _place(layer) in used)


def _place(layer: Layer) -> tuple[str, str]:
    """(stack, name in the block)."""
    return layer.name.partition(f".{layer.block}.")[0], layer.short_name


def _beside(place: tuple[str, str]) -> Iterable[tuple[str, str]]:
    """The place itself, and those that belong together with it whether the model has them or not."""
    stack, short_name = place
    parent, dot, last = short_name.rpartition(".")
    row = next((row for row in TOGETHER if last in row), (last,))
    return [(stack, f"{parent}{dot}{other}") for other in row]


def _targets(layers: Iterable[Layer], adapted: Collection[str]) -> list[str]:
    """Names by which PEFT and engines find exactly these layers, short where a short one is enough.

    Never a bare `dense`: it would reach poolers, which stand outside of the blocks.
    """
    others = {_last(layer.name) for layer in layers if layer.name not in adapted} | {"dense"}
    return sorted({name if _last(name) in others else _last(name) for name in adapted})


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _padded(pair: _Pair | None, layer: Layer, r: int) -> _Pair:
    """With zeros up to the rank; zeros alone where nothing was trained."""
    a_RI, b_OR = torch.zeros(r, layer.in_features), torch.zeros(layer.out_features, r)
    if pair is not None:
        own = len(pair.a_RI)
        widths = (pair.a_RI.shape[1], pair.b_OR.shape[0])
        if widths != (layer.in_features, layer.out_features):
            raise ValueError(f"{layer.name} is {layer.in_features} to {layer.out_features} wide, its adapter {widths}")
        a_RI[:own], b_OR[:, :own] = pair.a_RI, pair.b_OR
    return _Pair(a_RI=a_RI, b_OR=b_OR)


def _cut(pair: _Pair, rank: int) -> _Pair:
    if len(pair.a_RI) <= rank:
        return pair
    left_OK, strength_K, right_KI = _svd(pair)
    root_K = strength_K[:rank].sqrt()  # halves of equal size lose least in narrow types
    return _Pair(a_RI=(root_K[:, None] * right_KI[:rank]).float(), b_OR=(left_OK[:, :rank] * root_K).float())


def _svd(pair: _Pair) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of B A in float64, by a core of r by r: B A = Qb (Rb Ra^T) Qa^T, and what is orthogonal changes no singular value."""
    left_OR, left_RR = torch.linalg.qr(pair.b_OR.double())
    right_IR, right_RR = torch.linalg.qr(pair.a_RI.T.double())
    left_RK, strength_K, right_KR = torch.linalg.svd(left_RR @ right_RR.T, full_matrices=False)
    return left_OR @ left_RK, strength_K, right_KR @ right_IR.T
