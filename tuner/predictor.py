"""Asks the predicting process, which may load torch. Runs on the driver."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from tuner.errors import PredictionError
from tuner.prediction import Prediction
from tuner.workload import Answer, Question, gpu_of, question_about, workload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.trial import Inspection, TrialSpec

MODULE = "tuner.vram"
_QUESTIONS = TypeAdapter(Question)
_ANSWERS = TypeAdapter(Answer)


class Predictor:
    """A predicting process, started at the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._known: dict[Question, Prediction] = {}

    def start(self) -> subprocess.Popen[str]:
        """The process, started if it does not run."""
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 -- a module of our own
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is the driver's
            )
        return self._process

    def predict(self, question: Question) -> Prediction:
        """The peak of a trial; the same question is asked once.

        Raises:
            PredictionError: It can't be predicted, or the process has died.
        """
        if question not in self._known:
            self._known[question] = self._asked(question)
        return self._known[question]

    def predict_trial(
        self, spec: TrialSpec, config: SweepConfig, inspection: Inspection, gpu: Gpu | None = None
    ) -> Prediction | None:
        """The peak of a sweep's trial on a card: by default the one that the sweep names, or else the one that it runs on.

        Returns:
            None where there is neither card, or where nobody has asked for a prediction and there can't be one.

        Raises:
            PredictionError: It was asked for and can't be made, or the process has died.
        """
        gpu = gpu_of(config, gpu.name if gpu else None) or inspection.gpu
        if gpu is None:
            return None
        workload = workload_of(config, gpu, inspection)
        try:
            return self.predict(question_about(spec, config, gpu, workload, num_labels=len(inspection.labels)))
        except PredictionError:
            if config.objectives.memory.gpu is not None:
                raise
            return None

    def of_sweep(
        self, config: SweepConfig, inspection: Inspection
    ) -> Callable[[TrialSpec, Gpu | None], Prediction | None]:
        """`predict_trial` of one sweep."""
        return lambda spec, gpu: self.predict_trial(spec, config, inspection, gpu)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()  # type: ignore[union-attr]
            self._process.terminate()  # it may still be importing torch, and has nothing to lose
            self._process.wait()
            self._process.stdout.close()  # type: ignore[union-attr]
            self._process = None

    def _asked(self, question: Question) -> Prediction:
        process = self.start()
        assert process.stdin is not None  # noqa: S101 -- asked for when it was started
        assert process.stdout is not None  # noqa: S101
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(_QUESTIONS.dump_json(question).decode() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            self.close()
            raise PredictionError("the predicting process has died; what it wrote stands above")
        return predicted(_ANSWERS.validate_json(line), question)


def predicted(answer: Answer, question: Question) -> Prediction:
    """What an answer says.

    Raises:
        PredictionError: It can't be predicted.
    """
    if answer.prediction is None:
        raise PredictionError(f"{question.model.config or question.model.name}: {answer.problem}")
    return answer.prediction


@contextlib.contextmanager
def predicting(config: SweepConfig) -> Iterator[Predictor]:
    """A predicting process for as long as it is needed; at once if there is a card to predict for: it takes seconds to start."""
    predictor = Predictor()
    if config.resources.uses_gpu or config.objectives.memory.gpu is not None:
        predictor.start()
    try:
        yield predictor
    finally:
        predictor.close()
