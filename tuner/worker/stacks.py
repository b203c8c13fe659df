"""Adapters of several trials on one linear layer, computed as one batched product. Runs on the worker.

Three trials' A x and B h are two small products each; a GPU spends more time on being told of them than on the products. Laid
into one array they are two products in all. Ranks may differ: rows of zeros fill up to the largest.

K is trials, R the rank that they are filled up to, N rows times tokens of one trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

RANK_STEP = 8
"""Tensor cores want multiples of it."""


class Stack:
    """The adapters of a layer.

    Args:
        adapters: PEFT's layers by trial; None where a trial adapts another layer.
    """

    def __init__(self, adapters: Sequence[Any | None]) -> None:
        known = [_parts(adapter) for adapter in adapters if adapter is not None]
        self._rank = -(-max(lora_A.shape[0] for lora_A, _, _ in known) // RANK_STEP) * RANK_STEP
        lora_A, lora_B, _ = known[0]
        zeros_A = lora_A.new_zeros(self._rank, lora_A.shape[1])
        zeros_B = lora_B.new_zeros(lora_B.shape[0], self._rank)
        self._rows, self._columns = [], []
        scales = []
        for adapter in adapters:
            found = None if adapter is None else _parts(adapter)
            rank = 0 if found is None else found[0].shape[0]
            if found is not None:
                self._rows.append(found[0])
                self._columns.append(found[1])
            self._rows.append(zeros_A[rank:])
            self._columns.append(zeros_B[:, rank:])
            scales.append(0.0 if found is None else found[2])
        self._scale_K11 = torch.tensor(scales, dtype=lora_A.dtype, device=lora_A.device).reshape(-1, 1, 1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """B A x times the scale, each trial's on its own rows.

        Args:
            x: (K rows, ..., in), as many rows of each trial.
        """
        num = self._scale_K11.shape[0]
        A_KRI = torch.cat(self._rows).reshape(num, self._rank, -1)
        B_KRO = torch.cat(self._columns, dim=1).reshape(-1, num, self._rank).permute(1, 2, 0)
        h_KNR = torch.bmm(x.reshape(num, -1, x.shape[-1]), A_KRI.transpose(1, 2))
        part_KNO = torch.bmm(h_KNR * self._scale_K11.to(h_KNR.dtype), B_KRO)
        return part_KNO.reshape(*x.shape[:-1], -1)


def _parts(adapter: Any) -> tuple[torch.Tensor, torch.Tensor, float]:  # noqa: ANN401 -- PEFT's layers have no common type
    """(A, B, scale)."""
    (key,) = adapter.lora_A.keys()
    return adapter.lora_A[key].weight, adapter.lora_B[key].weight, adapter.scaling[key]
