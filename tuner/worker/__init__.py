"""The worker's room: torch is at home here; Optuna, Ray and the study are never seen."""

import logging
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

# Before bitsandbytes is imported: it logs an error about an optional CPU kernel that it does without (0.50).
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def _uncompiled(function: Callable[..., Any] | None = None, **_: object) -> Any:  # noqa: ANN401 -- as torch.compile
    return function if function is not None else lambda decorated: decorated


# bitsandbytes 0.50 has torch's compiler imported, a fifth of what a worker takes to start, for kernels where it has none of its
# own.
with mock.patch.object(torch, "compile", new=_uncompiled):
    import bitsandbytes  # noqa: F401
