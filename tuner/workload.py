"""A sweep file's settings as the workload whose memory is predicted. Pure; runs on the driver."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tuner.gpus import Gpu, gpu_named
from tuner.prediction import Generation, Logits, Padding, Question, Workload
from tuner.trial import Baseline

if TYPE_CHECKING:
    from tuner.config import MemoryConfig, SweepConfig
    from tuner.trial import Inspection, TrialSpec


def gpu_of(config: SweepConfig, named: str | None = None) -> Gpu | None:
    """The card that a sweep is planned for; None where it names none.

    Args:
        config: The sweep.
        named: Another one.
    """
    asked = config.objectives.memory
    name = named or asked.gpu
    if name is None:
        return None
    gpu = gpu_named(name)
    return gpu if asked.context_mib is None else dataclasses.replace(gpu, context_mib=asked.context_mib)


def workload_of(config: SweepConfig, gpu: Gpu, inspection: Inspection | None = None) -> Workload:
    """What a trial of a sweep does to a card's memory.

    Args:
        config: The sweep.
        gpu: `compute_dtype: auto` is bfloat16 where it has that.
        inspection: Knows how long the examples are; without it they are as long as `data.max_length` allows.
    """
    asked, training = config.objectives.memory, config.training
    tokens = asked.longest_tokens or (inspection and inspection.longest_train) or config.data.max_length
    eval_tokens = (inspection and inspection.longest_validation) or config.data.max_length
    is_packed = training.packing and asked.padding == "auto"
    tokens = config.data.max_length if is_packed else tokens
    is_generating = training.task == "causal-lm"
    most = inspection.most_learned if inspection and inspection.most_learned and not is_packed else tokens - 1
    most_scored = inspection.most_scored if inspection and inspection.most_scored else eval_tokens - 1
    dtype = config.model.compute_dtype
    if dtype == "auto":
        dtype = "bfloat16" if gpu.has_bfloat16 else "float32"
    return Workload(
        batch_size=training.batch_size,
        tokens=tokens,
        learned_tokens=training.batch_size * min(most, tokens) if is_generating else training.batch_size,
        padding=_padding(asked, training.batch_size, is_packed=is_packed),
        has_accumulation=training.gradient_accumulation_steps > 1,
        dtype=dtype,
        quantization=config.model.quantization,
        double_quantization=config.model.double_quantization,
        autocast=asked.autocast and dtype != "float32",
        adapter_dtype="float32" if asked.adapter_dtype == "float32" else dtype,
        upcast=asked.upcast,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=config.model.attention,
        logits=Logits(asked.logits),
        kv_cache=asked.kv_cache,
        optimizer=training.optimizer,
        eval_batch_size=training.eval_batch_size,
        eval_tokens=eval_tokens,
        eval_learned_tokens=training.eval_batch_size * most_scored if is_generating else training.eval_batch_size,
        generation=_generation(asked),
    )


def question_about(spec: TrialSpec, config: SweepConfig, gpu: Gpu, workload: Workload, num_labels: int = 2) -> Question:
    """Ask for a trial's peak; what does not change it is left out, so that like trials are answered once."""
    lora = spec.lora
    if spec.baseline in {Baseline.FULL, Baseline.UNQUANTIZED_LORA}:
        workload = dataclasses.replace(workload, quantization="none")
    if spec.baseline is Baseline.FULL:
        lora = None
    if lora is not None:
        lora = dataclasses.replace(
            lora, lora_alpha=1.0, lora_dropout=0.1 if lora.lora_dropout else 0.0, use_rslora=False
        )
    return Question(
        model=config.model,
        task=config.training.task,
        num_labels=num_labels if config.training.task == "classification" else 0,
        lora=lora,
        baseline=spec.baseline,
        workload=workload,
        gpu=gpu,
    )


def _padding(asked: MemoryConfig, batch_size: int, *, is_packed: bool) -> Padding:
    if asked.padding != "auto":
        return Padding(asked.padding)
    if is_packed:
        return Padding.PACKED
    return Padding.PADDED if batch_size > 1 else Padding.NONE


def _generation(asked: MemoryConfig) -> Generation | None:
    if not asked.generation.batch_size:
        return None
    return Generation(
        batch_size=asked.generation.batch_size,
        prompt_tokens=asked.generation.prompt_tokens,
        new_tokens=asked.generation.new_tokens,
    )


def settings_text(workload: Workload) -> str:
    """All that moves a peak, with its values."""
    given = {name: value for name, value in dataclasses.asdict(workload).items() if value is not None}
    return "; ".join(f"{name} {_plain(value)}" for name, value in given.items())


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{name} {number}" for name, number in value.items())
    return str(value)
