"""The predicting process, and what a study makes of its answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.builders import MIB, make_config, make_inspection, make_metrics, make_prediction, make_spec
from tests.models import causal_changes, causal_document, tiny_llama_config
from tests.sweeps import small_config, write_sweep
from tuner import sweep
from tuner.errors import ConfigError, PredictionError
from tuner.front import GIB
from tuner.gpus import GPUS
from tuner.layers import count_trainable
from tuner.prediction import Part, Phase, Prediction, Verdict
from tuner.predictor import Predictor, predicting
from tuner.study import create_study, open_study
from tuner.trial import Baseline, Decision, Inspection, MemoryKind, Outcome, StopReason, TrialSpec, TrialState

T4 = GPUS["T4-16GB"]


def prediction(allocated_bytes: int, *, capacity_bytes: int = 16 * GIB) -> Prediction:
    return dataclasses.replace(
        make_prediction(allocated_bytes + GIB, capacity_bytes=capacity_bytes),
        allocated_bytes=allocated_bytes,
        parts=((Part.WEIGHTS, allocated_bytes), (Part.FRAGMENTATION, GIB)),
        phases=((Phase.BACKWARD, allocated_bytes),),
    )


def study_in(folder: Path, *allocated_gib: float, **resources: Any) -> Any:
    """A study whose trials are predicted at so many GiB, one after another."""
    config = make_config(resources=resources, pruning={"method": "none", "min_steps": 30}, search=SEARCH)
    study = create_study(folder / "study.journal", config, make_inspection())
    left = iter(allocated_gib)
    study.predict = lambda *_: prediction(round(next(left) * GIB))
    return study


SEARCH = {
    "num_trials": 4,
    "space": {"r": {"choices": [4, 8, 16]}, "learning_rate": 0.001, "target_modules": ["query", "value"]},
    "start": "none",
}


def test_what_cannot_fit_is_never_given_out_and_recorded_with_its_numbers(tmp_path: Path) -> None:
    study = study_in(tmp_path, 20, 3)
    spec = study.ask()

    assert spec.number == 1
    refused = study.records[0]
    assert refused.state is TrialState.INFEASIBLE
    assert refused.outcome.stop is StopReason.MEMORY
    assert refused.outcome.detail == "predicted to need 20.00 GiB in its backward pass, the card has 16.00 GiB"


def test_what_may_fit_is_tried(tmp_path: Path) -> None:
    study = study_in(tmp_path, 15.5)

    assert study.ask().number == 0
    assert study.records[0].prediction.verdict is Verdict.UNCERTAIN


def test_a_limit_of_ones_own_is_held_against_the_prediction(tmp_path: Path) -> None:
    study = study_in(tmp_path, 9, 3, memory_limit_gib=8.0)

    assert study.ask().number == 1
    assert "the limit is 8 GiB" in study.records[0].outcome.detail


def test_on_a_cpu_the_prediction_is_the_objective_and_marked_as_such(tmp_path: Path) -> None:
    study = study_in(tmp_path, 3)
    study.ask()
    assert study.report(0, make_metrics(steps=120, peak_memory_bytes=MIB)) is Decision.FINISH
    record = study.tell(0, Outcome(state=TrialState.COMPLETE))

    assert record.last.peak_memory_bytes == 3 * GIB
    assert record.last.peak_reserved_bytes == 4 * GIB
    assert record.last.memory_kind is MemoryKind.PREDICTED


def test_on_a_gpu_the_measured_peak_stays_the_objective(tmp_path: Path) -> None:
    study = study_in(tmp_path, 3)
    study.ask()
    study.report(0, make_metrics(steps=30, peak_memory_bytes=GIB, memory_kind=MemoryKind.CUDA_ALLOCATED))

    assert study.records[0].last.peak_memory_bytes == GIB
    assert study.records[0].prediction.allocated_bytes == 3 * GIB


def test_predictions_are_read_back_from_the_journal(tmp_path: Path) -> None:
    study = study_in(tmp_path, 20, 3)
    study.ask()

    assert open_study(tmp_path / "study.journal", study._config).records == study.records


def test_a_driver_killed_while_it_predicts_leaves_no_trial_without_its_prediction(tmp_path: Path) -> None:
    study = study_in(tmp_path, 3)

    def killed(*_: object) -> Prediction:
        raise KeyboardInterrupt

    study.predict = killed
    with pytest.raises(KeyboardInterrupt):
        study.ask()
    resumed = open_study(tmp_path / "study.journal", study._config)
    resumed.predict = lambda *_: prediction(3 * GIB)
    spec = resumed.ask()

    assert spec is not None
    assert [record.number for record in resumed.records] == [spec.number]
    assert resumed.records[0].prediction == prediction(3 * GIB)


def test_a_sweep_that_names_no_card_and_runs_on_none_asks_nobody() -> None:
    predictor = Predictor()

    assert predictor.predict_trial(make_spec(0), make_config(), make_inspection()) is None
    assert predictor._process is None


@pytest.fixture(scope="module")
def predictor() -> Any:
    with predicting(make_config()) as found:
        yield found


@pytest.mark.parametrize(
    ("changes", "is_started"),
    [({}, False), ({"objectives": {"memory": {"gpu": "T4-16GB"}}}, True), ({"resources": {"gpus_per_trial": 1}}, True)],
)
def test_the_process_is_started_at_once_where_there_is_a_card_to_predict_for(
    changes: dict[str, Any], is_started: bool
) -> None:
    with predicting(make_config(**changes)) as predictor:
        assert (predictor._process is not None) == is_started


def causal_config(folder: Path, **changes: Any) -> Any:
    (folder / "bare").mkdir()
    (folder / "bare" / "config.json").write_text(tiny_llama_config().to_json_string(), encoding="utf-8")
    own = {"model.name": str(folder / "bare"), "objectives.memory": {"gpu": "T4-16GB"}}
    space = {"r": 4, "learning_rate": 0.001, "target_modules": "all-linear"}
    return small_config(folder, causal_changes(folder) | own | {"search.space": space} | changes)


def asked(lora_targets: str = "all-linear", **changes: Any) -> TrialSpec:
    from tests.builders import make_lora

    return make_spec(0, lora=make_lora(target_modules=(lora_targets,), **changes))


def test_the_process_predicts_a_trial_of_a_sweep(predictor: Predictor, tmp_path: Path) -> None:
    config = causal_config(tmp_path)
    found = predictor.predict_trial(asked(), config, Inspection(problems=(), longest_train=20, most_learned=5))

    assert found is not None
    assert found.capacity_bytes == T4.memory_bytes
    assert found.trainable_params == 8 * (3 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)))


def test_trials_that_differ_in_nothing_that_costs_memory_are_asked_once(predictor: Predictor, tmp_path: Path) -> None:
    config, inspection = causal_config(tmp_path), Inspection(problems=(), longest_train=20, most_learned=5)
    one, other = asked(), dataclasses.replace(asked(lora_alpha=32.0), learning_rate=0.5, number=7)

    assert predictor.predict_trial(one, config, inspection) is predictor.predict_trial(other, config, inspection)


def test_what_can_t_be_predicted_names_the_model(predictor: Predictor, tmp_path: Path) -> None:
    config = causal_config(tmp_path, **{"model.config": "./gone"})

    with pytest.raises(PredictionError, match="gone"):
        predictor.predict_trial(asked(), config, Inspection(problems=()))


def test_on_a_card_that_nobody_named_a_trial_without_a_prediction_runs_all_the_same(
    predictor: Predictor, tmp_path: Path
) -> None:
    config = causal_config(tmp_path, **{"model.config": "./gone", "objectives.memory": True})

    assert predictor.predict_trial(asked(), config, Inspection(problems=(), gpu=T4)) is None


def test_zero_shot_is_an_evaluation_and_nothing_else(predictor: Predictor, tmp_path: Path) -> None:
    spec = make_spec(-1, lora=None, baseline=Baseline.ZERO_SHOT)
    found = predictor.predict_trial(spec, causal_config(tmp_path), Inspection(problems=(), longest_train=20))

    assert found is not None
    assert [phase for phase, _ in found.phases] == [Phase.EVALUATION]
    assert found.trainable_params == 0


def test_a_process_that_died_is_told() -> None:
    with predicting(make_config()) as predictor:
        predictor._process = __import__("subprocess").Popen(["true"], stdin=-1, stdout=-1, text=True)
        with pytest.raises(PredictionError, match="has died"):
            predictor.predict_trial(asked(), make_config(objectives={"memory": {"gpu": "T4-16GB"}}), make_inspection())


def test_int8_and_a_card_are_told_apart_in_the_file(tmp_path: Path) -> None:
    changes = {"model.quantization": "int8", "objectives.memory": {"gpu": "T4-16GB"}}

    with pytest.raises(ConfigError, match=r"objectives\.memory\.gpu.*int8"):
        small_config(tmp_path, changes)


@pytest.mark.slow
def test_a_sweep_on_a_cpu_weighs_the_predicted_peak_of_the_card(tmp_path: Path) -> None:
    """A real sweep of a tiny chat model, to its report."""
    document = causal_document(tmp_path, {"objectives.memory": {"gpu": "T4-16GB"}, "search.num_trials": 2})
    file = write_sweep(tmp_path, document)
    swept = sweep.run(file, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    table = (tmp_path / "out" / "trials.csv").read_text(encoding="utf-8")

    assert {record.last.memory_kind for record in swept.records if record.last} == {MemoryKind.PREDICTED}
    for record in swept.records:
        assert record.prediction is not None
        assert record.prediction.trainable_params == count_trainable(swept.inspection.model, record.spec.lora)
    assert "Predicted for" in page
    assert "gradient_checkpointing no" in page
    assert "predicted_allocated_gib" in table.splitlines()[0]
