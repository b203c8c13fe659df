"""LoRA on a CPU: what PEFT computes, and PEFT itself for all that is more than A, B and a scale."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tuner.worker.plain_lora import _Direct, take_over_lora


def adapted(*, is_quantized: bool = False, **lora: Any) -> nn.Module:
    torch.manual_seed(0)
    layer: nn.Module = nn.Linear(64, 128)
    if is_quantized:
        plain, layer = layer, Linear4bit(64, 128, compute_dtype=torch.bfloat16, quant_type="nf4")  # type: ignore[no-untyped-call]
        layer.load_state_dict(plain.state_dict())
        layer.to("cpu")
    model: Any = nn.Sequential()
    model.add_module("layer", layer)
    wrapped = get_peft_model(
        model, LoraConfig(target_modules=["layer"], r=4, lora_alpha=6, init_lora_weights=False, **lora)
    )
    return wrapped.train()


def both(model: nn.Module, x: torch.Tensor) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """(output, gradients) as PEFT has them and as here."""
    ours = copy.deepcopy(model)
    take_over_lora(ours)
    found = []
    for one in (model, ours):
        torch.manual_seed(1)
        out = one(x)
        out.float().square().sum().backward()
        found.append((out, {name: p.grad for name, p in one.named_parameters() if p.grad is not None}))
    return found


@pytest.mark.parametrize("is_quantized", [False, True])
def test_in_float32_it_is_what_peft_computes(*, is_quantized: bool) -> None:
    (out, gradients), (our_out, our_gradients) = both(adapted(is_quantized=is_quantized), torch.randn(3, 5, 64))

    torch.testing.assert_close(our_out, out)
    assert len(gradients) == 2
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_under_autocast_it_differs_by_rounding(*, is_quantized: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (out, gradients), (our_out, our_gradients) = both(
            adapted(is_quantized=is_quantized), torch.randn(3, 5, 64).bfloat16()
        )

    assert our_out.dtype == out.dtype
    with torch.no_grad():
        assert float((our_out - out).norm() / out.norm()) < 0.01
    for name, gradient in gradients.items():
        assert float((our_gradients[name] - gradient).norm() / gradient.norm()) < 0.02


def test_what_is_dropped_is_dropped_once() -> None:
    (out, _), (our_out, _) = both(adapted(lora_dropout=0.5), torch.randn(3, 5, 64))

    torch.testing.assert_close(our_out, out)


def test_dora_merged_and_disabled_adapters_stay_with_peft() -> None:
    x = torch.randn(3, 5, 64)
    (out, gradients), (our_out, our_gradients) = both(adapted(use_dora=True), x)
    torch.testing.assert_close(our_out, out)
    torch.testing.assert_close(our_gradients, gradients)

    model: Any = adapted()
    take_over_lora(model)
    plain = model.base_model.model.layer.base_layer(x)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), plain)
    before = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), before)


def test_layers_are_peft_s_still_and_taken_over_once() -> None:
    model: Any = adapted()

    take_over_lora(model)
    take_over_lora(model)

    layer = model.base_model.model.layer
    assert isinstance(layer, LoraLayer)
    assert type(layer).__mro__.count(_Direct) == 1
    assert isinstance(model.unload().layer, nn.Linear)
