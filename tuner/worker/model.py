"""The base model: loaded and quantized once per worker process, frozen in every trial. Runs on the worker."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from tuner.worker.architecture import AUTO_CLASSES, layers_of, outer_linears, skeleton
from tuner.worker.attention import take_over_attention
from tuner.worker.dense import keep_copies, take_over
from tuner.worker.gguf import SUFFIX, converted

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
    config: ModelConfig
    """What it was loaded by."""

    def autocast(self) -> torch.autocast:
        """Context of each forward pass: adapters stay float32 and compute in `compute_dtype`."""
        is_needed = self.compute_dtype is not torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=is_needed)

    @property
    def pad_id(self) -> int:
        """Token id that fills up batches."""
        return int(self.tokenizer.pad_token_id)


def load_base(
    config: ModelConfig, task: str, labels: tuple[str, ...], device: torch.device, *, is_trained: bool = False
) -> BaseModel:
    """Load weights and tokenizer, quantize, freeze.

    Args:
        config: The sweep's `model` section.
        task: `classification` or `causal-lm`.
        labels: Class names by class id; empty for causal language models.
        device: A CUDA device or the CPU.
        is_trained: Keep the weights in float32, as weights that are trained must be.
    """
    start_s = time.perf_counter()
    quiet()
    dtype = compute_dtype(config, device)
    tokenizer = load_tokenizer(config)
    model_config = load_model_config(config, labels)
    if model_config.pad_token_id is None:
        model_config.pad_token_id = tokenizer.pad_token_id  # decoders that classify look for the last real token by it
    model_config.use_cache = False  # a cache of keys and values would hide packed examples' borders, and costs memory
    torch.manual_seed(0)  # the unused head of the base; each trial draws its own
    model = AUTO_CLASSES[task].from_pretrained(
        **_origin(config),
        config=model_config,
        quantization_config=_quantization(config, model_config, task, dtype),
        dtype=torch.float32 if is_trained else dtype,
        device_map={"": device},
        use_safetensors=None if config.allow_pickle else True,
        attn_implementation=None if config.attention == "auto" else config.attention,
        ignore_mismatched_sizes=True,  # a head for other classes; each trial draws its own
    )
    model.requires_grad_(requires_grad=False)
    _keep_backward_right(model)
    if device.type == "cpu":
        keep_copies(model, dtype)
        take_over_attention(model)
    else:
        take_over(model)
        # torch 2.11 takes cuDNN's attention on Hopper, which plans anew for each shape: 60 to 90 ms a pass on an H100, and
        # batches padded to their longest text have a new shape most times
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    log.info("base model loaded in %.1f s: %s, %s", time.perf_counter() - start_s, config.name, config.quantization)
    return BaseModel(model=model, tokenizer=tokenizer, device=device, compute_dtype=dtype, config=config)


def load_model_config(config: ModelConfig, labels: tuple[str, ...]) -> PretrainedConfig:
    """The model's configuration with the sweep's classes in it.

    Raises:
        OSError: No such folder, no config.json in it, or a hub that can't be reached.
        ValueError: A config.json that transformers does not know.
    """
    classes: dict[str, Any] = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    loaded: PretrainedConfig = AutoConfig.from_pretrained(**_origin(config), **(classes if labels else {}))
    return loaded


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a padding token pads with the end of sequence, which the attention mask hides."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**_origin(config))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(base: BaseModel) -> dict[str, torch.Tensor]:
    """The weights of the blocks' linear layers as they are without quantization, by full name of the layer, on the CPU.

    Read anew from where the base came from: (out, in) each.
    """
    plain = copy.deepcopy(base.model.config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    model = type(base.model).from_pretrained(
        **_origin(base.config), config=plain, dtype=base.compute_dtype, ignore_mismatched_sizes=True
    )
    weights = {}
    for layer in layers_of(model):
        weight = model.get_parameter(f"{layer.name}.weight")
        weights[layer.name] = weight.T if isinstance(model.get_submodule(layer.name), Conv1D) else weight
    return weights


def _origin(config: ModelConfig) -> dict[str, Any]:
    """Where transformers finds the model. A GGUF file is converted at its first use."""
    name = str(converted(Path(config.name))) if config.name.endswith(SUFFIX) else config.name
    return {
        "pretrained_model_name_or_path": name,
        "revision": config.revision or "main",
        "trust_remote_code": config.trust_remote_code,
    }


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a device that multiplies it by itself, else float32: there bfloat16 is slower."""
    match config.compute_dtype:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case _:
            return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch has no public way to ask a CPU (2.13); AMX comes with AVX512-BF16
    return torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001


def _quantization(
    config: ModelConfig, model_config: PretrainedConfig, task: str, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Only linear layers inside the blocks are quantized: a head that is trained must not be, nor an output layer."""
    if config.quantization == "none":
        return None
    kept = list(outer_linears(skeleton(model_config, task, trust_remote_code=config.trust_remote_code)))
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def _keep_backward_right(model: nn.Module) -> None:
    # bitsandbytes 0.50.2 on CPUs with AVX512-BF16: the first forward pass without gradients repacks the 4-bit weights for
    # a kernel that has no backward, and all later training is silently wrong (gradient cosine 0.18).
    # Can go when bitsandbytes unpacks them on train(); tests/integration/test_worker.py would tell.
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quiet() -> None:
    """Progress bars and load reports of a worker would garble the driver's screen."""
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # peft 0.21 asks transformers 5.23 for an attribute under its old name
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
