"""Attention on a CPU, written out, is what torch's own function gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.architectures import FAMILIES, build_base, task_of
from tuner.worker import attention
from tuner.worker.attention import MOST_TOKENS, attention_forward, take_over_attention
from tuner.worker.dense import without_copies


@pytest.fixture
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 too, in which it can be held against torch's."""
    monkeypatch.setattr(attention, "_pays", lambda *_: True)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("num_keys", [4, 2])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added"])
def test_values_and_gradients_are_torchs(mask: str, num_keys: int) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 6, 8), (2, num_keys, 6, 8), (2, num_keys, 6, 8)]
    query, key, value = (torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes)
    is_seen = (torch.rand(2, 1, 6, 6, generator=draw) > 0.3) | torch.eye(6, dtype=torch.bool)
    given = {"bool": is_seen, "added": torch.where(is_seen, 0.0, -torch.inf)}.get(mask)

    ours, _ = attention_forward(nn.Identity(), query, key, value, given, is_causal=mask == "causal", scaling=0.3)
    theirs = nn.functional.scaled_dot_product_attention(
        query, key, value, given, is_causal=mask == "causal", scale=0.3, enable_gqa=True
    ).transpose(1, 2)

    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), (query, key, value)),
        torch.autograd.grad(theirs.square().sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("is_added", [False, True])
def test_a_row_that_sees_nothing_is_no_number_that_spreads(is_added: bool) -> None:
    query = torch.randn(1, 2, 4, 8, requires_grad=True)
    is_seen = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    is_seen[..., 3, :] = False
    mask = torch.where(is_seen, 0.0, -torch.inf) if is_added else is_seen

    values, _ = attention_forward(nn.Identity(), query, query, query, mask)

    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), query)[0].isfinite().all()


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"t5"}))  # whose encoder and decoder no trial trains
def test_a_model_gives_what_it_gave(name: str) -> None:
    base = build_base(FAMILIES[name], task_of(FAMILIES[name]))
    base.model.eval()  # type: ignore[no-untyped-call]
    ids, seen = torch.randint(0, 60, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    seen[1, 4:] = 0
    before = base.model(input_ids=ids, attention_mask=seen).logits

    take_over_attention(base.model)

    after = base.model(input_ids=ids, attention_mask=seen).logits
    is_token = after.dim() == 3  # (rows, tokens, words)
    torch.testing.assert_close(*((one[seen.bool()] if is_token else one) for one in (after, before)))


def test_it_is_written_out_for_short_texts_in_bfloat16_and_where_weights_are_dropped_but_not_where_peaks_are_measured() -> (
    None
):
    def pays(tokens: int, dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0) -> bool:
        query = torch.zeros(1, 1, tokens, 8, dtype=dtype)
        return attention._pays(query, query, dropout)

    assert pays(MOST_TOKENS)
    assert not pays(MOST_TOKENS + 1)
    assert not pays(8, torch.float32)
    assert pays(8, torch.float32, 0.1)
    with torch.no_grad():
        assert not pays(8)
    with without_copies():
        assert not pays(8)
