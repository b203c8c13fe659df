"""Find the right LoRA: accuracy against trainable parameters and memory.

The Python API has the command line's names: `run`, `resume`, `load`, `export`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.exporting import Exported, export
    from tuner.sweep import Sweep, load, resume, run

_HOMES = {
    "Exported": "tuner.exporting",
    "Sweep": "tuner.sweep",
    "export": "tuner.exporting",
    "load": "tuner.sweep",
    "resume": "tuner.sweep",
    "run": "tuner.sweep",
}

__all__ = ["Exported", "Sweep", "export", "load", "resume", "run"]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:  # noqa: ANN401 -- what a module attribute is
    if name not in _HOMES:
        msg = f"module 'tuner' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)
