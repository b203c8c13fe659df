"""Real trials on the real encoder with an NF4 base: what a trial may depend on, and what it may not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders import make_lora, make_spec
from tests.sweeps import small_config
from tuner.lora import Bias, LoraSpec
from tuner.trial import FailReason, Interruption, MemoryKind, Metrics, Outcome, TrialSpec, TrialState
from tuner.worker import training
from tuner.worker.dense import without_copies
from tuner.worker.evaluation import forward
from tuner.worker.host import BaseSpec, Worker, load
from tuner.worker.memory import StepPeak
from tuner.worker.model import BaseModel
from tuner.worker.prepared import TrainingData
from tuner.worker.stepping import Stepped
from tuner.worker.training import TrialRun

ALL = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
SPEC = make_spec(0, lora=make_lora(r=4, lora_alpha=8.0, lora_dropout=0.1), learning_rate=3e-3)
OTHERS = [
    make_spec(1, lora=make_lora(r=16, target_modules=ALL, lora_dropout=0.3), learning_rate=1e-2, seed=7),
    make_spec(2, lora=make_lora(r=1, target_modules=("intermediate.dense",)), learning_rate=1e-3),
    make_spec(3, lora=make_lora(target_modules=ALL, rank_pattern=(("output.dense", 2), ("key", 0))), seed=3),
]


def run_trial(worker: Worker, spec: TrialSpec) -> list[Metrics | Outcome]:
    """All that a trial reports, without what a clock measured."""
    worker.start(spec)
    results: list[Metrics | Outcome] = []
    while True:
        result = worker.advance()
        assert not isinstance(result, Interruption)
        if isinstance(result, Outcome):
            return [*results, result]
        results.append(dataclasses.replace(result, train_s=0.0, span=None))
        if result.steps == 8:
            return results


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A worker that keeps nothing on disk."""
    return Worker(small_config(tmp_path_factory.mktemp("sweep")), None)


@pytest.fixture(scope="module")
def alone(worker: Worker) -> list[Metrics | Outcome]:
    """What SPEC gives as the first trial of its process."""
    return run_trial(worker, SPEC)


def test_a_trial_reports_at_each_rung(alone: list[Metrics | Outcome]) -> None:
    assert [result.steps for result in alone if isinstance(result, Metrics)] == [2, 4, 8]
    last = alone[-1]
    assert isinstance(last, Metrics)
    assert last.trainable_params == 6 * 2 * 4 * (384 + 384) + 384 * 10 + 10
    assert last.memory_kind is MemoryKind.CPU_ALLOCATED
    assert last.tokens > 0


@pytest.mark.parametrize("before", OTHERS, ids=lambda spec: f"after-trial-{spec.number}")
def test_a_trials_result_does_not_depend_on_the_trial_before_it(
    worker: Worker, alone: list[Metrics | Outcome], before: TrialSpec
) -> None:
    other = run_trial(worker, before)

    assert run_trial(worker, SPEC) == alone
    assert other != alone


def test_a_trials_result_does_not_depend_on_one_that_was_stopped_halfway(
    worker: Worker, alone: list[Metrics | Outcome]
) -> None:
    worker.start(OTHERS[0])
    worker.advance()

    assert run_trial(worker, SPEC) == alone


def test_another_seed_gives_another_result(worker: Worker, alone: list[Metrics | Outcome]) -> None:
    assert run_trial(worker, dataclasses.replace(SPEC, seed=1)) != alone


def test_a_trial_goes_on_from_its_last_rung_as_if_nothing_had_happened(
    tmp_path: Path, alone: list[Metrics | Outcome]
) -> None:
    config = small_config(tmp_path)
    first = Worker(config, tmp_path)
    first.start(SPEC)
    reported = [first.advance(), first.advance()]

    second = Worker(config, tmp_path)
    resumed = run_trial(second, SPEC)

    assert [result.steps for result in reported if isinstance(result, Metrics)] == [2, 4]
    assert resumed == alone[1:]  # the last report is repeated: the driver may not have heard it


