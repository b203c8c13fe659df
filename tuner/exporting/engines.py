"""What each serving engine makes of an adapter, by the rules of its own source. Pure; runs on the driver.

The rules, with file, line and version, and which of them were run, are in docs/serving.md. An engine that loads an adapter and
scales it otherwise than PEFT does is worse than one that refuses it: nobody is told.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
"""An adapter_config.json."""
Scale = Callable[[Config, str, int], float]
"""(config, full name of a layer, rank of its tensors) -> the factor on B A that an engine applies."""

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` takes."""
VLLM_DEFAULT_RANK, TENSORRT_DEFAULT_RANK = 16, 64
HEADS = frozenset({"classifier", "score"})
"""Heads that PEFT saves whole, and that vLLM serves since 0.31."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that engines merge, so that none of a group may be missing."""
STARTS = frozenset({True, False, "gaussian", "eva", "orthogonal"})
"""`init_lora_weights` that leave the base alone, as vLLM sees it."""


class Answer(enum.StrEnum):
    """Whether an engine serves an adapter."""

    YES = "yes"
    NO = "no"
    WRONG = "loads, and answers wrongly"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one engine makes of an adapter."""

    engine: str
    """With the versions that it holds for."""
    answer: Answer
    """Whether it serves it as it was trained."""
    note: str = ""
    """A flag that is needed, or why not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter as its files tell it."""

    config: Config
    """Its adapter_config.json."""
    ranks: Mapping[str, int]
    """Full name of each adapted layer in the base -> rank of its tensors."""
    others: frozenset[str] = field(default_factory=frozenset)
    """Tensors that are no A or B: heads, biases, magnitudes."""

    @property
    def largest(self) -> int:
        """The largest rank."""
        return max(self.ranks.values())

    @property
    def heads(self) -> frozenset[str]:
        """Modules that are saved whole."""
        return frozenset(self.config.get("modules_to_save") or ())

    @property
    def is_equal(self) -> bool:
        """Whether all layers have one rank."""
        return len(set(self.ranks.values())) == 1


def peft_scale(config: Config, layer: str, rank: int) -> float:
    """PEFT's: alpha over rank, each by the layer's own pattern; rsLoRA over the rank's root."""
    alpha = _by_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def verdicts(adapter: Adapter) -> tuple[Verdict, ...]:
    """What each engine makes of an adapter in PEFT's format."""
    return tuple(judge(adapter) for judge in (_peft, _vllm, _old_vllm, _sglang, _lorax, _tgi, _tensorrt, _llama_cpp))


def gguf_verdicts() -> tuple[Verdict, ...]:
    """What there is to say of an adapter in GGUF, which no other engine reads."""
    return (Verdict(engine="llama.cpp", answer=Answer.YES, note="--lora adapter.gguf, with the base as GGUF"),)


def merged_verdicts() -> tuple[Verdict, ...]:
    """What there is to say of a merged model: it is a model like any other, and needs no engine to know of adapters."""
    note = "as a model of its own; whether the engine knows the architecture is up to it"
    return tuple(
        Verdict(engine=name, answer=Answer.YES, note=note) for name in ("transformers", "vLLM", "SGLang", "TGI")
    )


