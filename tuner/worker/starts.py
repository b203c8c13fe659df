"""Adapters that start from something else than noise and zero, and what they take from the base. Runs on the worker.

W is a base weight, (out, in); A is (r, in), B is (out, r); s is the factor on B A.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft import EvaConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.eva import get_eva_state_dict
from safetensors.torch import save_file

from tuner.lora import Bias, LoraSpec
from tuner.worker.model import load_weights

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import nn

    from tuner.worker.batches import Batch
    from tuner.worker.model import BaseModel

NUM_EVA_BATCHES = 32
"""Batches that EVA looks at: on the first its directions are found, by the others they settle."""
ADAPTER = "default"
"""PEFT's name of the one adapter."""
BASE = "base_model.model."
"""What PEFT puts before the names of a base's modules."""


def lora_layers(wrapped: nn.Module) -> dict[str, Any]:
    """PEFT's adapted layers by full name; Any, because torch types what hangs on a module as a tensor."""
    return {name: layer for name, layer in wrapped.named_modules() if isinstance(layer, LoraLayer)}


def config_of(wrapped: PeftModel) -> LoraConfig:
    """The adapter's own."""
    config: LoraConfig = wrapped.peft_config[ADAPTER]  # type: ignore[assignment]  # PEFT types it as of any method
    return config


def keep_weights(
    model: nn.Module, ranks: Mapping[str, int], lora: LoraSpec, heads: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Copies of what a trial will change in the base: weights that give a part to the adapter, biases that are trained.

    Args:
        model: The base.
        ranks: Full name -> rank of every layer that is adapted.
        lora: The adapter.
        heads: Modules with copies of their own.
    """
    names = [f"{name}.weight" for name in ranks] if lora.init_lora_weights.is_base_changed else []
    if lora.bias is Bias.ALL:
        in_head = tuple(f"{head}." for head in heads)
        biases = [
            name for name, _ in model.named_parameters() if name.endswith(".bias") and not name.startswith(in_head)
        ]
        names += [*biases, *_beside(model, biases)]
    if lora.bias is Bias.LORA_ONLY:
        names += [f"{name}.bias" for name in ranks if model.get_submodule(name).bias is not None]
    return {name: model.get_parameter(name).detach().cpu().clone() for name in names}


def _beside(model: nn.Module, biases: Sequence[str]) -> list[str]:
    """Weights of the norms that some biases belong to: on a CPU a norm takes both in one type only (torch 2.13)."""
    vectors = {name for name, parameter in model.named_parameters() if parameter.dim() == 1}
    weights = [f"{name.removesuffix('.bias')}.weight" for name in biases]
    return [name for name in weights if name in vectors]


@torch.no_grad()
def start_eva(base: BaseModel, wrapped: PeftModel, batches: Sequence[Batch]) -> None:
    """A from the right singular vectors of each layer's inputs, as many as its rank.

    PEFT finds them; it would hand out ranks anew and does not read anchored patterns (0.21), so it is asked for the highest
    rank everywhere, and each layer takes the first of its own.
    """

    def forward_fn(model: PeftModel, inputs: Mapping[str, torch.Tensor]) -> object:
        with base.autocast():
            return model(**inputs)

    layers = lora_layers(wrapped)
    largest = max(layer.r[ADAPTER] for layer in layers.values())
    _require_tokens(batches, largest)
    uniform = dataclasses.replace(
        config_of(wrapped),
        r=largest,
        rank_pattern={},
        alpha_pattern={},
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # PEFT prints a line for each layer of a batch that is too small
        vectors = get_eva_state_dict(
            wrapped,
            [batch.inputs() for batch in batches],
            uniform,
            forward_fn=forward_fn,
            prepare_model_inputs_fn=lambda inputs, _: _real_tokens(inputs),
            prepare_layer_inputs_fn=_rows_of_tokens,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    for name, layer in layers.items():
        layer.lora_A[ADAPTER].weight.copy_(vectors[name][: layer.r[ADAPTER]])


def _require_tokens(batches: Sequence[Batch], rank: int) -> None:
    """PEFT passes over batches with fewer tokens than the rank, and over all of them for ever (0.21)."""
    most = max(batch.num_tokens for batch in batches)
    if most < rank:
        raise ValueError(
            f"eva: no batch has as many tokens as the largest rank ({rank}), the largest {most}; raise batch_size"
        )


def _real_tokens(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mask of shape (B, T); a packed batch's little padding counts as tokens."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _rows_of_tokens(layer_input: Any, model_input: torch.Tensor, layer_name: str) -> torch.Tensor:  # noqa: ANN401 -- PEFT's hook
    """Inputs of a layer at real tokens, of shape (tokens, in)."""
    del layer_name
    inputs = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    rows: torch.Tensor = inputs[model_input] if inputs.dim() > 2 else inputs  # noqa: PLR2004 -- (B, T, in)
    return rows.float()


@torch.no_grad()
def start_loftq(base: BaseModel, wrapped: PeftModel) -> None:
    """B A as the best approximation of what quantization lost: s B A ~ W - Q(W).

    One step of LoftQ, on the quantized base that all trials share: Q itself stays. PEFT's `replace_lora_weights_loftq`
    does the same with a GPU and s = 1 only.
    """
    weights = load_weights(base)
    for name, layer in lora_layers(wrapped).items():
        quantized = layer.get_base_layer().weight
        near = dequantize_4bit(quantized.data, quantized.quant_state).float()
        lost = weights[name.removeprefix(BASE)].to(near.device).float() - near
        left, strength, right = torch.linalg.svd(lost, full_matrices=False)
        r, root = layer.r[ADAPTER], strength[: layer.r[ADAPTER]].sqrt()
        layer.lora_A[ADAPTER].weight.copy_(root[:, None] * right[:r])
        layer.lora_B[ADAPTER].weight.copy_(left[:, :r] * root / layer.scaling[ADAPTER])


def save_as_lora(wrapped: PeftModel, initial: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write an adapter that took its start out of the base as one for the untouched base, of twice the rank.

    W - s B0 A0 + s B A = W + s [B, -B0] [A; A0].

    Args:
        wrapped: The trained adapter.
        initial: A0 and B0, by the names of the model's parameters.
        folder: Where it goes.
    """
    state = get_peft_model_state_dict(wrapped)
    for name, start in initial.items():
        key = name.replace(f".{ADAPTER}.", ".")
        if key in state:
            sign, axis = (1, 0) if "lora_A" in key else (-1, 1)
            state[key] = torch.cat([state[key].cpu(), sign * start.to(state[key].dtype)], dim=axis)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, folder / "adapter_model.safetensors")
    _doubled(config_of(wrapped)).save_pretrained(str(folder))


def _doubled(config: LoraConfig) -> LoraConfig:
    """The same scale at twice the rank."""
    doubled = copy.deepcopy(config)
    factor = math.sqrt(2) if config.use_rslora else 2
    doubled.r = 2 * config.r
    doubled.lora_alpha = factor * config.lora_alpha  # type: ignore[assignment]  # PEFT divides; fractions are fine
    doubled.rank_pattern = {name: 2 * r for name, r in (config.rank_pattern or {}).items()}
    doubled.alpha_pattern = {name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()}
    doubled.init_lora_weights = True
    doubled.inference_mode = True
    return doubled
