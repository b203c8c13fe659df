"""What a result hangs on beside the sweep file: the model's weights, the packages, the machine. Runs on the worker."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tuner.config import is_folder_name
from tuner.gpus import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PretrainedConfig

    from tuner.config import ModelConfig

PACKAGES = ("tuner", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "optuna", "ray", "numpy")
WEIGHTS = ("*.safetensors", "*.bin")


def fingerprint_of(config: ModelConfig, model_config: PretrainedConfig) -> str:
    """SHA-256 of a model: its configuration, and of each weight file the size, the first and the last MiB.

    Not of all bytes, for that would take minutes where a model is large. Of a hub model it is the configuration and the
    commit, which stands for all files.
    """
    digest = hashlib.sha256(model_config.to_json_string(use_diff=False).encode())
    if config.name.endswith(".gguf") or is_folder_name(config.name):
        for file in _weight_files(Path(config.name)):
            digest.update(f"{file.name}\t{file.stat().st_size}\n".encode())
            digest.update(_ends(file))
    else:
        digest.update(str(getattr(model_config, "_commit_hash", None)).encode())
    return digest.hexdigest()


def versions() -> tuple[tuple[str, str], ...]:
    """(package, version) of Python and of all packages that results may hang on; a checkout on the path has none."""
    known = {one.name.lower(): one.version for name in PACKAGES for one in metadata.distributions(name=name)}
    return (("python", platform.python_version()), *((name, known[name]) for name in PACKAGES if name in known))


def hardware() -> str:
    """The machine in a few words, without its name."""
    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    counted = [f"{cards.count(name)} x {name}" for name in dict.fromkeys(cards)]
    return ", ".join((f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPU cores", *counted))


def _weight_files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return (place,)
    return sorted(file for pattern in WEIGHTS for file in place.glob(pattern))


def _ends(file: Path) -> bytes:
    with file.open("rb") as stream:
        first = stream.read(MIB)
        stream.seek(max(0, file.stat().st_size - MIB))
        return first + stream.read(MIB)
