"""Operators whose result depends on data, which meta tensors do not have: whether a mask hides anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tuner.vram.tracker import Handler, Tracker
from tuner.workload import Padding

if TYPE_CHECKING:
    from tuner.workload import Workload


def handlers(workload: Workload) -> Mapping[Any, Handler]:
    """The operators, answered for a workload."""

    def truth(tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`mask.all()` and its like: true where nothing is hidden."""
        del tracker, func, kwargs
        return workload.padding is Padding.NONE if args[0].dtype == torch.bool else 1

    return {
        torch.ops.aten._local_scalar_dense.default: truth,  # noqa: SLF001 -- torch's name for it
        torch.ops.aten.is_nonzero.default: truth,
    }
