"""A look at model and data before anything is trained: every reason why no trial could work. Runs on the worker."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.pytorch_utils import Conv1D

from tuner.config import is_folder_name
from tuner.dimensions import options_of
from tuner.gpus import MIB, Gpu
from tuner.layers import ModelFacts
from tuner.space_config import InitName
from tuner.trial import Inspection
from tuner.worker.architecture import AUTO_CLASSES, facts_of, skeleton
from tuner.worker.data import DataError, Splits, load_splits
from tuner.worker.gguf import SUFFIX
from tuner.worker.model import load_model_config, load_tokenizer, quiet
from tuner.worker.provenance import fingerprint_of, hardware, versions
from tuner.worker.tokens import TokenizedSplits, tokenize_splits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tuner.config import ModelConfig, SweepConfig

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
PICKLES = ("*.bin", "*.bin.index.json")

BROKEN = (OSError, ValueError, KeyError, TypeError, ArithmeticError, ImportError, StrictDataclassError)
"""What transformers raises for a configuration or a tokenizer that it can't use."""

KeyAndMessage = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model without its weights."""

    config: PretrainedConfig
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def inspect_sweep(config: SweepConfig) -> Inspection:
    """Collect what is wrong with model, data and device, what the model is made of, and the sizes of the splits."""
    quiet()
    of_data: list[KeyAndMessage] = []
    problems: list[KeyAndMessage] = [*_device_problems(config)]
    splits = _splits(config, of_data)
    opened = _open(config.model, config.training.task, splits.labels if splits else ("a", "b"), problems)
    if opened:
        problems += _model_problems(config, opened)
    problems += of_data
    tokenized = _tokenized(config, opened, splits, problems) if opened and splits and not problems else None
    facts = facts_of(opened.model) if opened else ModelFacts()
    if splits is None or tokenized is None:
        return Inspection(problems=tuple(problems), model=facts)
    return Inspection(
        problems=tuple(problems),
        data_fingerprint=splits.fingerprint,
        num_train=len(tokenized.train),
        num_validation=len(tokenized.validation.tokens),
        num_test=len(tokenized.test.tokens),
        labels=splits.labels,
        majority_share=splits.majority_share,
        gpu=card_of(config),
        num_duplicates=splits.num_duplicates,
        num_too_long=tokenized.num_too_long,
        longest_train=max(tokenized.train.input_ids.lengths),
        longest_validation=max(max(scored.input_ids.lengths) for scored in tokenized.validation.read),
        most_learned=tokenized.train.most_learned(),
        most_scored=max(scored.most_learned() for scored in tokenized.validation.read),
        model=facts,
        model_fingerprint=fingerprint_of(config.model, opened.config) if opened else "",
        versions=versions(),
        hardware=hardware(),
    )


def card_of(config: SweepConfig) -> Gpu | None:
    """The card that trials of a sweep run on; None on a CPU. How much of it the context takes is assumed."""
    if not config.resources.uses_gpu or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return Gpu(
        name=found.name,
        memory_mib=found.total_memory / MIB,
        capability=(found.major, found.minor),
    )


def inspect_model(config: ModelConfig, task: str) -> ModelFacts:
    """What a model is made of, from its configuration alone.

    Raises:
        ValueError: There is no such model, or transformers does not know it.
    """
    quiet()
    problems: list[KeyAndMessage] = []
    opened = _open(config, task, ("a", "b"), problems)
    if opened is None:
        raise ValueError(problems[0][1])
    return facts_of(opened.model)


def _splits(config: SweepConfig, problems: list[KeyAndMessage]) -> Splits | None:
    try:
        return load_splits(config.data, config.training.task)
    except DataError as error:
        problems.append((error.key, error.message))
        return None


def _tokenized(
    config: SweepConfig, opened: Opened, splits: Splits, problems: list[KeyAndMessage]
) -> TokenizedSplits | None:
    """Tokenize, once for all workers of this node."""
    try:
        return tokenize_splits(opened.tokenizer, splits, config)
    except DataError as error:
        problems.append((error.key, error.message))
        return None


def _device_problems(config: SweepConfig) -> Iterator[KeyAndMessage]:
    gpus = config.resources.gpus_per_trial
    if config.resources.uses_gpu and not torch.cuda.is_available():
        asked = "a GPU" if gpus == "auto" else f"{gpus:g} GPU"
        yield "resources.gpus_per_trial", f"asks for {asked}, and torch {torch.__version__} sees no CUDA device"


def _open(config: ModelConfig, task: str, labels: tuple[str, ...], problems: list[KeyAndMessage]) -> Opened | None:
    if problem := _place_problem(config, task):
        problems.append(("model.name", problem))
        return None
    try:
        model_config = load_model_config(config, labels if task == "classification" else ())
        model = skeleton(model_config, task, trust_remote_code=config.trust_remote_code)
        return Opened(config=model_config, model=model, tokenizer=load_tokenizer(config))
    except BROKEN as error:
        problems.append(("model.name", f"can't be loaded for {task}: {first_line(error)}"))
        return None


def first_line(error: BaseException) -> str:
    """What an error says, in short; transformers' go on for pages."""
    return (str(error) or repr(error)).splitlines()[0]


