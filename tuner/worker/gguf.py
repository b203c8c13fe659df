"""A GGUF file as a folder that transformers loads, quantizes and saves. Runs on the worker.

transformers 5.23 reads GGUF files, but neither quantizes what it read (`gguf_file` with `quantization_config` raises) nor
saves it (`save_pretrained` raises: "quantized with gguf"). So a file is converted once and kept in the cache.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuner.worker.cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUFFIX = ".gguf"
FORMAT = "1"
"""To be raised when the same file is converted otherwise."""


def converted(file: Path) -> Path:
    """The folder with a GGUF file's weights as bfloat16 safetensors, and its tokenizer; made at the first use.

    Args:
        file: A GGUF file of a causal language model.

    Raises:
        OSError: The file can't be read, or the cache not be written.
        ValueError: transformers knows no such architecture in GGUF.
    """
    written_ns, num_bytes = file.stat().st_mtime_ns, file.stat().st_size
    key = f"{file.stem}-{_digest(file, written_ns, num_bytes)}-{FORMAT}"
    return cached("gguf", key, lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    _forget_gguf(model)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_gguf(model: PreTrainedModel) -> None:
    """The weights are plain now; without this transformers refuses to save them."""
    model.hf_quantizer = None  # type: ignore[assignment]
    for owner, name in ((model.config, "quantization_config"), (model, "is_quantized"), (model, "quantization_method")):
        if name in vars(owner):
            delattr(owner, name)


@functools.cache
def _digest(file: Path, written_ns: int, num_bytes: int) -> str:
    """Of the content; time and size tell whether it must be read again."""
    del written_ns, num_bytes
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
