"""Loads a saved adapter as a user would and scores it again. Runs on the worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from safetensors import SafetensorError

from tuner.worker.evaluation import Score, evaluate
from tuner.worker.host import BaseSpec, load

if TYPE_CHECKING:
    from tuner.config import SweepConfig


def verify_adapter(config: SweepConfig, adapter: Path) -> Score:
    """Score an adapter folder by the sweep's metric on its validation data, and put the model's tokenizer into it.

    Args:
        config: The sweep that trained it.
        adapter: A folder in PEFT's format.

    Raises:
        OSError: The folder holds no adapter.
        ValueError: The adapter does not fit the base model.
    """
    loaded = load(config, BaseSpec(config=config.model))
    base, data = loaded.base, loaded.data
    base.tokenizer.save_pretrained(adapter)
    try:
        model = PeftModel.from_pretrained(base.model, str(adapter))
    except SafetensorError as error:
        msg = f"{adapter.name} holds a broken safetensors file: {error}"
        raise ValueError(msg) from error
    return evaluate(base, model, data.validation.batches, data.validation.choices).scores[config.metric]
