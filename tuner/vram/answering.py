"""From a question about a trial to its prediction: the model's configuration, its kinds of blocks, and how many to trace."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from tuner.config import ModelConfig, is_folder_name
from tuner.vram.depth import predict_by_depth
from tuner.vram.predict import Case, predict
from tuner.worker.architecture import facts_of, skeleton
from tuner.worker.inspection import BROKEN, first_line
from tuner.worker.model import load_model_config, quiet
from tuner.workload import Answer, Question

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from tuner.layers import ModelFacts

SUFFIX = ".json"
UNTRACEABLE = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What a model's own code raises where it needs data, or does what nobody has thought of here."""


class Answerer:
    """Answers questions, the same one once."""

    def __init__(self) -> None:
        quiet()
        torch.set_num_threads(1)  # nothing is computed
        self._answers: dict[Question, Answer] = {}

    def answer(self, question: Question) -> Answer:
        """Predict; what can't be predicted is told as a problem."""
        if question not in self._answers:
            self._answers[question] = self._answer(question)
        return self._answers[question]

    def facts(self, config: ModelConfig, task: str, num_labels: int) -> ModelFacts:
        """What a model is made of, from its configuration alone.

        Raises:
            ValueError: There is no such configuration, or transformers does not know it.
        """
        try:
            return facts_of(_model(config, task, num_labels))
        except BROKEN as error:
            raise ValueError(first_line(error)) from error

    def origin(self, config: ModelConfig) -> str:
        """Where a model's configuration is found, for people."""
        named = config.config or config.name
        return f"configuration of {named}{', which tuner brings' if _is_shipped(named) else ''}"

    def settings(self, config: ModelConfig) -> dict[str, Any]:
        """The configuration's own keys and values."""
        return load_config(config).to_dict()

    def _answer(self, question: Question) -> Answer:
        if question.workload.quantization == "int8":
            return Answer(
                problem="int8 can't be predicted: bitsandbytes' 8-bit kernels have no meta form; nf4 and none can"
            )
        try:
            model = _model(question.model, question.task, question.num_labels)
        except BROKEN as error:
            return Answer(problem=first_line(error))
        case = Case(
            config=model.config,
            task=question.task,
            lora=question.lora,
            baseline=question.baseline,
            workload=question.workload,
            gpu=question.gpu,
        )
        try:
            prediction = None if question.is_whole else predict_by_depth(case, model)
            return Answer(prediction=prediction or predict(case))
        except UNTRACEABLE as error:
            return Answer(problem=f"can't be traced without data: {error!r}")


@functools.lru_cache(maxsize=4)
def _model(config: ModelConfig, task: str, num_labels: int) -> PreTrainedModel:
    """The base without weights."""
    loaded = load_config(config, num_labels)
    loaded.use_cache = False
    return skeleton(loaded, task, trust_remote_code=config.trust_remote_code)


def load_config(config: ModelConfig, num_labels: int = 0) -> PretrainedConfig:
    """Transformers' configuration: of `model.config` where it is given, of a model that tuner brings, or of the model itself.

    Raises:
        OSError: There is no such file, or the hub can't be reached.
        ValueError: transformers does not know it.
    """
    named = config.config or config.name
    if _is_shipped(named):
        return _from_json(shipped_configs()[_short(named)], num_labels)
    if named.endswith(SUFFIX):
        return _from_json(json.loads(Path(named).read_text(encoding="utf-8")), num_labels)
    labels = tuple(map(str, range(num_labels)))
    return load_model_config(config.model_copy(update={"name": named}), labels)


def _is_shipped(named: str) -> bool:
    """Whether tuner brings the configuration of what a hub id, or a name alone, ends in."""
    return not is_folder_name(named) and _short(named) in shipped_configs()


def _short(named: str) -> str:
    return named.rpartition("/")[2].lower()


def shipped_configs() -> dict[str, Mapping[str, object]]:
    """Name in small letters -> config.json of the models that tuner brings."""
    folder = resources.files("tuner.vram") / "configs"
    files = (file for file in folder.iterdir() if file.name.endswith(SUFFIX))
    return {file.name.removesuffix(SUFFIX).lower(): json.loads(file.read_text(encoding="utf-8")) for file in files}


def _from_json(values: Mapping[str, object], num_labels: int) -> PretrainedConfig:
    rest = {key: value for key, value in values.items() if key != "model_type"}
    loaded: PretrainedConfig = AutoConfig.for_model(str(values["model_type"]), **rest)
    if num_labels:
        loaded.num_labels = num_labels
    return loaded
