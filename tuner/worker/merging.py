"""An adapter merged into its base: a plain model, which whatever runs the base can run. Runs on the worker."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from tuner.worker.data import load_splits
from tuner.worker.forms import read_adapter
from tuner.worker.model import BaseModel, load_base, load_model_config

if TYPE_CHECKING:
    from tuner.config import SweepConfig


def merge(config: SweepConfig, adapter: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write base and adapter as one model in transformers' format, with the tokenizer; heads of classes are the trained ones.

    The sum is taken in float32 on the weights as they are without quantization: after a sweep on a quantized base the
    outputs differ from the trial's by what quantization had changed.

    Args:
        config: The sweep that trained it.
        adapter: A folder in PEFT's format.
        folder: Where the model goes.
        dtype: Of the weights written.

    Raises:
        OSError: A file can't be read or written.
        ValueError: The adapter does not fit the base, or the sum does not fit the dtype.
    """
    base, use_cache = _plain_base(config)
    merged = _merged(base, adapter).to(dtype)
    _require_finite(merged, dtype)
    if use_cache is not None:
        merged.config.use_cache = use_cache  # training goes without
    merged.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def _plain_base(config: SweepConfig) -> tuple[BaseModel, bool | None]:
    """The base in float32, and whether its makers let it keep keys and values."""
    plain = config.model.model_copy(update={"quantization": "none", "compute_dtype": "float32"})
    task = config.training.task
    labels = load_splits(config.data, task).labels if task == "classification" else ()
    use_cache = getattr(load_model_config(plain, labels), "use_cache", None)
    return load_base(plain, task, labels, torch.device("cpu")), use_cache


def _merged(base: BaseModel, adapter: Path) -> Any:  # noqa: ANN401 -- torch types what a PEFT model hands out as a tensor
    """The base with the adapter in its weights."""
    saved = read_adapter(adapter).tensors.keys()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # told below, with those left over
        model = PeftModel.from_pretrained(base.model, str(adapter))
    if strange := sorted(saved ^ get_peft_model_state_dict(model, save_embedding_layers=False).keys()):
        raise ValueError(f"{adapter} does not fit the base; on one side alone: {', '.join(strange)}")
    return model.merge_and_unload()


def _require_finite(model: torch.nn.Module, dtype: torch.dtype) -> None:
    wrong = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    if wrong:
        raise ValueError(f"weights too large for {dtype}, or not finite before: {', '.join(wrong)}")
