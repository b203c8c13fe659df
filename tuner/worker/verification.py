"""Loads a saved adapter as a user would and scores it again. Runs on the worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from safetensors import SafetensorError

from tuner.worker.data import load_splits
from tuner.worker.evaluation import Evaluation, evaluate
from tuner.worker.host import device_of, prepare_data
from tuner.worker.model import load_base

if TYPE_CHECKING:
    from tuner.config import SweepConfig


def verify_adapter(config: SweepConfig, adapter: Path) -> Evaluation:
    """Score an adapter folder on the sweep's validation data, and put the model's tokenizer into it.

    Args:
        config: The sweep that trained it.
        adapter: A folder in PEFT's format.

    Raises:
        OSError: The folder holds no adapter.
        ValueError: The adapter does not fit the base model.
    """
    splits = load_splits(config.data)
    base = load_base(config.model, splits.labels, device_of(config))
    data = prepare_data(config, base, splits)
    base.tokenizer.save_pretrained(adapter)
    try:
        model = PeftModel.from_pretrained(base.model, str(adapter))
    except SafetensorError as error:
        msg = f"{adapter.name} holds a broken safetensors file: {error}"
        raise ValueError(msg) from error
    return evaluate(base, model, data.validation)
