"""Operators whose result depends on data, which meta tensors do not have: what is learned, whether a mask hides anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tuner.prediction import Phase
from tuner.sizes import SORTING_BYTES
from tuner.vram.tracker import Handler, Tracker
from tuner.workload import Padding

if TYPE_CHECKING:
    from tuner.workload import Workload


def handlers(workload: Workload) -> Mapping[Any, Handler]:
    """The operators, answered for a workload: so many tokens are learned, and masks hide something or not."""
    aten, known = torch.ops.aten, _Known(workload)
    return {
        aten._local_scalar_dense.default: known.truth,  # noqa: SLF001 -- torch's name for it
        aten.is_nonzero.default: known.truth,
        aten.nonzero.default: known.nonzero,
        aten.index.Tensor: known.index,
        aten._index_put_impl_.default: known.index_put,
        aten.index_put_.default: known.index_put,
        aten.index_put.default: known.index_put,
    }


class _Known:
    """What is known of the data.

    Args:
        workload: Says it.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def truth(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`mask.all()` and its like: true where nothing is hidden."""
        del tracker, func, kwargs
        return self._workload.padding is Padding.NONE if args[0].dtype == torch.bool else 1

    def nonzero(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The places of what is learned."""
        del func, kwargs
        return self._places(tracker, args[0])

    def index(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The rows of what is learned."""
        source, indices = args
        mask = _mask_of(indices)
        if mask is None:
            return func(*args, **kwargs)
        self._places(tracker, mask)
        return source.new_empty((self._num(tracker), *source.shape[mask.dim() :]))

    def index_put(self, tracker: Tracker, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Their gradients, put back where they came from."""
        mask = _mask_of(args[1])
        if mask is None:
            return func(*args, **kwargs)
        self._places(tracker, mask)
        tracker.scratch(self._num(tracker) * SORTING_BYTES, "index_put")
        return args[0]

    def _num(self, tracker: Tracker) -> int:
        work = self._workload
        return work.eval_learned_tokens if tracker.phase is Phase.EVALUATION else work.learned_tokens

    def _places(self, tracker: Tracker, mask: torch.Tensor) -> torch.Tensor:
        with tracker:
            return torch.empty((self._num(tracker), mask.dim()), dtype=torch.long, device="meta")


def _mask_of(indices: Any) -> torch.Tensor | None:
    first = indices[0] if indices else None
    return first if first is not None and first.dtype == torch.bool else None
