"""What a sweep file may say: one model per section. Driver and worker read it; `combinations` has the checks that span sections.

The docstring under a field is also its line in the YAML reference (`docs/yaml-reference.md`).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tuner.dimensions import Section, wrong
from tuner.gpus import gpu_named
from tuner.resources_config import ResourcesConfig, StudyConfig
from tuner.space_config import NotNegative, Positive, SpaceConfig
from tuner.trial import Metric

Place = tuple[str | int, ...]
"""Keys from the top of the file down; the number of an entry in a list."""
LearningRates = Annotated[tuple[Positive, ...], Field(strict=False)]


def _path(name: str) -> str:
    """Refuse what no file system takes."""
    if "\0" in name or any(len(part.encode()) > LONGEST_PART for part in name.split("/")) or len(name) > LONGEST_PATH:
        raise wrong(
            "must have no NUL in it, at most {part} bytes between slashes and {whole} in all, got {got}",
            part=LONGEST_PART,
            whole=LONGEST_PATH,
            got=f"{name[:40]!r}...",
        )
    return name


def _hub_id(name: str) -> str:
    """Refuse a path: `datasets` would read what lies there, by rules of its own."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name, re.ASCII):
        raise wrong("must be the id of a data set on the hub, such as owner/name, got {got}", got=repr(name[:80]))
    return name


LONGEST_PART, LONGEST_PATH = 255, 3000
"""Linux' limits; the second leaves room for the folders in front."""
PathName = Annotated[str, Field(min_length=1), AfterValidator(_path)]


class ModelConfig(Section):
    """The base model, frozen in every trial."""

    name: PathName
    """A folder or .gguf file, starting with `./`, `../`, `/` or `~` (relative to this file), or a hub id such as `org/model`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    quantization: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    """How the frozen linear layers are stored: `nf4` is QLoRA, `none` is plain LoRA."""
    double_quantization: bool = True
    """With nf4 and fp4: quantize the scales too (0.4 bits a parameter less)."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations; `auto` is bfloat16 on a GPU or CPU that has it (AVX512-BF16, AMX), else float32."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    allow_pickle: bool = False
    """Take weights that are no safetensors or GGUF; unpickling can run code."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """transformers' attention; `auto` is its own choice, `sdpa` for most. `flash_attention_2` needs a GPU and its package."""
    config: PathName | None = None
    """For predictions: a config.json, a folder with one, or one that tuner brings (`Llama-3.1-8B`); else that of `name`."""


class DataConfig(Section):
    """Examples to learn from. Splits that the data does not have are made by a hash of the input, alike in every run."""

    path: PathName | None = None
    """A .jsonl, .json, .csv (or .gz of these) or .parquet file, or a folder with one per split (relative to this file)."""
    name: Annotated[str, Field(min_length=1), AfterValidator(_hub_id)] | None = None
    """Instead of `path`: id of a data set on the hub."""
    subset: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    text: str = "text"
    """Classification: column with the input text."""
    label: str = "label"
    """Classification: column with the class."""
    prompt: str = "prompt"
    """Causal language models: column with what is given."""
    completion: str = "completion"
    """Causal language models: column with what is to be written."""
    messages: str | None = None
    """Causal language models: column with chat messages (`role`, `content`) instead; all that the assistant says is learned."""
    choices: str | None = None
    """For `choice_accuracy`: column with a list of completions, the right one among them; by default all of the data's."""
    chat_template: Literal["auto", "always", "never"] = "auto"
    """Put prompt and completion into the tokenizer's chat template; `auto`: if it has one."""
    separator: str = ""
    """Put between prompt and completion where no chat template is used."""
    system: str | None = None
    """System message put before each chat; the template's own by default."""
    max_length: Annotated[int, Field(ge=4)] = 128
    """Longest example in tokens. Classification cuts off the rest of a text; causal language models leave longer examples out."""
    validation: Annotated[int, Field(ge=1)] | None = None
    """Validation examples, on which all decisions are made; may be left out where the data has that split: all of it."""
    test: Annotated[int, Field(ge=0)] | None = None
    """Examples put aside, which no decision sees: the front is scored on them at the end. That split of the data by default."""


class TrainingConfig(Section):
    """What all trials share."""

    task: Literal["classification", "causal-lm"] = "classification"
    """What is learned: the class of a text, or to write a completion."""
    max_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps of a full trial."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in a forward pass of training."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Forward passes in an optimizer step; its loss is the mean over all their completion tokens or examples."""
    eval_batch_size: Annotated[int, Field(ge=1)] = 64
    """Examples in a forward pass of an evaluation."""
    packing: bool = False
    """Causal language models: lay a batch's short examples end to end, without attention between them; saves padding."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    optimizer: Literal["adamw", "paged_adamw_8bit"] = "adamw"
    """`paged_adamw_8bit` keeps its state in 8 bits and pages it out; needs a GPU."""
    lr_scheduler_type: Literal["linear", "cosine"] = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Start of every random draw in training; the same for all trials, so that none wins by its seed."""


class BudgetConfig(Section):
    """Where the sweep ends; what is worth finishing is finished within it."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of all trials together, baselines not counted; no limit by default."""
    time_s: Positive | None = None
    """Seconds of wall time, those before a `resume` included; no limit by default."""


