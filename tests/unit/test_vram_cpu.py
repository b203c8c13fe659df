"""Predicted with a CPU's kernels, against the bytes that a real training step allocates on a CPU."""

from __future__ import annotations

import copy

import pytest

from tests.builders import make_lora
from tests.real_steps import Setup, llama, measured
from tuner.vram import cpu
from tuner.vram.build import build
from tuner.vram.steps import trace
from tuner.vram.tracker import Tracker
from tuner.workload import Padding

SETUPS = {
    "llama r4 on q and v": Setup(lora=llama(4, ("q_proj", "v_proj"))),
    "llama r16 on q and v, 4 x 256": Setup(lora=llama(16, ("q_proj", "v_proj")), rows=4, tokens=256, learned=200),
    "llama r64 on all": Setup(lora=llama(64), tokens=256),
    "llama padded": Setup(lora=llama(16), padding=Padding.PADDED),
    "llama checkpointed": Setup(lora=llama(16), tokens=512, is_checkpointed=True),
    "llama nf4, double": Setup(lora=llama(16), tokens=256, quantization="nf4"),
    "llama nf4, plain": Setup(lora=llama(16), tokens=256, quantization="nf4", double_quantization=False),
    "llama nf4, checkpointed": Setup(lora=llama(32), rows=4, tokens=256, quantization="nf4", is_checkpointed=True),
    "llama ranks by module, grouped keys": Setup(
        lora=llama(4, rank_pattern=(("down_proj", 64), ("q_proj@first", 32))), tokens=256, num_key_value_heads=2
    ),
    "llama dropout": Setup(lora=llama(16, lora_dropout=0.1), tokens=256),
    "llama dropout, nf4, checkpointed": Setup(
        lora=llama(16, lora_dropout=0.1), tokens=256, quantization="nf4", is_checkpointed=True
    ),
    "llama DoRA": Setup(lora=llama(16, use_dora=True), tokens=256),
    "llama DoRA, nf4": Setup(lora=llama(16, use_dora=True), tokens=256, quantization="nf4"),
    "llama eight blocks, nf4, checkpointed": Setup(
        lora=llama(64), rows=1, tokens=512, quantization="nf4", is_checkpointed=True, layers=8, learned=450
    ),
    "bert r8 on query and value": Setup(
        lora=make_lora(r=8, target_modules=("query", "value")), rows=8, is_bert=True, padding=Padding.PADDED
    ),
    "bert r32 on all, nf4": Setup(
        lora=make_lora(r=32, target_modules=("all-linear",)), rows=4, tokens=256, is_bert=True, quantization="nf4"
    ),
    "bert checkpointed": Setup(
        lora=make_lora(r=16, target_modules=("all-linear",)), rows=4, tokens=256, is_bert=True, is_checkpointed=True
    ),
    "llama autocast": Setup(lora=llama(16), tokens=64, rows=1, dtype="bfloat16", layers=2),
    "llama autocast, nf4": Setup(lora=llama(16), tokens=64, rows=1, dtype="bfloat16", layers=2, quantization="nf4"),
    "llama autocast, nf4, checkpointed, dropout": Setup(
        lora=llama(16, lora_dropout=0.1),
        tokens=64,
        rows=1,
        dtype="bfloat16",
        layers=2,
        quantization="nf4",
        is_checkpointed=True,
    ),
    "llama autocast, DoRA, nf4": Setup(
        lora=llama(16, use_dora=True), tokens=64, rows=1, dtype="bfloat16", layers=2, quantization="nf4"
    ),
    "bert autocast, padded": Setup(
        lora=make_lora(r=16, target_modules=("all-linear",)),
        rows=1,
        dtype="bfloat16",
        layers=2,
        is_bert=True,
        padding=Padding.PADDED,
    ),
    "bert autocast, nf4": Setup(
        lora=make_lora(r=16, target_modules=("all-linear",)),
        rows=1,
        dtype="bfloat16",
        layers=2,
        is_bert=True,
        quantization="nf4",
    ),
}


def predicted(setup: Setup) -> int:
    work = setup.workload()
    built = build(copy.deepcopy(setup.config()), setup.task, work, setup.lora)
    tracker = Tracker(cpu.handlers(work), rounding=cpu.ROUNDING)
    trace(built, work, tracker, cpu.functions(work))
    return max(peak.num_bytes for peak in tracker.peaks.values())


@pytest.mark.parametrize("name", SETUPS)
def test_the_bytes_of_a_real_step_are_predicted_within_half_a_percent(name: str) -> None:
    setup = SETUPS[name]
    real = measured(setup)

    assert predicted(setup) == pytest.approx(real, rel=0.005), f"{predicted(setup) / real - 1:+.3%}"
