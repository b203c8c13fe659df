"""What only a CUDA device can show; skips itself where there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.builders import make_lora, make_spec
from tests.sweeps import small_config, write_sweep
from tuner import sweep
from tuner.trial import MemoryKind, Metrics
from tuner.worker.host import Worker

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SPEC = make_spec(0, lora=make_lora(r=4))


def last_report(worker: Worker, number: int) -> Metrics:
    worker.start(dataclasses.replace(SPEC, number=number))
    results = [worker.advance() for _ in range(3)]
    assert isinstance(results[-1], Metrics), results[-1]
    return results[-1]


def test_a_trial_on_a_gpu_reports_what_cuda_allocated_and_reserved(tmp_path: Path) -> None:
    metrics = last_report(Worker(small_config(tmp_path, {"resources.gpus_per_trial": 1}), None), 0)

    assert metrics.memory_kind is MemoryKind.CUDA_ALLOCATED
    assert metrics.peak_reserved_bytes is not None
    assert 0 < metrics.peak_memory_bytes <= metrics.peak_reserved_bytes


def test_a_second_trial_needs_no_more_memory_than_the_first(tmp_path: Path) -> None:
    worker = Worker(small_config(tmp_path, {"resources.gpus_per_trial": 1}), None)

    first, second = last_report(worker, 0), last_report(worker, 1)

    assert second.peak_memory_bytes <= 1.01 * first.peak_memory_bytes


def test_trials_together_on_a_gpu_end_as_alone(tmp_path: Path) -> None:
    changes = {"resources.gpus_per_trial": 1, "model.compute_dtype": "float32", "pruning.method": "none"}
    found = []
    for size in (1, 3):
        (tmp_path / str(size)).mkdir()
        file = write_sweep(tmp_path / str(size), {**changes, "resources.trials_per_worker": size})
        found.append(sweep.run(file, out=tmp_path / str(size) / "out"))

    for one, other in zip(found[0].trials, found[1].trials, strict=True):
        assert one.last
        assert other.last
        assert other.last.loss == pytest.approx(one.last.loss, rel=1e-2)
        assert other.last.peak_memory_bytes == pytest.approx(one.last.peak_memory_bytes, rel=0.1)