class SearchConfig(Section):
    """How the space is searched."""

    num_trials: Annotated[int, Field(ge=1)]
    """Trials in all, stopped and failed ones included."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Start of the sampler's draws."""
    start: Literal["recommended", "none"] = "recommended"
    """Which points are tried first: those of `tuner recommend`, moved into the space, or none."""
    budget: BudgetConfig = BudgetConfig()
    """Ends the sweep before `num_trials` trials are through."""
    space: SpaceConfig
    """The choices."""


class GenerationConfig(Section):
    """Text that is generated beside training, for its memory alone; tuner's own metrics need none."""

    batch_size: Annotated[int, Field(ge=0)] = 0
    """Rows that are generated at the same time; 0 for none."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens that are given."""
    new_tokens: Annotated[int, Field(ge=1)] = 128
    """Tokens that are written."""


def _gpu(raw: object) -> object:
    """A card's name; `{memory_gib: 24}` is one of which only the memory is known."""
    if raw is None:
        return None
    try:
        return gpu_named(raw).name
    except ValueError as error:
        raise wrong("{text}", text=str(error)) from error


class MemoryConfig(Section):
    """The memory objective, and the settings that move a predicted peak; by default those by which tuner trains.

    `true` and `false` in its place say whether it is weighed.
    """

    weigh: bool = True
    """Minimise the peak memory of training."""
    gpu: Annotated[str | None, BeforeValidator(_gpu)] = None
    """Predict for this card: `T4-16GB`, `L4-24GB`, `A100-80GB`, `H100-80GB` and so on, or `{memory_gib: 24}`. What can't fit is
    not started; without a GPU the prediction is the objective."""
    context_mib: NotNegative | None = None
    """What driver and kernels take of the card before the first tensor; as in tuner's table by default."""
    longest_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in a row of the longest batch; that of the data by default, and `data.max_length` in `tuner plan`."""
    learned_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of an example that are learned or scored; those of the data by default, all in `tuner plan`."""
    padding: Literal["auto", "none", "padded", "packed"] = "auto"
    """How a batch's examples come to one length; `none` if all are equally long."""
    adapter_dtype: Literal["float32", "compute"] = "float32"
    """Type of what is trained; `compute` is that of the activations."""
    autocast: bool = True
    """Whether float32 adapters meet 16-bit activations by autocast."""
    upcast: bool = False
    """Whether all that is not quantized is turned into float32, as PEFT's `prepare_model_for_kbit_training` does."""
    logits: Literal["learned", "kept", "freed"] = "learned"
    """What becomes of the logits: `learned` as tuner trains, `kept` in a plain loop, `freed` in transformers' Trainer."""
    kv_cache: bool = False
    """Whether training keeps keys and values as if to generate from them."""
    generation: GenerationConfig = GenerationConfig()


def _memory(raw: object) -> object:
    if isinstance(raw, (dict, MemoryConfig)):
        return raw
    if isinstance(raw, bool):
        return {"weigh": raw}
    raise wrong("must be true, false or a mapping, got {got}", got=repr(raw))


class ObjectivesConfig(Section):
    """What the front weighs against each other."""

    accuracy: (
        Literal["accuracy", "macro_f1", "exact_match", "choice_accuracy", "token_accuracy", "perplexity"] | None
    ) = None
    """Validation metric to make best; `accuracy` for classification and `exact_match` for causal language models by default."""
    trainable_params: bool = True
    """Minimise the trainable parameters."""
    memory: Annotated[MemoryConfig, BeforeValidator(_memory)] = MemoryConfig()


def _floor(raw: object) -> object:
    """Refuse what is no floor in one sentence; pydantic would say one for each member of the union."""
    if raw in ("auto", "none") or (isinstance(raw, (int, float)) and not isinstance(raw, bool)):
        return raw
    raise wrong("must be 'auto', 'none' or a number, got {floor}", floor=repr(raw))


def _eval_examples(raw: object) -> object:
    """The same for a number of examples."""
    if raw in ("auto", "all") or (isinstance(raw, int) and not isinstance(raw, bool) and raw >= 1):
        return raw
    raise wrong("must be auto, all or a whole number of at least 1, got {got}", got=repr(raw))


AUTO_EVAL_EXAMPLES = 500
"""The standard error of a share is at most 2.2 % with so many."""


