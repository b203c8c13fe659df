"""A trial's steps on a model without data: two of training, for the second has the optimizer's state, then an evaluation.

Runs what the worker runs, as far as it can be called with meta tensors.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch.autograd import Variable
from transformers.modeling_layers import GradientCheckpointingLayer

from tuner.prediction import Part, Phase
from tuner.sizes import EIGHT_BIT_BLOCK, EIGHT_BIT_NUMBERS, PAGED_NUMBERS
from tuner.vram.allocator import EMPTY_CACHE
from tuner.vram.build import Built, quantization_tensors
from tuner.vram.tracker import Tracker
from tuner.worker.architecture import head_names
from tuner.worker.batches import Batch
from tuner.worker.evaluation import only_places, row_sums, summed_loss
from tuner.workload import Logits, Padding

if TYPE_CHECKING:
    from torch import nn

    from tuner.vram.cuda import Autocast
    from tuner.workload import Generation, Workload

NUM_STEPS = 2
LEARNING_RATE = 1e-4
KEEP_AND_CREATE = (False, False)
"""The graph is neither kept nor differentiated again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What was seen."""

    tracker: Tracker
    num_resident: int
    """How many of the tracker's first events put weights in place."""
    loaded_bytes: dict[int, int]
    """Number of a storage -> bytes that it had as it was loaded, where that was something else."""
    trainable_params: int


def trace(built: Built, workload: Workload, tracker: Tracker, functions: Autocast) -> Trace:
    """Run a trial's steps.

    Args:
        built: The model.
        workload: What is run.
        tracker: Fresh.
        functions: What the device does differently.
    """
    loaded = _put_in_place(built, tracker)
    num_resident = len(tracker.events)
    run = _Run(built, workload, tracker, functions)
    with _no_collection(), run.hooked(), tracker, functions:
        if run.trained:  # zero-shot trains nothing
            run.train()
        if workload.eval_batch_size:
            run.evaluate()
        if workload.generation:
            run.generate(workload.generation)
    return Trace(
        tracker=tracker,
        num_resident=num_resident,
        loaded_bytes=loaded,
        trainable_params=sum(parameter.numel() for parameter in run.trained),
    )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector would free tensors in cycles at some time or other, and no prediction would be like the next."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _put_in_place(built: Built, tracker: Tracker) -> dict[int, int]:
    """Count what lives from the start; returns bytes as loaded by number of the storage."""
    loaded = {}
    for parameter in built.model.parameters():
        is_packed = parameter.dtype == torch.uint8
        part = Part.ADAPTERS if parameter.requires_grad else Part.QUANTIZED if is_packed else Part.WEIGHTS
        before = len(tracker.storages)
        tracker.add(parameter, part, "parameter")
        if len(tracker.storages) > before and parameter in built.loaded_bytes:
            loaded[len(tracker.storages)] = built.loaded_bytes[parameter]
    for buffer in built.model.buffers():
        tracker.add(buffer, Part.WEIGHTS, "buffer")
    for tensor in quantization_tensors(built.model):
        tracker.add(tensor, Part.QUANTIZATION, "scales")
    return loaded


