"""Real training steps of small models on a CPU, and the bytes that they allocate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from transformers import BertConfig, LlamaConfig, PretrainedConfig

from tests.builders import make_lora, make_workload
from tuner.config import ModelConfig
from tuner.lora import LoraSpec
from tuner.worker.adapters import attach
from tuner.worker.architecture import AUTO_CLASSES, layers_of
from tuner.worker.batches import Batch, learned
from tuner.worker.evaluation import forward, summed_loss
from tuner.worker.memory import StepPeak
from tuner.worker.model import BaseModel
from tuner.workload import Padding, Workload

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A configuration of the comparison."""

    lora: LoraSpec
    rows: int = 2
    tokens: int = 128
    quantization: str = "none"
    double_quantization: bool = True
    is_checkpointed: bool = False
    padding: Padding = Padding.NONE
    dtype: str = "float32"
    is_bert: bool = False
    num_key_value_heads: int = 8
    layers: int = 4
    learned: int = 40

    @property
    def task(self) -> str:
        return "classification" if self.is_bert else "causal-lm"

    def config(self) -> PretrainedConfig:
        if self.is_bert:
            return BertConfig(
                hidden_size=256,
                intermediate_size=1024,
                num_attention_heads=4,
                num_hidden_layers=self.layers,
                vocab_size=8000,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        return LlamaConfig(
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=self.layers,
            num_attention_heads=8,
            num_key_value_heads=self.num_key_value_heads,
            vocab_size=8000,
            use_cache=False,
        )

    def workload(self) -> Workload:
        return make_workload(
            batch_size=self.rows,
            tokens=self.tokens,
            learned_tokens=self.rows * self.learned if not self.is_bert else self.rows,
            padding=self.padding,
            dtype=self.dtype,
            quantization=self.quantization,
            double_quantization=self.double_quantization,
            autocast=self.dtype != "float32",
            gradient_checkpointing=self.is_checkpointed,
        )


def llama(r: int, targets: tuple[str, ...] = ALL, **changes: Any) -> LoraSpec:
    return make_lora(r=r, target_modules=targets, **changes)


def base_of(setup: Setup) -> BaseModel:
    torch.manual_seed(0)
    model = AUTO_CLASSES[setup.task].from_config(  # type: ignore[no-untyped-call]
        setup.config(), dtype=getattr(torch, setup.dtype)
    )
    model.requires_grad_(False)
    if setup.quantization != "none":
        quantize(model, setup)
    return BaseModel(
        model=model,
        tokenizer=type("Tokenizer", (), {"pad_token_id": 0})(),  # nothing is tokenized
        device=torch.device("cpu"),
        compute_dtype=getattr(torch, setup.dtype),
        config=ModelConfig(name="/nowhere"),
    )


def measured(setup: Setup) -> int:
    """As the worker trains and measures; the second step has the optimizer's state."""
    base = base_of(setup)
    adapted = attach(base, setup.lora, seed=0)
    if setup.is_checkpointed:
        base.model.activation_checkpointing_enable({"use_reentrant": False})
    adapted.model.train()
    optimizer = torch.optim.AdamW(adapted.trainable().values(), lr=1e-4)
    meter = StepPeak(adapted.model, optimizer, base.device)
    step(base, adapted.model, optimizer, setup)
    with meter.watch():
        step(base, adapted.model, optimizer, setup)
    return meter.peak_bytes()


def step(base: BaseModel, model: Any, optimizer: torch.optim.Optimizer, setup: Setup) -> None:
    batch = batch_of(setup)
    loss = summed_loss(forward(base, model, batch), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([one for one in model.parameters() if one.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def batch_of(setup: Setup) -> Batch:
    ids = torch.randint(0, 100, (setup.rows, setup.tokens))
    mask = torch.ones_like(ids)
    if setup.padding is Padding.PADDED:
        mask[0, -3:] = 0
    is_learned = torch.zeros_like(ids, dtype=torch.bool)
    is_learned[:, 1 : 1 + setup.learned] = True
    labels_N, places_N = learned(ids, is_learned)
    return Batch(
        input_ids_BT=ids,
        labels=torch.zeros(setup.rows, dtype=torch.long) if setup.is_bert else labels_N,
        places_N=None if setup.is_bert else places_N,
        attention_mask_BT=mask,
        position_ids_BT=None,
        num_tokens=ids.numel(),
    )


def quantize(model: Any, setup: Setup) -> None:
    """As transformers does when it loads: bitsandbytes' layers in place of the blocks' linear ones."""
    for layer in layers_of(model):
        plain = model.get_submodule(layer.name)
        packed = Linear4bit(  # type: ignore[no-untyped-call]
            plain.in_features,
            plain.out_features,
            bias=plain.bias is not None,
            compute_dtype=getattr(torch, setup.dtype),
            compress_statistics=setup.double_quantization,
            quant_type=setup.quantization,
        )
        packed.weight = Params4bit(
            plain.weight.data,
            requires_grad=False,
            quant_type=setup.quantization,
            compress_statistics=setup.double_quantization,
            module=packed,
        )
        if plain.bias is not None:
            packed.bias = torch.nn.Parameter(plain.bias.data, requires_grad=False)
        packed = packed.to("cpu")
        packed.support_avx512bf16_for_cpu = False
        model.set_submodule(layer.name, packed)
    model.is_loaded_in_4bit = True
