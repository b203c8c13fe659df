"""One trial by hand: NF4 base, PEFT adapter, transformers' Trainer, a report to Ray Tune at each rung.

Two things that are easily missed are right here, for without them training would be wrong: the heads are not quantized, and
bitsandbytes is kept from repacking the weights at the first evaluation (0.50.2 on CPUs with AVX512-BF16: all later training would
be silently wrong). Exact match is counted from one forward pass, which gives what greedy decoding would.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import phases
import torch
import transformers
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, TaskType, get_peft_model
from ray import tune
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

if TYPE_CHECKING:
    from datasets import DatasetDict

ATTENTION = r"\.(query|key|value|attention\.output\.dense|q_proj|k_proj|v_proj|o_proj)$"
QUERY_VALUE = r"\.(query|value)$"
MLP = r"\.(intermediate\.dense|(?<!attention\.)output\.dense|gate_proj|up_proj|down_proj)$"
TARGETS = {"query-value": (QUERY_VALUE,), "attention": (ATTENTION,), "mlp": (MLP,), "all-linear": (ATTENTION, MLP)}


def train(params: dict[str, Any], data: DatasetDict, job: dict[str, Any]) -> None:
    """Train to the end, reporting at each rung; Ray Tune may stop it at one."""
    begun = phases.now()
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    torch.backends.cuda.enable_cudnn_sdp(job["has_cudnn_attention"])
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = adapted(base(job, data), params, job)
    phases.note("loading", begun)
    is_classified = job["task"] == "classification"
    rungs = Rungs(job["rungs"])
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=job["max_steps"],
                per_device_train_batch_size=job["batch_size"],
                per_device_eval_batch_size=job["eval_batch_size"],
                learning_rate=params["learning_rate"],
                lr_scheduler_type=job["lr_scheduler_type"],
                warmup_steps=job["warmup_steps"],
                max_grad_norm=job["max_grad_norm"],
                weight_decay=0.0,
                optim="adamw_torch",
                train_sampling_strategy="group_by_length",
                dataloader_pin_memory=False,
                seed=job["seed"],
                use_cpu=not job["gpus_per_trial"],
                bf16=job["dtype"] == "bfloat16",
                eval_strategy="no",  # `Rungs` says when
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            data_collator=(
                DataCollatorWithPadding(tokenizer)
                if is_classified
                else DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
            ),
            compute_metrics=accuracy if is_classified else exact_match,
            preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
            callbacks=[PeakMemory(rungs), rungs],
        )
        trainer.train()


def base(job: dict[str, Any], data: DatasetDict) -> Any:
    """The quantized base, frozen."""
    dtype = getattr(torch, job["dtype"])
    kept = ["classifier", "pooler"] if job["task"] == "classification" else ["lm_head"]
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )
    shared = {
        "quantization_config": quantization,
        "dtype": dtype,
        "device_map": {"": 0 if job["gpus_per_trial"] else "cpu"},
    }
    if job["task"] == "classification":
        num_labels = max(data["train"]["labels"]) + 1
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=num_labels, **shared)
    else:
        model = AutoModelForCausalLM.from_pretrained(job["model"], **shared)
    model.config.use_cache = False
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def adapted(model: Any, params: dict[str, Any], job: dict[str, Any]) -> Any:
    """The base with an adapter whose MLP has ranks of its own; alpha / r is the same everywhere."""
    patterns = TARGETS[params["target_modules"]]
    names = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    num_blocks = model.config.num_hidden_layers
    ranks = {name: rank(name, params, num_blocks) for name in names if any(re.search(one, name) for one in patterns)}
    ranks = {name: r for name, r in ranks.items() if r}
    scale = params["lora_scale"]
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if job["task"] == "classification" else TaskType.CAUSAL_LM,
        r=params["r"],
        lora_alpha=scale * params["r"],
        lora_dropout=params.get("lora_dropout", 0.0),
        target_modules=list(ranks),
        rank_pattern={f"^{re.escape(name)}": r for name, r in ranks.items()},
        alpha_pattern={f"^{re.escape(name)}": scale * r for name, r in ranks.items()},
        modules_to_save=["classifier"] if job["task"] == "classification" else None,
    )
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # the head too, where the base computes in bfloat16
    return wrapped


def rank(name: str, params: dict[str, Any], num_blocks: int) -> int:
    """Of a layer; 0 is not adapted."""
    if not re.search(MLP, name) or "rank_pattern.mlp" not in params:
        return int(params["r"])
    found = re.search(r"\.(\d+)\.", name)
    assert found is not None
    is_first = 3 * int(found[1]) // num_blocks == 0
    return int(params["rank_pattern.mlp@first" if is_first else "rank_pattern.mlp"])


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of texts in the right class."""
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def exact_match(prediction: Any) -> dict[str, float]:
    """Share of completions of which every token is the likeliest after those before it."""
    guessed, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    is_right = (guessed == labels) | (labels == -100)  # noqa: PLR2004 -- transformers' mark for what is not learned
    return {"accuracy": float(np.mean(is_right.all(axis=1)))}


class Rungs(TrainerCallback):
    """Evaluates at the rungs, and reports to Ray Tune; the adapter goes with the last report."""

    def __init__(self, rungs: list[int]) -> None:
        self._rungs = rungs
        self._since = phases.now()
        self.peak_memory = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """A stretch of training begins."""
        self._since = phases.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """At a rung: evaluate."""
        if state.global_step in self._rungs:
            control.should_evaluate = True
            phases.note("training", self._since)
            self._since = phases.now()

    def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Report."""
        metrics, model = rest["metrics"], rest["model"]
        phases.note("evaluation", self._since)
        report = {
            "accuracy": metrics["eval_accuracy"],
            "loss": metrics["eval_loss"],
            "steps": state.global_step,
            "trainable_params": sum(one.numel() for one in model.parameters() if one.requires_grad),
            "peak_memory": self.peak_memory,
            "reported_s": time.time(),
        }
        if state.global_step < self._rungs[-1]:
            with phases.timed("reporting"):
                tune.report(report)
        else:
            with tempfile.TemporaryDirectory() as folder:
                with phases.timed("checkpoint"):
                    model.save_pretrained(folder)
                with phases.timed("reporting"):
                    tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
        self._since = phases.now()


class PeakMemory(TrainerCallback):
    """Resident tensors and the allocator's events of the first step: `group_by_length` puts the longest batch there."""

    def __init__(self, rungs: Rungs) -> None:
        self._rungs = rungs
        self._profile: profile | None = None
        self._resident = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Watch the first."""
        if state.global_step:
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self._resident = sum(_storages(rest["model"]).values())
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Add up."""
        if torch.cuda.is_available():
            self._rungs.peak_memory = torch.cuda.max_memory_allocated()
        if self._profile is None:
            return
        self._profile.stop()
        assert self._profile.profiler is not None
        events: list[Any] = self._profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        self._rungs.peak_memory = self._resident + max(itertools.accumulate(nbytes for _, nbytes in changes))
        self._profile = None


def _storages(model: torch.nn.Module) -> dict[int, int]:
    tensors = [tensor.data for tensor in itertools.chain(model.parameters(), model.buffers())]
    return {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
