"""A look at model and data before anything is trained: every reason why no trial could work. Runs on the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuner.config import is_folder_name
from tuner.trial import Inspection
from tuner.worker.adapters import resolve_ranks
from tuner.worker.data import DataError, load_splits
from tuner.worker.model import block_linears, load_model_config, load_tokenizer, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuner.config import ModelConfig, SweepConfig

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def inspect_sweep(config: SweepConfig) -> Inspection:
    """Collect what is wrong with model, data and device, and the sizes of the splits."""
    problems = [*_device_problems(config), *_model_problems(config)]
    try:
        splits = load_splits(config.data)
    except DataError as error:
        return Inspection(problems=(*problems, (error.key, error.message)))
    return Inspection(
        problems=tuple(problems),
        data_fingerprint=splits.fingerprint,
        num_train=len(splits.train),
        num_validation=len(splits.validation),
        num_test=len(splits.test),
        labels=splits.labels,
        majority_share=splits.majority_share,
    )


def _device_problems(config: SweepConfig) -> Iterator[tuple[str, str]]:
    gpus = config.resources.gpus_per_trial
    if gpus > 0 and not torch.cuda.is_available():
        yield "resources.gpus_per_trial", f"asks for {gpus:g} GPU, and torch {torch.__version__} sees no CUDA device"


def _model_problems(config: SweepConfig) -> Iterator[tuple[str, str]]:
    if problem := _folder_problem(config.model):
        yield "model.name", problem
        return
    try:
        model_config = load_model_config(config.model, ("a", "b"))
        model, tokenizer = skeleton(model_config), load_tokenizer(config.model)
    except (OSError, ValueError) as error:
        yield "model.name", f"can't be loaded for {config.training.task}: {str(error).splitlines()[0]}"
        return
    yield from _tokenizer_problems(config.model, tokenizer)
    longest = getattr(model_config, "max_position_embeddings", None)
    if longest is not None and config.data.max_length > longest:
        yield (
            "data.max_length",
            f"must be at most {longest}, the positions that the model has, got {config.data.max_length}",
        )
    yield from _target_problems(config, block_linears(model))


def _tokenizer_problems(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    # Where a folder has no tokenizer files, transformers 5.23 makes one of special tokens alone: each text is all unknown.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        yield "model.name", f"no tokenizer in {config.name}, or one with no words"
    elif tokenizer.pad_token_id is None:
        yield "model.name", f"the tokenizer of {config.name} has no padding token"


def _folder_problem(config: ModelConfig) -> str | None:
    if not is_folder_name(config.name):
        return None
    folder = Path(config.name)
    if not folder.is_dir():
        return f"no such model folder: {folder}"
    if not (folder / "config.json").is_file():
        return f"no config.json in {folder}"
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_FILES):
        return f"no weights as safetensors in {folder}"
    return None


def _target_problems(config: SweepConfig, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    targets = {module for modules in config.search.space.target_sets().values() for module in modules}
    unknown = [target for target in sorted(targets) if not _fits(names, target)]
    if unknown:
        known = ", ".join(_endings(names)) or "none in its blocks"
        yield "search.space.target_modules", f"no linear layer is named {', '.join(unknown)}; the model has: {known}"


def _fits(names: tuple[str, ...], target: str) -> bool:
    try:
        resolve_ranks(names, {target: 1})
    except ValueError:
        return False
    return True


def _endings(names: tuple[str, ...]) -> list[str]:
    """What comes after the block's number, each once: `attention.self.query` of `encoder.layer.3.attention.self.query`."""
    endings = []
    for name in names:
        parts = name.split(".")
        last_number = max(index for index, part in enumerate(parts) if part.isdecimal())
        endings.append(".".join(parts[last_number + 1 :]))
    return list(dict.fromkeys(endings))
