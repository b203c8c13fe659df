"""A twin is a tree of its own over the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bases import tiny_base
from tests.builders import make_lora
from tuner.lora import Bias, Init
from tuner.worker.adapters import attach
from tuner.worker.twin import twin_of


def test_a_twin_shares_the_memory_of_its_weights_and_gives_the_same() -> None:
    base = tiny_base()

    twin = twin_of(base)

    ids = torch.arange(6)[None]
    assert torch.equal(twin.model(ids).logits, base.model(ids).logits)
    for name, parameter in base.model.named_parameters():
        mine = twin.model.get_parameter(name)
        assert mine is not parameter
        assert mine.data_ptr() == parameter.data_ptr() or name.endswith(".bias")


@pytest.mark.parametrize("changes", [{}, {"init_lora_weights": Init.PISSA}, {"bias": Bias.ALL}, {"use_dora": True}])
def test_what_is_done_to_a_twin_leaves_the_base_as_it_was(changes: dict[str, object]) -> None:
    base = tiny_base()
    before = {name: value.clone() for name, value in base.model.state_dict().items()}

    adapted = attach(twin_of(base), make_lora(r=2, target_modules=("q_proj", "down_proj"), **changes), seed=0)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(1.0)

    after = base.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_quantized_weights_are_shared_with_their_state() -> None:
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    base = tiny_base()
    layer: Any = Linear4bit(64, 64, bias=False, quant_type="nf4")  # type: ignore[no-untyped-call]
    layer.weight = Params4bit(torch.randn(64, 64), requires_grad=False, quant_type="nf4").to("cpu")  # type: ignore[misc]
    base.model.set_submodule("model.layers.0.self_attn.q_proj", layer)

    twin: Any = twin_of(base).model.get_submodule("model.layers.0.self_attn.q_proj")

    x = torch.randn(2, 64)
    assert twin is not layer
    assert torch.equal(twin(x), layer(x))
    assert twin.weight.data_ptr() == layer.weight.data_ptr()
    assert twin.weight.quant_state is layer.weight.quant_state
