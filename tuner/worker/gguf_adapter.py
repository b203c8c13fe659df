"""A PEFT adapter as the file that llama.cpp loads beside a base in GGUF. Runs on the worker.

llama.cpp multiplies B A by alpha / rank, where rank is the tensors' own and alpha is one number for the file; it knows
neither patterns nor rsLoRA (docs/serving.md). What PEFT's scale of a layer differs by goes into that layer's B.

A is (r, in), B is (out, r).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from tuner.worker.forms import AdapterWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
"""Those whose layout has been compared with PEFT in a test."""
PERMUTED = frozenset({"llama"})
"""Those that keep the rows of q and k in another order than transformers."""

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
COPY_OF_BASE = ".base_layer.weight"
"""PEFT saves the base's own weight along with an adapted lm_head or embedding; nothing has changed it."""
KEPT_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it was; others move a part of its weights into the adapter."""

MERGE = "merge the adapter into the base and convert the merged model instead"
PEFT_ONLY = "serve it with PEFT instead, or train without"
NO_PLACE = {
    "use_dora": ("DoRA's magnitudes", MERGE),
    "lora_bias": ("biases of B", PEFT_ONLY),
    "modules_to_save": ("whole modules, such as a classification head,", PEFT_ONLY),
    "trainable_token_indices": ("trained tokens", MERGE),
    "target_parameters": ("adapters of parameters that are no linear layer", MERGE),
    "layer_replication": ("repeated layers", MERGE),
    "fan_in_fan_out": ("transposed layers", MERGE),
    "alora_invocation_tokens": ("tokens that switch the adapter on", PEFT_ONLY),
    "use_qalora": ("pooled inputs", PEFT_ONLY),
    "use_bdlora": ("block-diagonal pairs", PEFT_ONLY),
    "arrow_config": ("a router over adapters", PEFT_ONLY),
    "kasa_config": ("a base cut down by its singular values", PEFT_ONLY),
    "monteclora_config": ("sampled weights", PEFT_ONLY),
}
"""PEFT's field -> what it adds that a GGUF adapter can't hold, and what to do about it."""
MOST_NAMES = 3
"""Names shown of many that share a problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What an adapter must fit."""

    architecture: str
    """In GGUF's words, such as `llama`."""
    num_blocks: int
    num_heads: int
    """Of queries, in each block."""
    num_kv_heads: int
    """Of keys and values."""
    shapes: Mapping[str, tuple[int, ...]]
    """GGUF name -> shape, (out, in) for a linear layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The adapter of one layer, in float32."""

    layer: str
    """transformers' name."""
    name: str
    """GGUF's name of the weight; empty where the architecture has no such layer."""
    A: NDArray[np.float32]
    B: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that is adapted, (out, in)."""
        return self.B.shape[0], self.A.shape[1]


def write_gguf_adapter(adapter: Path, base: Path, out: Path) -> None:
    """Write a PEFT folder as a GGUF file for `llama-server --lora`; a file of that name is replaced.

    Ranks and alphas of their own for some layers, and rsLoRA, are kept exactly, up to the rounding of float32.

    Args:
        adapter: A folder in PEFT's format, with safetensors.
        base: The GGUF file of the base, in whatever quantization; only names, shapes and heads are read.
        out: Where to; the folder exists.

    Raises:
        OSError: A file can't be read or written; nothing half-written is left.
        ValueError: The adapter has something that has no place in the file, or that does not fit the base; all that is
            wrong is told at once, with what to do instead.
    """
    config, tensors = _load_config(adapter), _load_tensors(adapter)
    _refuse(adapter, [*_config_problems(config), *_tensor_problems(tensors)])
    model = _read_base(base)
    pairs = _pairs_of(tensors, model)
    alphas = [_alpha_over_rank(config, pair) for pair in pairs]
    _refuse(adapter, [*_misfits(pairs, model, base), *_alpha_problems(alphas)])
    # the commonest, so that most layers are written as they were trained
    alpha = Counter(value for value in alphas if value).most_common(1)[0][0]
    scaled = [_scaled(pair, own / alpha) for pair, own in zip(pairs, alphas, strict=True)]
    _write(out, model.architecture, alpha, [_permuted(pair, model) for pair in scaled])


def read_gguf_adapter(file: Path, base: Path, layers: Iterable[str]) -> AdapterWeights:
    """Read such a file as llama.cpp does, as an adapter that PEFT can run: for whoever checks what was written.

    Args:
        file: As `write_gguf_adapter` wrote it.
        base: The GGUF file of the base.
        layers: transformers' names of the base's linear layers.

    Raises:
        OSError: A file can't be read.
        ValueError: It is no such file.
    """
    reader, model = gguf.GGUFReader(file), _read_base(base)
    alpha = _field(reader.fields, gguf.Keys.Adapter.LORA_ALPHA, file)
    names = gguf.get_tensor_name_map(ARCHITECTURES[model.architecture], model.num_blocks)
    found = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for layer in layers:
        name = f"{names.get_name(layer)}.weight"
        if f"{name}.lora_a" in found:
            pair = Pair(layer=layer, name=name, A=found.pop(f"{name}.lora_a"), B=found.pop(f"{name}.lora_b"))
            ranks[layer] = r = len(pair.A)
            tensors[f"{PREFIX}{layer}{A}"] = torch.from_numpy(pair.A)
            tensors[f"{PREFIX}{layer}{B}"] = torch.from_numpy(_unpermuted(_scaled(pair, alpha / r), model).B)
    if found:
        msg = f"{file} holds what the base has no layer for: {_some(found)}"
        raise ValueError(msg)
    largest = max(ranks.values())
    patterns = {"rank_pattern": ranks, "alpha_pattern": ranks, "r": largest, "lora_alpha": largest}
    return AdapterWeights(config={"peft_type": "LORA", "target_modules": list(ranks), **patterns}, tensors=tensors)


def _refuse(adapter: Path, problems: Sequence[str]) -> None:
    if problems:
        msg = "\n".join((f"{adapter} can't be written as a GGUF adapter:", *(f"- {problem}" for problem in problems)))
        raise ValueError(msg)


def _load_config(adapter: Path) -> LoraConfig:
    file = adapter / "adapter_config.json"
    if not file.is_file():  # PEFT would ask the hub for it
        msg = f"no such file: {file}"
        raise FileNotFoundError(msg)
    config = PeftConfig.from_pretrained(str(adapter))
    if not isinstance(config, LoraConfig):
        msg = f"{file} holds a {type(config).__name__}, llama.cpp knows LoRA alone; {MERGE}"
        raise ValueError(msg)  # noqa: TRY004 -- what a file says, not what the caller passed
    return config


def _load_tensors(adapter: Path) -> dict[str, torch.Tensor]:
    """By PEFT's names, less the copies of what is the base's own."""
    file = adapter / "adapter_model.safetensors"
    try:
        stored = load_file(file)
    except SafetensorError as error:
        msg = f"{file} is a broken safetensors file: {error}"
        raise ValueError(msg) from error
    return {name: value for name, value in stored.items() if not name.endswith(COPY_OF_BASE)}


def _read_base(file: Path) -> Base:
    fields = (reader := gguf.GGUFReader(file)).fields
    architecture = str(_field(fields, "general.architecture", file))
    if architecture not in ARCHITECTURES:
        msg = f"{file}: adapters are written for bases of {', '.join(ARCHITECTURES)}, got {architecture!r}; {MERGE}"
        raise ValueError(msg)
    if _field(fields, "split.count", file, 1) > 1:
        msg = f"{file} is one part of several; join them by `llama-gguf-split --merge` first"
        raise ValueError(msg)
    num_heads = _field(fields, f"{architecture}.attention.head_count", file)
    return Base(
        architecture=architecture,
        num_blocks=_field(fields, f"{architecture}.block_count", file),
        num_heads=num_heads,
        num_kv_heads=_field(fields, f"{architecture}.attention.head_count_kv", file, num_heads),
        shapes={tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors},
    )


def _field(fields: Mapping[str, gguf.ReaderField], key: str, file: Path, default: int | None = None) -> Any:  # noqa: ANN401 -- number or text
    if key in fields:
        return fields[key].contents()
    if default is None:
        msg = f"{file} has no {key}: it is no model in GGUF"
        raise ValueError(msg)
    return default


def _config_problems(config: LoraConfig) -> Iterator[str]:
    for field, (what, instead) in NO_PLACE.items():
        if value := getattr(config, field, None):
            yield f"{field}={value}: {what} have no place in the file; {instead}"
    if config.bias != "none":
        yield f"bias={config.bias!r}: biases have no place in the file; {MERGE}"
    if config.init_lora_weights not in KEPT_BASE:
        changed = f"init_lora_weights={config.init_lora_weights!r} has changed the base, and the GGUF base is as it was"
        yield f"{changed}; save the adapter with path_initial_model_for_weight_conversion"


def _tensor_problems(tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
    embeddings = [name for name in tensors if name.endswith(EMBEDDING)]
    if embeddings:
        yield f"{_some(embeddings)}: on a tied embedding llama.cpp aborts; leave embeddings out, or {MERGE}"
    strange = [name for name in tensors if not name.endswith((A, B, *EMBEDDING))]
    if strange:
        yield f"{_some(strange)}: no place in the file, which holds pairs A and B alone; {MERGE}"
    ranks_A = {name.removesuffix(A): value.shape[0] for name, value in tensors.items() if name.endswith(A)}
    ranks_B = {name.removesuffix(B): value.shape[-1] for name, value in tensors.items() if name.endswith(B)}
    unpaired = [layer for layer in {**ranks_A, **ranks_B} if ranks_A.get(layer) != ranks_B.get(layer)]
    if unpaired:
        yield f"{_some(unpaired)}: A and B are not of one rank, or one is missing; save the adapter anew"
    if not ranks_A:
        yield "it adapts no linear layer"


def _some(names: Iterable[str]) -> str:
    """The first few, and how many there are."""
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"{', '.join(known[:MOST_NAMES])}{more}"


def _pairs_of(tensors: Mapping[str, torch.Tensor], model: Base) -> list[Pair]:
    names = gguf.get_tensor_name_map(ARCHITECTURES[model.architecture], model.num_blocks)
    pairs = []
    for key in sorted(name.removesuffix(A) for name in tensors if name.endswith(A)):
        layer = key.removeprefix(PREFIX)
        name = names.get_name(layer)
        pairs.append(
            Pair(
                layer=layer,
                name=f"{name}.weight" if name else "",
                A=tensors[key + A].float().numpy(),
                B=tensors[key + B].float().numpy(),
            )
        )
    return pairs


def _misfits(pairs: Sequence[Pair], model: Base, file: Path) -> Iterator[str]:
    missing = {pair.layer for pair in pairs if pair.name not in model.shapes}
    if "lm_head" in missing:
        yield f"lm_head: the output of {file.name} is tied to its embedding; leave lm_head out, or {MERGE}"
    if others := missing - {"lm_head"}:
        known = f"{file.name}, {model.architecture} of {model.num_blocks} blocks, has no such layer"
        yield f"{_some(others)}: {known}; name the base that the adapter was trained on"
    for pair in pairs:
        if pair.name in model.shapes and model.shapes[pair.name] != pair.shape:
            sizes = f"(out, in) is {pair.shape}, in {file.name} {model.shapes[pair.name]}"
            yield f"{pair.layer}: {sizes}; name the base that the adapter was trained on"


def _alpha_problems(alphas: Sequence[float]) -> Iterator[str]:
    if not any(alphas):
        yield "lora_alpha=0: llama.cpp takes 0 for a scale of 1; leave the adapter away, it does nothing"


def _alpha_over_rank(config: LoraConfig, pair: Pair) -> float:
    """The alpha by which llama.cpp would come to PEFT's scale of a layer."""
    patterns: dict[str, float] = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), pair.layer), config.lora_alpha)
    r = pair.A.shape[0]
    return alpha * math.sqrt(r) if config.use_rslora else alpha


