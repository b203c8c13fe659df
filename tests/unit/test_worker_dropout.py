"""Dropout on a CPU: as much as asked for, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tuner.worker.dropout import Dropout, dropped, take_over_dropouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.03, 0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_grows_by_what_is_missing(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    num = 400_001

    left = dropped(torch.ones(num, dtype=dtype), p)

    share = float((left == 0).float().mean())
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / num))
    assert set(left.tolist()) == {0.0, float(torch.tensor(1 / (1 - p)).to(dtype))}


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    is_dropped = (dropped(torch.ones(400_000), 0.3) == 0).float()

    for distance in (1, 2, 3, 4):
        both = float((is_dropped[:-distance] * is_dropped[distance:]).mean())
        assert both == pytest.approx(0.09, abs=0.004)


def test_the_same_seed_drops_the_same_and_gradients_pass_where_values_do() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(5)
    one = dropped(x, 0.4)
    torch.manual_seed(5)
    other = dropped(x, 0.4)

    one.sum().backward()  # type: ignore[no-untyped-call]

    assert torch.equal(one, other)
    assert x.grad is not None
    assert torch.allclose(x.grad, (one != 0) / 0.6)


def test_all_of_a_model_drops_our_way_and_nothing_while_it_is_evaluated() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    take_over_dropouts(model)

    assert isinstance(model[1], Dropout)
    assert torch.equal(model.eval()[1](torch.ones(9)), torch.ones(9))
    assert float(model.train()[1](torch.ones(99)).min()) == 0