class PruningConfig(Section):
    """Which trials wait, which go on, and which are stopped early."""

    method: Literal["pareto", "asha", "median", "none"] = "pareto"
    """`pareto` stops a trial if another at the same rung costs no more and is better beyond the noise, and lets the most
    promising go on first. `asha` and `median` look at the metric alone."""
    min_steps: Annotated[int, Field(ge=1)] | None = None
    """First rung, in steps; a sixteenth of `training.max_steps`, rounded up, by default."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Each rung is this many times the one before. With `asha`, one of this many goes on."""
    wait_every: Annotated[int, Field(ge=1)] = 2
    """With `pareto`: trials wait at the first rung and every so many rungs after it, and are only stopped at those between.
    One in `reduction_factor` to this power goes on at once."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.99
    """How sure it must be that the other trial is the better one, given the size of the validation data."""
    floor: Annotated[Literal["auto", "none"] | float, BeforeValidator(_floor)] = "auto"
    """With `pareto`: what a trial must exceed by half of its steps. `auto`: the commonest answer, or the zero-shot baseline."""
    eval_examples: Annotated[Literal["auto", "all"] | Annotated[int, Field(ge=1)], BeforeValidator(_eval_examples)] = (
        "auto"
    )
    """Validation examples, always the same, that trials are scored on before their last rung, where it is all. `auto`: 500."""
    audit: Annotated[int, Field(ge=0)] = 0
    """Stopped trials, drawn at random, that are finished after all, to tell what stopping early has lost."""

    def num_scored(self, num_validation: int) -> int:
        """Validation examples that a trial is scored on before its last rung."""
        asked = {"auto": AUTO_EVAL_EXAMPLES, "all": num_validation}.get(str(self.eval_examples), self.eval_examples)
        return min(int(asked), num_validation)


class ConfirmConfig(Section):
    """The front's best trials trained anew from other seeds at the end, to tell how much a seed moves."""

    top: Annotated[int, Field(ge=0)] = 0
    """How many trials of the front: those that the report recommends first, then the most accurate."""
    seeds: Annotated[int, Field(ge=1)] = 3
    """Other seeds for each."""


class BaselinesConfig(Section):
    """What is measured beside the search, with the same data and steps, and marked in the report."""

    zero_shot: bool = False
    """The frozen model as it is; causal language models only."""
    head_only: LearningRates = ()
    """Classification: a head on the frozen base, once for each learning rate given."""
    full: LearningRates = ()
    """All weights in float32, once for each learning rate given; a tenth of LoRA's is usual."""
    unquantized_lora: bool = False
    """The first point of `tuner recommend` on a base that is not quantized."""


def _portable(name: str) -> str:
    """Refuse what some file system takes for something else."""
    stem = name.partition(".")[0].upper()
    if name.endswith(".") or stem in {"CON", "PRN", "AUX", "NUL"} or re.fullmatch(r"(COM|LPT)[0-9]", stem):
        raise wrong("must be a name that a folder can have on every system, got {got}", got=repr(name))
    return name


LoggerName = Literal["mlflow", "wandb", "tensorboard"]


def _distinct(names: tuple[LoggerName, ...]) -> tuple[LoggerName, ...]:
    if len(set(names)) < len(names):
        raise wrong("entries must differ from each other, got {names}", names=list(names))
    return names


METRICS = {
    "classification": (Metric.ACCURACY, Metric.MACRO_F1),
    "causal-lm": (Metric.EXACT_MATCH, Metric.CHOICE_ACCURACY, Metric.TOKEN_ACCURACY, Metric.PERPLEXITY),
}
"""Task -> what can be measured; the first is the default."""


class SweepConfig(Section):
    """One sweep file. Paths are absolute once it is loaded."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100), AfterValidator(_portable)]
    """Names the sweep's folder, `reports/<name>`: at most 100 letters, digits, dots, dashes and underscores."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig
    objectives: ObjectivesConfig = ObjectivesConfig()
    pruning: PruningConfig = PruningConfig()
    resources: ResourcesConfig = ResourcesConfig()
    study: StudyConfig = StudyConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    confirm: ConfirmConfig = ConfirmConfig()
    logging: Annotated[tuple[LoggerName, ...], Field(strict=False), AfterValidator(_distinct)] = ()
    """Where trials are shown besides the report, with `resources.backend: ray`; see [logging](logging.md)."""

    @property
    def metric(self) -> Metric:
        """What the accuracy objective measures."""
        return Metric(self.objectives.accuracy or METRICS[self.training.task][0])

    @property
    def is_choice_asked(self) -> bool:
        """Whether choice accuracy is measured: it costs a forward pass for each choice."""
        return self.metric is Metric.CHOICE_ACCURACY or self.data.choices is not None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps at which trials are evaluated, rising; the last is `training.max_steps`."""
        last = self.training.max_steps
        step = self.pruning.min_steps or math.ceil(last / 16)
        rungs = []
        while step < last:
            rungs.append(step)
            step *= self.pruning.reduction_factor
        return (*rungs, last)


def is_folder_name(name: str) -> bool:
    """Tell a model's folder or file from a hub id by its first characters."""
    return name in {".", ".."} or name.startswith(("./", "../", "/", "~"))
