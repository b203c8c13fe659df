"""What cannot fit, known before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import make_config, make_llama, make_lora, make_metrics, make_record, make_spec
from tuner.feasibility import least_bytes, too_large
from tuner.front import GIB
from tuner.trial import TrialState

LLAMA = make_llama()
LORA = make_lora(target_modules=("all-linear",), r=16)
ASKED = make_record(4, TrialState.RUNNING, spec=make_spec(4, lora=LORA), curve=())


def config(**resources: Any) -> Any:
    return make_config(resources={"gpus_per_trial": 1.0, **resources})


def test_what_a_step_holds_is_the_base_and_sixteen_bytes_for_each_trained_number() -> None:
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rest = 8_030_261_248 - linear

    assert least_bytes(LORA, config(), LLAMA) == linear * 0.5 + rest * 2 + 41_943_040 * 16


def test_an_adapter_whose_weights_alone_exceed_the_limit_does_not_fit() -> None:
    found = too_large(ASKED, config(memory_limit_gib=4.0), LLAMA, [])

    assert found is not None
    detail, excess_gib = found
    assert detail == "weights, gradients and optimizer state alone take 5.83 GiB, the limit is 4 GiB"
    assert excess_gib == pytest.approx(least_bytes(LORA, config(), LLAMA) / GIB - 4)


@pytest.mark.parametrize("limit", [None, 24.0])
def test_what_may_fit_is_tried(limit: float | None) -> None:
    assert too_large(ASKED, config(memory_limit_gib=limit), LLAMA, []) is None


def refused(r: int, **lora: Any) -> Any:
    """A trial that was measured at 30 GiB."""
    spec = make_spec(3, lora=make_lora(target_modules=("all-linear",), r=r, **lora))
    return make_record(
        3, spec=spec, state=TrialState.INFEASIBLE, curve=(make_metrics(peak_memory_bytes=30 * GIB),), outcome=None
    )


def test_what_asks_for_more_in_every_layer_than_a_trial_that_was_too_large_does_not_fit() -> None:
    found = too_large(ASKED, config(memory_limit_gib=24.0), LLAMA, [refused(8)])

    assert found == ("trial 3 asks for no more in any layer and was too large", 6.0)


@pytest.mark.parametrize("record", [refused(32), refused(8, use_dora=True), refused(8, lora_dropout=0.1)])
def test_what_asks_for_less_anywhere_is_tried(record: Any) -> None:
    assert too_large(ASKED, config(memory_limit_gib=24.0), LLAMA, [record]) is None