class _Run:
    """The steps of one model.

    Args:
        built: The model.
        workload: What is run.
        tracker: Looks at it.
        functions: Active while it runs.
    """

    def __init__(self, built: Built, workload: Workload, tracker: Tracker, functions: Autocast) -> None:
        self._built = built
        self._workload = workload
        self._tracker = tracker
        self._functions = functions
        self._state: list[torch.Tensor] = []
        self._step: Callable[[], object] = lambda: None  # lives on through the evaluation, with the optimizer's state
        self.trained = built.trained()

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Know gradients when they come, and blocks that are computed again."""
        removers = [
            parameter.register_post_accumulate_grad_hook(self._is_gradient)  # type: ignore[no-untyped-call]
            for parameter in self.trained
        ]
        for block in self._built.base.modules():
            if isinstance(block, GradientCheckpointingLayer):
                for child in block.children():
                    removers.append(child.register_forward_pre_hook(self._begin_again))
                    removers.append(child.register_forward_hook(self._end_again, always_call=True))
        # what PEFT and transformers ask; torch's own answer knows nothing of meta tensors
        asked = mock.patch.object(torch, "is_autocast_enabled", new=self._is_autocast_on)
        try:
            with asked:
                yield
        finally:
            for remover in removers:
                remover.remove()
            for parameter in self.trained:
                parameter.grad = None

    def train(self) -> None:
        """Two optimizer steps, of two batches each where gradients are accumulated."""
        self._step = self._optimizer()
        for _ in range(NUM_STEPS):
            for _ in range(2 if self._workload.has_accumulation else 1):
                self._forward_and_backward()
            self._tracker.begin(Phase.OPTIMIZER)
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self._step()
            for parameter in self.trained:
                parameter.grad = None

    @torch.no_grad()
    def evaluate(self) -> None:
        """The largest batch of an evaluation, scored."""
        self._built.model.eval()
        self._tracker.events.append(EMPTY_CACHE)
        self._tracker.begin(Phase.EVALUATION)
        work = self._workload
        batch = self._batch(work.eval_batch_size, work.eval_tokens, work.eval_learned_tokens)
        if batch.places_N is None:
            summed_loss(self._logits(batch), batch.labels)
        elif work.logits is Logits.LEARNED:
            row_sums(self._logits(batch, batch.places_N), batch)
        else:
            logits = self._logits(batch)
            row_sums(logits.flatten(0, 1).index_select(0, batch.places_N), batch)
        self._built.model.train()

    @torch.no_grad()
    def generate(self, asked: Generation) -> None:
        """The prompt, and the last token, when the cache of keys and values is longest."""
        self._built.model.eval()
        self._tracker.begin(Phase.PROMPT)
        self._read(asked.batch_size, asked.prompt_tokens)
        self._tracker.phase = None  # the cache as it is before the last token; filling it at once would be another peak
        cache = self._read(asked.batch_size, asked.prompt_tokens + asked.new_tokens - 1)
        self._tracker.begin(Phase.GENERATION)
        self._read(asked.batch_size, 1, cache)
        self._built.model.train()

    def _read(self, rows: int, tokens: int, cache: object = None) -> object:
        """Feed tokens; returns the cache."""
        ids = torch.empty(rows, tokens, dtype=torch.long, device="meta")
        with self._functions.on():
            read = self._built.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return read.past_key_values

    def _forward_and_backward(self) -> None:
        work = self._workload
        self._tracker.begin(Phase.FORWARD)
        batch = self._batch(work.batch_size, work.tokens, work.learned_tokens)
        if work.logits is Logits.LEARNED:
            loss = summed_loss(self._logits(batch, batch.places_N), batch.labels)
            output = None
        else:
            loss, output = self._model_loss(batch)
        self._tracker.begin(Phase.BACKWARD)
        # `loss.backward()` would be a function of torch's, and modes of functions are off while one runs
        Variable._execution_engine.run_backward(  # noqa: SLF001 -- as autograd's own callers do
            (loss,), (torch.ones_like(loss),), *KEEP_AND_CREATE, (), allow_unreachable=True, accumulate_grad=True
        )
        del output

    def _logits(self, batch: Batch, places_N: torch.Tensor | None = None) -> torch.Tensor:
        """Of some places, or of all."""
        with self._functions.on(), only_places(self._built.model, places_N):
            logits: torch.Tensor = self._built.model(**batch.inputs()).logits
        return logits

    def _model_loss(self, batch: Batch) -> tuple[torch.Tensor, object]:
        """(loss, what a plain loop keeps) where the model computes the loss itself."""
        inputs = batch.inputs() if self._workload.padding is not Padding.NONE else {"input_ids": batch.input_ids_BT}
        labels = batch.labels if batch.places_N is None else torch.empty_like(batch.input_ids_BT)
        with self._functions.on():
            output = self._built.model(**inputs, labels=labels, use_cache=self._workload.kv_cache)
        if self._workload.logits is Logits.KEPT:
            return output.loss, output
        if self._functions.is_cast:
            output.logits = output.logits.float()  # accelerate's ConvertOutputsToFp32
        return output.loss, None

    def _batch(self, rows: int, tokens: int, num_learned: int) -> Batch:
        """Tokens in the form that a worker gives them."""
        ids = torch.empty(rows, tokens, dtype=torch.long, device="meta")
        is_packed, is_classified = self._workload.padding is Padding.PACKED, bool(head_names(self._built.base))
        return Batch(
            input_ids_BT=ids,
            labels=ids.new_empty(rows if is_classified else num_learned),
            places_N=None if is_classified else ids.new_empty(num_learned),
            attention_mask_BT=None if is_packed else torch.empty_like(ids),
            position_ids_BT=torch.empty_like(ids) if is_packed else None,
            num_tokens=rows * tokens,
        )

    def _optimizer(self) -> Callable[[], object]:
        """Torch's AdamW as it is; of those that work in place, which know no meta tensors, only the state."""
        if self._workload.optimizer != "adamw":
            return self._make_state
        optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, foreach=True)

        def step() -> None:
            optimizer.step()
            for state in optimizer.state.values():
                for moment in (state["exp_avg"], state["exp_avg_sq"]):
                    self._tracker.assign(moment, Part.OPTIMIZER)

        return step

    def _make_state(self) -> None:
        if not self._state:
            name = self._workload.optimizer
            self._state = [one for parameter in self.trained for one in _state_of(parameter, name)]
        for tensor in self._state:
            self._tracker.assign(tensor, Part.OPTIMIZER)

    def _is_autocast_on(self, *_: object) -> bool:
        return self._functions.is_on and self._functions.is_announced

    def _is_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._tracker.assign(parameter.grad, Part.GRADIENTS)

    def _begin_again(self, *_: object) -> None:
        if self._tracker.phase is Phase.BACKWARD:
            self._functions.enter()
            self._tracker.is_recomputing = True

    def _end_again(self, *_: object) -> None:
        if self._tracker.phase is Phase.BACKWARD:
            self._functions.leave()
            self._tracker.is_recomputing = False


def _state_of(parameter: nn.Parameter, optimizer: str) -> list[torch.Tensor]:
    """AdamW's two moments; fused, with a count of steps; bitsandbytes' paged ones lie in memory that torch does not count."""
    if optimizer == "adamw_fused":
        return [*(torch.empty_like(parameter) for _ in range(2)), parameter.new_empty(())]
    is_paged = optimizer.startswith("paged")
    if parameter.numel() < EIGHT_BIT_NUMBERS:
        return [torch.empty_like(parameter, dtype=torch.float32) for _ in range(2)]
    scales = [torch.empty(-(-parameter.numel() // EIGHT_BIT_BLOCK), device="meta") for _ in range(2)]
    if is_paged and parameter.numel() >= PAGED_NUMBERS:
        return scales
    return scales + [torch.empty_like(parameter, dtype=torch.uint8) for _ in range(2)]
