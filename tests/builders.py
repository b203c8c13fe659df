"""Builds valid values for tests; each test names only what it is about."""

from __future__ import annotations

import math
from typing import Any

from tuner.config import SweepConfig
from tuner.layers import Group, Layer, ModelFacts
from tuner.lora import LoraSpec
from tuner.prediction import Method, Part, Phase, Prediction
from tuner.trial import FailReason, Inspection, MemoryKind, Metrics, Outcome, TrialRecord, TrialSpec, TrialState
from tuner.workload import Logits, Padding, Workload

MIB = 2**20

Fields = dict[str, Any]


def make_lora(**changes: object) -> LoraSpec:
    values: Fields = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "target_modules": ("query", "value")}
    return LoraSpec(**values | changes)


def make_spec(number: int = 0, **changes: object) -> TrialSpec:
    values: Fields = {"number": number, "lora": make_lora(), "learning_rate": 2e-3, "seed": 0, "params": (("r", 8),)}
    return TrialSpec(**values | changes)


def make_metrics(**changes: object) -> Metrics:
    """The standard error is that of a share, unless it is given."""
    values: Fields = {
        "steps": 120,
        "tokens": 20_000,
        "train_s": 30.0,
        "accuracy": 0.8,
        "loss": 0.6,
        "num_validation": 400,
        "trainable_params": 10_000,
        "peak_memory_bytes": 100 * MIB,
        "memory_kind": MemoryKind.CPU_ALLOCATED,
    }
    values |= changes
    share = values["accuracy"] if 0 <= values["accuracy"] <= 1 else 0.5
    values.setdefault("standard_error", math.sqrt(share * (1 - share) / values["num_validation"]))
    return Metrics(**values)


def make_workload(**changes: object) -> Workload:
    """A training step of 2 x 128 tokens in float32, nothing quantized, no evaluation."""
    values: Fields = {
        "batch_size": 2,
        "tokens": 128,
        "learned_tokens": 0,
        "padding": Padding.NONE,
        "has_accumulation": False,
        "dtype": "float32",
        "quantization": "none",
        "double_quantization": False,
        "autocast": False,
        "adapter_dtype": "float32",
        "upcast": False,
        "gradient_checkpointing": False,
        "attention": "sdpa",
        "logits": Logits.LEARNED,
        "kv_cache": False,
        "optimizer": "adamw",
        "eval_batch_size": 0,
        "eval_tokens": 0,
        "eval_learned_tokens": 0,
    }
    return Workload(**values | changes)


def make_record(number: int = 0, state: TrialState = TrialState.COMPLETE, **changes: object) -> TrialRecord:
    """A record whose outcome fits its state.

    Args:
        number: Of the trial.
        state: How far it is.
        changes: `spec`, `curve` or `outcome` as a whole, or else fields of its one Metrics.
    """
    whole: Fields = {name: changes.pop(name) for name in ("spec", "curve", "outcome") if name in changes}
    values: Fields = {
        "spec": make_spec(number),
        "state": state,
        "curve": (make_metrics(**changes),),
        "outcome": make_outcome(state),
    }
    return TrialRecord(**values | whole)


def make_prediction(reserved_bytes: int, *, capacity_bytes: int = 16 * 2**30) -> Prediction:
    """A peak on a card, without a context; all of it is reserved."""
    return Prediction(
        allocated_bytes=reserved_bytes,
        reserved_bytes=reserved_bytes,
        context_bytes=0,
        capacity_bytes=capacity_bytes,
        trainable_params=1,
        phase=Phase.BACKWARD,
        last="mm (2, 2) float32",
        largest="mm (2, 2) float32",
        parts=((Part.WEIGHTS, reserved_bytes),),
        phases=((Phase.BACKWARD, reserved_bytes),),
        method=Method.TRACE,
    )


def make_outcome(state: TrialState) -> Outcome | None:
    if state is TrialState.RUNNING:
        return None
    failed = state is TrialState.FAIL
    return Outcome(state=state, reason=FailReason.EXCEPTION if failed else None, detail="boom" if failed else "")


def make_inspection(**changes: object) -> Inspection:
    values: Fields = {
        "problems": (),
        "data_fingerprint": "f" * 64,
        "num_train": 1000,
        "num_validation": 400,
        "num_test": 200,
        "labels": ("animal", "plant"),
        "majority_share": 0.55,
        "model": make_model(),
    }
    return Inspection(**values | changes)


BERT_SHAPES = {
    "attention.self.query": (384, 384),
    "attention.self.key": (384, 384),
    "attention.self.value": (384, 384),
    "attention.output.dense": (384, 384),
    "intermediate.dense": (384, 1536),
    "output.dense": (1536, 384),
}
LLAMA_SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (4096, 1024),
    "self_attn.v_proj": (4096, 1024),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (4096, 14336),
    "mlp.up_proj": (4096, 14336),
    "mlp.down_proj": (14336, 4096),
}


def make_layers(
    shapes: dict[str, tuple[int, int]], stack: str, num_blocks: int, *, has_bias: bool
) -> tuple[Layer, ...]:
    """Layers of a stack of like blocks; what has `att` in its name is attention."""
    return tuple(
        Layer(
            name=f"{stack}.{block}.{name}",
            group=Group.ATTENTION if "att" in name else Group.MLP,
            block=block,
            num_blocks=num_blocks,
            in_features=shape[0],
            out_features=shape[1],
            has_bias=has_bias,
        )
        for block in range(num_blocks)
        for name, shape in shapes.items()
    )


def make_model(**changes: object) -> ModelFacts:
    """A small BERT by default."""
    values: Fields = {
        "layers": make_layers(BERT_SHAPES, "bert.encoder.layer", 6, has_bias=True),
        "num_params": 22_700_000,
        "hidden_size": 384,
        "family": "bert",
        "head_params": 770,
        "bias_params": 40_000,
    }
    return ModelFacts(**values | changes)


def make_llama() -> ModelFacts:
    """The shapes of Llama-3.1-8B."""
    layers = make_layers(LLAMA_SHAPES, "model.layers", 32, has_bias=False)
    return make_model(
        layers=layers, num_params=8_030_261_248, hidden_size=4096, family="llama", head_params=0, bias_params=0
    )


def make_config(**sections: object) -> SweepConfig:
    """A small sweep over `r` and `learning_rate`; a section named replaces the whole section."""
    space = {
        "r": {"choices": [4, 8, 16]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "target_modules": ["query", "value"],
    }
    values: Fields = {
        "name": "small",
        "model": {"name": "/models/tiny"},
        "data": {"path": "/data/rows.jsonl", "validation": 400},
        "training": {"max_steps": 120},
        "search": {"num_trials": 4, "space": space},
        "pruning": {"min_steps": 30},
    }
    return SweepConfig(**values | sections)
