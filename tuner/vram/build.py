"""The real model with its adapter on the meta device: shapes and types as on the GPU, and no data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import get_peft_model
from torch.utils.weak import WeakTensorKeyDictionary

from tuner.layers import Layer, ranks_of
from tuner.lora import Bias, Init, LoraSpec
from tuner.sizes import NESTED_BLOCK, QUANTIZED_BLOCK
from tuner.trial import Baseline
from tuner.worker.adapters import lora_config
from tuner.worker.architecture import AUTO_CLASSES, head_names, layers_of
from tuner.worker.memory import tensors_of
from tuner.worker.recomputing import use_checkpointing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from tuner.workload import Workload

META = torch.device("meta")
ATTENTION = {"auto": None, "flash_attention_2": "sdpa"}
"""Setting -> what transformers is asked for: its own choice, and in place of a package that needs a GPU what is like it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A model as it is trained."""

    model: nn.Module
    """With its adapter."""
    base: PreTrainedModel
    """transformers' model inside."""
    loaded_bytes: Mapping[torch.Tensor, int]
    """Parameter, by identity -> bytes that it had as it was loaded, before it was quantized or cast."""

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer gets."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def build(
    config: PretrainedConfig, task: str, workload: Workload, lora: LoraSpec | None, baseline: Baseline | None = None
) -> Built:
    """Build a model as a worker would load and adapt it.

    Args:
        config: transformers' configuration.
        task: `classification` or `causal-lm`.
        workload: Types, quantization, attention.
        lora: None trains the head alone, or all weights with the baseline FULL.
        baseline: Which baseline it is, if it is one.
    """
    is_full = baseline is Baseline.FULL
    dtype = torch.float32 if is_full else getattr(torch, workload.dtype)
    with META, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AUTO_CLASSES[task].from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation=ATTENTION.get(workload.attention, workload.attention)
        )
        model.requires_grad_(requires_grad=is_full)
        loaded = WeakTensorKeyDictionary({parameter: parameter.nbytes for parameter in model.parameters()})
        heads = head_names(model)
        if workload.quantization != "none" and not is_full:
            _quantize(model, workload, loaded)
        if workload.upcast:
            _upcast(model, loaded)
        for name in heads:
            model.get_submodule(name).to(torch.float32).requires_grad_(requires_grad=True)
        if workload.gradient_checkpointing:
            use_checkpointing(model)
        adapted = model if lora is None else _adapted(model, lora, heads, workload)
    adapted.train()
    return Built(model=adapted, base=model, loaded_bytes=loaded)


def quantization_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """What bitsandbytes keeps beside the packed weights: scales, their scales, code books."""
    for module in model.modules():
        yield from tensors_of(getattr(module, "quant_state", None))


def _adapted(model: Any, lora: LoraSpec, heads: tuple[str, ...], workload: Workload) -> nn.Module:
    """With PEFT's adapter; every start gives the same shapes, and only the default one needs no data."""
    ranks = ranks_of(layers_of(model), lora)
    config = lora_config(model, lora, ranks, heads)
    config.init_lora_weights = True if lora.init_lora_weights is not Init.GAUSSIAN else "gaussian"
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=workload.adapter_dtype == "float32")
    for name, parameter in wrapped.named_parameters():
        if lora.bias is not Bias.NONE and parameter.requires_grad and name.endswith(".bias"):
            parameter.data = parameter.data.float()
        if ".lora_" in name:  # on quantized layers PEFT would leave them in float32
            parameter.data = parameter.data.to(getattr(torch, workload.adapter_dtype))
    return wrapped


def _quantize(model: nn.Module, workload: Workload, loaded: WeakTensorKeyDictionary) -> None:
    """Put 4-bit layers in place of the blocks' linear layers, and note what their weights had before."""
    for layer in layers_of(model):
        plain: Any = model.get_submodule(layer.name)
        quantized = _quantized(plain, layer, workload)
        loaded[quantized.weight] = plain.weight.nbytes
        if quantized.bias is not None:
            loaded[quantized.bias] = plain.bias.nbytes
        model.set_submodule(layer.name, quantized)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks for it


def _quantized(plain: Any, like: Layer, workload: Workload) -> Linear4bit:
    """A 4-bit layer on the meta device, where bitsandbytes 0.50 quantizes nothing: packed weights and state by shape."""
    rows, columns = like.out_features, like.in_features  # as transformers turns weights that lie the other way (Conv1D)
    dtype = getattr(torch, workload.dtype)
    layer = Linear4bit(  # type: ignore[no-untyped-call]
        columns,
        rows,
        bias=plain.bias is not None,
        compute_dtype=dtype,
        compress_statistics=workload.double_quantization,
        quant_type=workload.quantization,
        device=META,
    )
    state = _quantization_state(rows, columns, dtype, workload)
    layer.weight = Params4bit(
        torch.empty((rows * columns + 1) // 2, 1, dtype=torch.uint8),
        requires_grad=False,
        quant_state=state,
        blocksize=QUANTIZED_BLOCK,
        compress_statistics=workload.double_quantization,
        quant_type=workload.quantization,
        bnb_quantized=True,
        module=layer,
    )
    layer.quant_state = state
    if plain.bias is not None:
        layer.bias = torch.nn.Parameter(torch.empty_like(plain.bias), requires_grad=False)
    return layer


def _quantization_state(rows: int, columns: int, dtype: torch.dtype, workload: Workload) -> QuantState:
    num_blocks = -(-rows * columns // QUANTIZED_BLOCK)
    shape = torch.Size((rows, columns))
    common = {"shape": shape, "dtype": dtype, "blocksize": QUANTIZED_BLOCK, "quant_type": workload.quantization}
    if not workload.double_quantization:
        return QuantState(absmax=torch.empty(num_blocks), code=torch.empty(16), **common)  # type: ignore[no-untyped-call]
    nested = QuantState(  # type: ignore[no-untyped-call]
        absmax=torch.empty(-(-num_blocks // NESTED_BLOCK)),
        code=torch.empty(256),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    absmax = torch.empty(num_blocks, dtype=torch.uint8)
    offset = torch.empty(())
    return QuantState(  # type: ignore[no-untyped-call]
        absmax=absmax, code=torch.empty(16), offset=offset, state2=nested, **common
    )


def _upcast(model: nn.Module, loaded: WeakTensorKeyDictionary) -> None:
    """As PEFT's `prepare_model_for_kbit_training` (0.21): whatever is not quantized becomes float32."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16) and not isinstance(parameter, Params4bit):
            loaded[parameter] = parameter.nbytes
            parameter.data = parameter.data.to(torch.float32)
