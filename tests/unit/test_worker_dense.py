"""Dequantized copies give what bitsandbytes gives, are shared by twins, and are not part of what a trial needs."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from tests.real_steps import Setup, base_of, llama
from tuner.worker import dense
from tuner.worker.adapters import attach
from tuner.worker.dense import keep_copies, take_over, without_copies
from tuner.worker.memory import StepPeak
from tuner.worker.model import BaseModel
from tuner.worker.twin import twin_of


def base(*, is_double: bool = True, dtype: str = "float32") -> BaseModel:
    return base_of(Setup(lora=llama(4), quantization="nf4", double_quantization=is_double, dtype=dtype, layers=2))


def states(base: BaseModel) -> list[Any]:
    layers: list[Any] = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    return [layer.weight.quant_state for layer in layers]


def gradients(base: BaseModel) -> list[torch.Tensor]:
    adapted = attach(twin_of(base), llama(4), seed=0)
    for name, parameter in adapted.trainable().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    with base.autocast():
        logits = adapted.model(torch.arange(12).view(2, 6)).logits
    logits.float().square().sum().backward()
    return [logits.detach(), *(each.grad for each in adapted.trainable().values() if each.grad is not None)]


@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_copies_the_same_numbers_come_out_bit_for_bit(is_double: bool, dtype: str) -> None:
    model = base(is_double=is_double, dtype=dtype)
    expected = gradients(model)

    keep_copies(model.model, model.compute_dtype)

    assert all(hasattr(state, "dense") for state in states(model))
    found = gradients(model)
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_without_room_there_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_free_bytes", lambda: 1e6)
    model = base()

    keep_copies(model.model, torch.float32)

    assert not any(hasattr(state, "dense") for state in states(model))


def test_what_a_trial_needs_is_measured_without_copies() -> None:
    def peak(model: BaseModel) -> int:
        adapted = attach(twin_of(model), llama(4), seed=0)
        meter = StepPeak(adapted.model, torch.optim.SGD(adapted.trainable().values()), model.device)
        with meter.watch():
            adapted.model(torch.arange(12).view(2, 6)).logits.sum().backward()
        return meter.peak_bytes()

    model = base()
    before = peak(model)
    keep_copies(model.model, torch.float32)

    assert peak(model) == before


def test_inside_without_copies_the_4_bit_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = base(), []
    whole = bitsandbytes.matmul_4bit  # type: ignore[attr-defined]  # its public name
    keep_copies(model.model, torch.float32)

    def counted(*args: Any, **keywords: Any) -> torch.Tensor:
        calls.append(args)
        result: torch.Tensor = whole(*args, **keywords)
        return result

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", counted)
    model.model(torch.arange(6)[None])
    assert not calls
    with without_copies():
        model.model(torch.arange(6)[None])
    assert len(calls) == 14


@pytest.mark.parametrize("has_copies", [False, True])
def test_a_trained_bias_stays_in_float32_whatever_the_layer_computes_in(has_copies: bool) -> None:
    layer: Any = Linear4bit(64, 8, quant_type="nf4", compute_dtype=torch.bfloat16).to("cpu")  # type: ignore[no-untyped-call]
    if has_copies:
        keep_copies(layer, torch.bfloat16)
    else:
        take_over(layer)
    layer.bias.data = layer.bias.data.float()

    layer(torch.randn(2, 64)).sum().backward()
    with without_copies():
        layer(torch.randn(2, 64)).sum().backward()

    assert layer.bias.dtype is torch.float32
    assert layer.bias.grad.dtype is torch.float32
