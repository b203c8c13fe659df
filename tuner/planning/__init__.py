"""What a sweep will cost before a GPU is rented: memory of the space's corners and of sampled trials, steps, hours, money.

Runs on the driver, and asks the predictor (`tuner.vram`) by its dotted name, so that this room does not import torch.
"""

from __future__ import annotations

import pkgutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.closed_form import closed_form, shape_of, why_not
from tuner.errors import ConfigError, PredictionError, Problem
from tuner.layers import ModelFacts, count_trainable
from tuner.planning.corners import corners
from tuner.prediction import Verdict
from tuner.predictor import predicted
from tuner.sampler import propose
from tuner.space import space_problems
from tuner.trial import TrialSpec
from tuner.workload import gpu_of, question_about, workload_of

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.lora import LoraSpec
    from tuner.prediction import Prediction
    from tuner.trial import TrialRecord
    from tuner.workload import Question, Workload

ANSWERER = "tuner.vram.answering:Answerer"
NUM_LABELS = 2
"""Classes of a head: a plan does not look at the data, and a head is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A trial that may come."""

    label: str
    """What it is: a corner, or the number of a sample."""
    lora: LoraSpec
    """Its adapter."""
    trainable_params: int
    """Numbers that it trains."""
    prediction: Prediction
    """Its peak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is known of a sweep before it begins."""

    name: str
    """The sweep's."""
    model: ModelFacts
    """The base."""
    origin: str
    """Where its configuration was found."""
    gpu: Gpu
    """The card."""
    workload: Workload
    """By which settings it is predicted."""
    corners: tuple[Planned, ...]
    """The smallest and the largest trial of each set of modules."""
    samples: tuple[Planned, ...]
    """Trials as the search might draw them."""
    num_steps: int
    """Optimizer steps of the search at most."""
    step_s: float | None
    """Seconds of an optimizer step; None where nobody gave them."""

    @property
    def hours(self) -> float | None:
        """GPU hours of all steps, evaluations not counted."""
        return None if self.step_s is None else self.num_steps * self.step_s / 3600


def make_plan(
    config: SweepConfig, file: str, *, gpu: str | None = None, num_samples: int = 20, step_s: float | None = None
) -> Plan:
    """Predict a sweep's memory and time.

    Args:
        config: The sweep.
        file: Its name, for messages.
        gpu: A card; the sweep file's by default.
        num_samples: Trials to draw.
        step_s: Seconds of an optimizer step.

    Raises:
        ConfigError: No card is named, or the space does not fit the model.
        PredictionError: The model's configuration can't be found or traced.
    """
    try:
        card = gpu_of(config, gpu)
    except ValueError as error:
        raise ConfigError(file, (Problem(key="--gpu", message=str(error)),)) from error
    if card is None:
        message = "is missing: name the card to plan for, here or with --gpu"
        raise ConfigError(file, (Problem(key="objectives.memory.gpu", message=message),))
    answerer = _Answerer(config)
    if problems := [*space_problems(config.search.space, answerer.facts)]:
        raise ConfigError(file, tuple(Problem(key=key, message=message) for key, message in problems))
    workload = workload_of(config, card)
    layers = answerer.facts.layers

    def planned(label: str, spec: TrialSpec, predict: Callable[[Question], Prediction]) -> Planned:
        question = question_about(spec, config, card, workload, NUM_LABELS)
        assert spec.lora is not None  # noqa: S101 -- of the search
        prediction = predict(question)
        num_params = count_trainable(answerer.facts, spec.lora)
        return Planned(label=label, lora=spec.lora, trainable_params=num_params, prediction=prediction)

    drawn = [propose((), config, layers, number).as_spec(number, seed=0) for number in range(num_samples)]
    ends = corners(config.search.space, layers)
    most_steps = config.search.num_trials * config.training.max_steps
    return Plan(
        name=config.name,
        model=answerer.facts,
        origin=answerer.origin,
        gpu=card,
        workload=workload,
        corners=tuple(planned(label, point.as_spec(0, seed=0), answerer.traced) for label, point in ends),
        samples=tuple(planned(f"sample {spec.number}", spec, answerer.quick) for spec in drawn),
        num_steps=min(most_steps, config.search.budget.steps or most_steps),
        step_s=step_s,
    )


def measured_step_s(records: Sequence[TrialRecord]) -> float | None:
    """Median seconds of an optimizer step of a sweep's trials, evaluations included; None where none has reported."""
    taken_s = [record.last.train_s / record.last.steps for record in records if record.last and record.last.steps]
    return statistics.median(taken_s) if taken_s else None


class _Answerer:
    """The predictor in this process, with the closed form beside it."""

    def __init__(self, config: SweepConfig) -> None:
        self._answerer = pkgutil.resolve_name(ANSWERER)()
        labels = NUM_LABELS if config.training.task == "classification" else 0
        try:
            self.facts: ModelFacts = self._answerer.facts(config.model, config.training.task, labels)
        except ValueError as error:
            raise PredictionError(f"{config.model.config or config.model.name}: {error}") from error
        self.origin: str = self._answerer.origin(config.model)
        self._shape = shape_of(self._answerer.settings(config.model))

    def quick(self, question: Question) -> Prediction:
        """A prediction in milliseconds, where the closed form applies and leaves no doubt whether the trial fits."""
        if self._shape is None or why_not(question, self._shape, self.facts.layers):
            return self.traced(question)
        found = closed_form(question, self._shape, self.facts.layers)
        return self.traced(question) if found.verdict is Verdict.UNCERTAIN else found

    def traced(self, question: Question) -> Prediction:
        """A prediction by trace."""
        return predicted(self._answerer.answer(question), question)