def _scaled(pair: Pair, factor: float) -> Pair:
    return replace(pair, B=pair.B * np.float32(factor))


def _permuted(pair: Pair, model: Base) -> Pair:
    """With the rows of B in the order of the base's: of each head, halves become neighbours.

    Source: llama.cpp 0c1e57098, conversion/llama.py:176-181.
    """
    out, r = pair.B.shape
    num_heads = _num_heads(pair, model)
    if num_heads is None:
        return pair
    return replace(pair, B=pair.B.reshape(num_heads, 2, out // num_heads // 2, r).swapaxes(1, 2).reshape(out, r))


def _unpermuted(pair: Pair, model: Base) -> Pair:
    """In transformers' order again."""
    out, r = pair.B.shape
    num_heads = _num_heads(pair, model)
    if num_heads is None:
        return pair
    return replace(pair, B=pair.B.reshape(num_heads, out // num_heads // 2, 2, r).swapaxes(1, 2).reshape(out, r))


def _num_heads(pair: Pair, model: Base) -> int | None:
    """Of a layer whose rows are kept in another order; None for others."""
    if model.architecture not in PERMUTED:
        return None
    return {"attn_q": model.num_heads, "attn_k": model.num_kv_heads}.get(pair.name.split(".")[-2])


def _write(out: Path, architecture: str, alpha: float, pairs: Sequence[Pair]) -> None:
    """To another name first, so that no reader meets half a file."""
    partial = out.with_name(f"{out.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for pair in pairs:
        writer.add_tensor(f"{pair.name}.lora_a", np.ascontiguousarray(pair.A))
        writer.add_tensor(f"{pair.name}.lora_b", np.ascontiguousarray(pair.B))
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        stack.callback(writer.close)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(out)
