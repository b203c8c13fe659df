"""The base model: loaded and quantized once per worker process, frozen in every trial. Runs on the worker."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tuner.config import ModelConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """What all trials of a process share."""

    model: PreTrainedModel
    """Frozen, quantized if the sweep says so."""
    tokenizer: PreTrainedTokenizerBase
    """The model's own."""
    device: torch.device
    """Where it stands."""
    compute_dtype: torch.dtype
    """Type of activations."""

    def autocast(self) -> torch.autocast:
        """Context of each forward pass: adapters stay float32 and compute in `compute_dtype`."""
        is_needed = self.compute_dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=is_needed)


def load_base(config: ModelConfig, labels: tuple[str, ...], device: torch.device) -> BaseModel:
    """Load weights and tokenizer, quantize, freeze.

    Args:
        config: The sweep's `model` section.
        labels: Class names by class id.
        device: A CUDA device or the CPU.
    """
    start_s = time.perf_counter()
    _quiet()
    dtype = compute_dtype(config, device)
    model_config = load_model_config(config, labels)
    torch.manual_seed(0)  # the unused head of the base; each trial draws its own
    model = AutoModelForSequenceClassification.from_pretrained(
        config.name,
        revision=config.revision or "main",
        config=model_config,
        quantization_config=_quantization(config, model_config, dtype),
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a head for other classes; each trial draws its own
    )
    model.requires_grad_(requires_grad=False)
    _keep_backward_right(model)
    log.info("base model loaded in %.1f s: %s, %s", time.perf_counter() - start_s, config.name, config.quantization)
    return BaseModel(model=model, tokenizer=load_tokenizer(config), device=device, compute_dtype=dtype)


def load_model_config(config: ModelConfig, labels: tuple[str, ...]) -> PretrainedConfig:
    """The model's configuration with the sweep's classes in it.

    Raises:
        OSError: No such folder, no config.json in it, or a hub that can't be reached.
        ValueError: A config.json that transformers does not know.
    """
    loaded: PretrainedConfig = AutoConfig.from_pretrained(
        config.name,
        revision=config.revision or "main",
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return loaded


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer."""
    return AutoTokenizer.from_pretrained(config.name, revision=config.revision or "main")


def skeleton(model_config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(model_config)  # type: ignore[no-untyped-call]
    return model


def block_linears(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers inside the repeated blocks: what can be quantized and adapted.

    Linear layers outside of them (pooler, head) are not in it: bitsandbytes must not quantize a head that is trained, and
    a target `dense` must not reach a pooler.
    """
    return tuple(name for name in _linears(model) if _is_in_block(model, name))


def head_linears(model: nn.Module) -> tuple[str, ...]:
    """Full names of the linear layers outside the repeated blocks."""
    return tuple(name for name in _linears(model) if not _is_in_block(model, name))


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it, else float32: without AMX support bfloat16 is slower on a CPU."""
    match config.compute_dtype:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case _:
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if has_bf16 else torch.float32


def _linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def _is_in_block(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    parents = (".".join(parts[:end]) for end in range(1, len(parts)))
    return any(isinstance(model.get_submodule(parent), torch.nn.ModuleList) for parent in parents)


def _quantization(config: ModelConfig, model_config: PretrainedConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if config.quantization == "none":
        return None
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(head_linears(skeleton(model_config))),
    )


def _keep_backward_right(model: nn.Module) -> None:
    # bitsandbytes 0.50.2 on CPUs with AVX512-BF16: the first forward pass without gradients repacks the 4-bit weights for
    # a kernel that has no backward, and all later training is silently wrong (gradient cosine 0.18).
    # Can go when bitsandbytes unpacks them on train(); tests/integration/test_worker.py would tell.
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _quiet() -> None:
    """Progress bars and load reports of a worker would garble the driver's screen."""
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # peft 0.21 asks transformers 5.23 for an attribute under its old name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