def test_a_finished_trial_leaves_a_peft_adapter_and_its_state(tmp_path: Path) -> None:
    run_trial(Worker(small_config(tmp_path), tmp_path), SPEC)

    checkpoint = tmp_path / "checkpoints" / "trial-0000"
    assert sorted(path.name for path in checkpoint.glob("step-*")) == ["step-000004", "step-000008"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in (checkpoint / "step-000008" / "adapter").iterdir()
    }


@pytest.mark.parametrize("bias", [Bias.NONE, Bias.ALL])
def test_a_kept_adapter_scores_what_its_trial_reported_and_leaves_the_base_alone(
    tmp_path: Path, alone: list[Metrics | Outcome], bias: Bias
) -> None:
    worker = Worker(small_config(tmp_path), tmp_path)
    spec = dataclasses.replace(SPEC, lora=make_lora(r=4, bias=bias, rank_pattern=(("query", 2),)), number=1)
    reported = run_trial(worker, spec)[-1]
    (tmp_path / "adapters").mkdir()
    (tmp_path / "checkpoints" / "trial-0001" / "step-000008" / "adapter").rename(tmp_path / "adapters" / "trial-0001")

    (scored,) = run_trial(worker, dataclasses.replace(spec, number=-1, scores=1))

    assert isinstance(reported, Metrics)
    assert isinstance(scored, Metrics)
    assert scored.loss == pytest.approx(reported.loss, rel=1e-6)
    assert (scored.accuracy, scored.trainable_params) == (reported.accuracy, reported.trainable_params)
    assert scored.held_out is not None
    assert (scored.held_out.num_test, len(scored.held_out.resampled)) == (10, 1000)
    assert reported.held_out is None
    assert run_trial(worker, SPEC) == alone


def test_an_adapter_that_is_gone_is_an_outcome(tmp_path: Path) -> None:
    worker = Worker(small_config(tmp_path), tmp_path)

    (outcome,) = run_trial(worker, dataclasses.replace(SPEC, number=-1, scores=5))

    assert isinstance(outcome, Outcome)
    assert "trial-0005" in outcome.detail


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, TrainingData, Any]:
    """A quantized base with data, outside of a worker."""
    config = small_config(tmp_path_factory.mktemp("base"))
    found = load(config, BaseSpec(config=config.model))
    return found.base, found.data, config


@pytest.fixture
def running(loaded: tuple[BaseModel, TrainingData, Any]) -> Iterator[TrialRun]:
    """SPEC on the base."""
    base, data, config = loaded
    run = TrialRun(base, data, SPEC, config)
    yield run
    run.close()


def test_linear_layers_of_the_blocks_are_nf4_and_the_head_is_not(loaded: tuple[BaseModel, TrainingData, Any]) -> None:
    model = loaded[0].model
    quantized = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]

    assert len(quantized) == 36
    assert not any("pooler" in name or "classifier" in name for name in quantized)


def frozen_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the bytes of all tensors of the base, packed weights included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_frozen_base_is_bit_identical_after_training(loaded: tuple[BaseModel, TrainingData, Any]) -> None:
    base, data, config = loaded
    before = frozen_hash(base.model)

    run = TrialRun(base, data, OTHERS[0], config)
    run.advance(2)
    without_gradient = [p.grad is None for p in run.adapted.model.parameters() if not p.requires_grad]
    run.close()

    assert all(without_gradient)
    assert frozen_hash(base.model) == before


def gradients(run: TrialRun) -> torch.Tensor:
    """The gradient of one fixed batch, flat, without dropout."""
    run.adapted.model.eval()
    batch = run._data.validation.batches[0]
    loss = torch.nn.functional.cross_entropy(forward(run._base, run.adapted.model, batch).float(), batch.labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(run.adapted.trainable().values()))])