def smallest_vllm_rank(rank: int) -> int | None:
    """What `--max-lora-rank` must be; None where no value is enough."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def _peft(adapter: Adapter) -> Verdict:
    del adapter
    return Verdict(engine="PEFT", answer=Answer.YES)


def _vllm(adapter: Adapter) -> Verdict:
    refusal = _vllm_refusal(adapter)
    if strange := adapter.heads - HEADS:
        refusal = (
            refusal
            or f"{', '.join(sorted(strange))} is saved whole, which vLLM takes of {' and '.join(sorted(HEADS))} alone"
        )
    return _limited("vLLM >= 0.32", adapter, refusal, peft_scale)


def _old_vllm(adapter: Adapter) -> Verdict:
    refusal = _vllm_refusal(adapter)
    if adapter.heads:
        refusal = refusal or "heads are refused up to 0.30"
    if adapter.largest > adapter.config["r"]:
        refusal = refusal or "checks `r` alone, and some layer's rank is larger"
    return _limited("vLLM 0.26 to 0.31", adapter, refusal, _by_config)


def _sglang(adapter: Adapter) -> Verdict:
    refusal = "DoRA is refused" if adapter.config.get("use_dora") else _headless(adapter)
    if not adapter.is_equal:
        refusal = refusal or "layers that it merges must have one rank"
    if missing := _incomplete(adapter):
        refusal = refusal or f"{', '.join(missing)} must be adapted too, for it merges them with their neighbours"
    return _judged("SGLang 0.5.23", adapter, refusal, lambda config, _, __: config["lora_alpha"] / config["r"])


def _lorax(adapter: Adapter) -> Verdict:
    return _padding(adapter, "LoRAX")


def _tgi(adapter: Adapter) -> Verdict:
    return _padding(adapter, "TGI 3.3")


def _padding(adapter: Adapter, engine: str) -> Verdict:
    """Both take a padded rank for the scale of all projections but the first, and drop one that not every block has."""
    refusal = _headless(adapter) or (
        "DoRA's magnitudes are dropped in silence" if adapter.config.get("use_dora") else ""
    )
    if not adapter.is_equal:
        refusal = refusal or "layers of one kind must have one rank"
    if not _is_in_every_block(adapter):
        refusal = refusal or "a projection that one block lacks is dropped in all"
    return _judged(engine, adapter, refusal, _padded_scale)


def _tensorrt(adapter: Adapter) -> Verdict:
    refusal = _headless(adapter) or (
        "DoRA's magnitudes must be normalised first" if adapter.config.get("use_dora") else ""
    )
    found = _judged("TensorRT-LLM", adapter, refusal, _by_tensor)
    is_large = found.answer is Answer.YES and adapter.largest > TENSORRT_DEFAULT_RANK
    return (
        Verdict(engine=found.engine, answer=found.answer, note=f"max_lora_rank={adapter.largest}")
        if is_large
        else found
    )


def _llama_cpp(adapter: Adapter) -> Verdict:
    del adapter
    return Verdict(engine="llama.cpp", answer=Answer.NO, note="reads GGUF alone: export with `--as gguf`")


def _vllm_refusal(adapter: Adapter) -> str:
    config = adapter.config
    if config.get("use_dora"):
        return "DoRA is refused"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "trained biases are refused"
    if config.get("init_lora_weights", True) not in STARTS:
        return f"init_lora_weights {config['init_lora_weights']!r} is refused"
    return ""


def _limited(engine: str, adapter: Adapter, refusal: str, scale: Scale) -> Verdict:
    needed = smallest_vllm_rank(adapter.largest)
    if needed is None:
        refusal = refusal or f"rank {adapter.largest} is above {VLLM_RANKS[-1]}"
    found = _judged(engine, adapter, refusal, scale)
    if found.answer is not Answer.YES or needed is None or needed <= VLLM_DEFAULT_RANK:
        return found
    return Verdict(engine=engine, answer=Answer.YES, note=f"--max-lora-rank {needed}")


def _judged(engine: str, adapter: Adapter, refusal: str, scale: Scale) -> Verdict:
    """No where it is refused; wrong where any layer is scaled otherwise than PEFT does."""
    if refusal:
        return Verdict(engine=engine, answer=Answer.NO, note=refusal)
    for layer, rank in adapter.ranks.items():
        got, wanted = scale(adapter.config, layer, rank), peft_scale(adapter.config, layer, rank)
        if not math.isclose(got, wanted, rel_tol=1e-6):
            return Verdict(
                engine=engine, answer=Answer.WRONG, note=f"scales {layer} by {got:.4g} instead of {wanted:.4g}"
            )
    return Verdict(engine=engine, answer=Answer.YES)


def _by_config(config: Config, layer: str, rank: int) -> float:
    """Alpha over `r` of the whole adapter, whatever patterns and tensors say."""
    del layer, rank
    r = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(r) if config.get("use_rslora") else r))


def _by_tensor(config: Config, layer: str, rank: int) -> float:
    """Alpha of the whole adapter over the tensor's rank."""
    del layer
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _padded_scale(config: Config, layer: str, rank: int) -> float:
    """Alpha over the rank padded to a multiple of 8, and above that of 16."""
    del layer
    padded = 8 if rank <= 8 else 16 * math.ceil(rank / 16)  # noqa: PLR2004 -- the kernels' own steps
    return float(config["lora_alpha"] / (math.sqrt(padded) if config.get("use_rslora") else padded))


def _headless(adapter: Adapter) -> str:
    """Why an engine that reads A and B alone can't serve an adapter; empty where it can."""
    if adapter.heads:
        return "the classification head is not read"
    return "trained biases are not read" if adapter.config.get("bias", "none") != "none" else ""


def _incomplete(adapter: Adapter) -> tuple[str, ...]:
    """Projections that are missing from a group of which others are adapted, in some block."""
    blocks: dict[str, set[str]] = {}
    for layer in adapter.ranks:
        parent, _, last = layer.rpartition(".")
        blocks.setdefault(parent, set()).add(last)
    missing = [
        name
        for names in blocks.values()
        for group in GROUPS
        for name in group
        if names & set(group) and name not in names
    ]
    return tuple(dict.fromkeys(missing))


def _is_in_every_block(adapter: Adapter) -> bool:
    """Whether each projection is adapted in as many blocks as any other."""
    counts: dict[str, int] = {}
    for layer in adapter.ranks:
        name = re.sub(r"\.\d+\.", ".*.", layer, count=1)
        counts[name] = counts.get(name, 0) + 1
    return len(set(counts.values())) == 1


def _by_pattern(pattern: Mapping[str, float] | None, layer: str, default: float) -> float:
    """As PEFT looks a layer up: the first key that is its name or a dotted end of it, as a regular expression."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default