def _model_problems(config: SweepConfig, opened: Opened) -> Iterator[KeyAndMessage]:
    yield from _tokenizer_problems(config, opened.tokenizer)
    longest = _positions(opened)
    if longest is not None and config.data.max_length > longest:
        yield (
            "data.max_length",
            f"must be at most {longest}, the positions that the model has, got {config.data.max_length}",
        )
    if config.training.packing and (problem := packing_problem(opened.config)):
        yield "training.packing", problem
    is_transposed = any(isinstance(module, Conv1D) for module in opened.model.modules())
    inits: tuple[InitName, ...] = options_of(config.search.space.init_lora_weights)
    if is_transposed and "olora" in inits:
        reason = f"the weights of {opened.config.model_type} lie the other way round (Conv1D), which PEFT's OLoRA does not take"
        yield "search.space.init_lora_weights", f"olora can't be used here: {reason}"


def _positions(opened: Opened) -> int | None:
    """Tokens that the model has positions for; RoBERTa's kind counts them from behind the padding's."""
    longest: int | None = getattr(opened.config, "max_position_embeddings", None)
    tables = [module for name, module in opened.model.named_modules() if name.endswith("position_embeddings")]
    offsets = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return longest if longest is None else longest - max(offsets, default=0)


def packing_problem(config: PretrainedConfig) -> str | None:
    """Why an architecture can't be packed: a change in one example must not be seen in the next.

    Tried on one block of it with random weights; the vocabulary is cut down, which would be most of the memory.
    """
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.use_cache = 1, 64, False
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(small, name, None) is not None:
            setattr(small, name, 0)
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    torch.manual_seed(0)
    model = AUTO_CLASSES["causal-lm"].from_config(small).eval()  # type: ignore[no-untyped-call]
    tokens = torch.arange(3, 11)[None]
    changed = torch.cat([tokens[:, 4:], tokens[:, 4:]], dim=1)
    positions = (torch.arange(8) % 4)[None]
    with torch.no_grad():
        one, other = (model(input_ids=ids, position_ids=positions).logits for ids in (tokens, changed))
    if torch.equal(one[:, 4:], other[:, 4:]):
        return None
    return f"packed examples of a {config.model_type} see each other, for transformers gives it no borders; set it to false"


def _tokenizer_problems(config: SweepConfig, tokenizer: PreTrainedTokenizerBase) -> Iterator[KeyAndMessage]:
    name = config.model.name
    # Where a folder has no tokenizer files, transformers 5.23 makes one of special tokens alone: each text is all unknown.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        yield "model.name", f"no tokenizer in {name}, or one with no words"
    elif tokenizer.pad_token_id is None:
        yield "model.name", f"the tokenizer of {name} has neither a padding nor an end-of-sequence token"
    elif config.training.task == "causal-lm" and tokenizer.eos_token_id is None:
        yield (
            "model.name",
            f"the tokenizer of {name} has no end-of-sequence token, so that no completion would ever end",
        )


def _place_problem(config: ModelConfig, task: str) -> str | None:
    """What is wrong with a model's folder or file; a hub id is looked up later."""
    if config.name.endswith(SUFFIX):
        return _gguf_problem(Path(config.name), task)
    if not is_folder_name(config.name):
        return None
    folder = Path(config.name)
    if not folder.is_dir():
        return f"no such model folder: {folder}"
    if not (folder / "config.json").is_file():
        return f"no config.json in {folder}"
    if _has(folder, WEIGHT_FILES) or (config.allow_pickle and _has(folder, PICKLES)):
        return None
    hint = "; it has pickled ones, which model.allow_pickle: true would take" if _has(folder, PICKLES) else ""
    return f"no weights as safetensors in {folder}{hint}"


def _gguf_problem(file: Path, task: str) -> str | None:
    if not file.is_file():
        return f"no such GGUF file: {file}"
    if task != "causal-lm":
        return f"a GGUF file is taken for causal-lm only, and training.task is {task}"
    return None


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