def test_an_evaluation_leaves_the_gradients_of_later_training_alone(running: TrialRun) -> None:
    # bitsandbytes 0.50.2 on CPUs with AVX512-BF16 repacks weights in the first forward without gradients: cosine 0.18
    running.advance(2)
    fresh = gradients(running)
    for batch in running._data.validation.batches:
        with torch.no_grad():
            forward(running._base, running.adapted.model, batch)

    assert torch.nn.functional.cosine_similarity(fresh, gradients(running), dim=0) > 0.9999


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages made inside, by a second method: each operator's new outputs, until they are freed."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.now, self.peak = known, 0, 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        import weakref

        key = storage._cdata
        if storage.data_ptr() in self.known or key in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


def test_measured_memory_agrees_with_a_second_method(running: TrialRun) -> None:
    running.advance(2)
    meter = StepPeak(running.adapted.model, running._optimizer, torch.device("cpu"))
    from tuner.worker.memory import _resident, resident_bytes

    resident = list(_resident(running.adapted.model, running._optimizer))
    counted = LiveBytes({tensor.untyped_storage().data_ptr() for tensor in resident})
    step = running.steps
    with meter.watch():
        running.step()
    running.steps = step
    with without_copies(), counted:
        running.step()

    expected = resident_bytes(running.adapted.model, running._optimizer) + counted.peak
    assert meter.peak_bytes() == pytest.approx(expected, rel=0.03)


def test_more_target_modules_need_more_memory(worker: Worker, alone: list[Metrics | Outcome]) -> None:
    everything = run_trial(worker, dataclasses.replace(SPEC, lora=make_lora(r=4, target_modules=ALL)))

    small, large = alone[-1], everything[-1]
    assert isinstance(small, Metrics)
    assert isinstance(large, Metrics)
    assert large.peak_memory_bytes > 1.1 * small.peak_memory_bytes


@contextlib.contextmanager
def failing_step(monkeypatch: pytest.MonkeyPatch, error: BaseException | float) -> Iterator[None]:
    """Make each optimizer step raise, or give that loss."""

    def step(self: TrialRun) -> Stepped:
        if isinstance(error, BaseException):
            raise error
        self.steps += 1
        return Stepped(loss=error, seconds=0.0)

    with monkeypatch.context() as patched:
        patched.setattr(training.TrialRun, "step", step)
        yield


@pytest.mark.parametrize(
    ("error", "reason", "detail"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), FailReason.OUT_OF_MEMORY, "CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailReason.OUT_OF_MEMORY, "can't allocate"),
        (MemoryError(), FailReason.OUT_OF_MEMORY, "MemoryError"),
        (ZeroDivisionError("oops"), FailReason.EXCEPTION, "oops"),
        (float("nan"), FailReason.LOSS_NOT_FINITE, "training loss nan at step 1"),
        (float("inf"), FailReason.LOSS_NOT_FINITE, "training loss inf at step 1"),
    ],
)
def test_what_goes_wrong_in_a_trial_is_its_outcome_and_the_next_trial_is_as_if_alone(
    worker: Worker,
    alone: list[Metrics | Outcome],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | float,
    reason: FailReason,
    detail: str,
) -> None:
    with failing_step(monkeypatch, error):
        failed = run_trial(worker, OTHERS[0])[-1]

    assert isinstance(failed, Outcome)
    assert (failed.state, failed.reason) == (TrialState.FAIL, reason)
    assert detail in failed.detail
    assert run_trial(worker, SPEC) == alone


def test_a_spec_that_fits_no_layer_fails_as_a_trial(worker: Worker) -> None:
    lora = LoraSpec(r=1, lora_alpha=1.0, lora_dropout=0.0, target_modules=("q_proj",))

    failed = run_trial(worker, make_spec(9, lora=lora))[-1]

    assert isinstance(failed, Outcome)
    assert "no linear layer is named q_proj" in failed.detail
