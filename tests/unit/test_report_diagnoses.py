"""What may be wrong with a sweep: told with evidence where it is so, and not told where it is noise."""

from __future__ import annotations

import random
import re
import statistics
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import make_config, make_inspection, make_lora, make_metrics, make_record, make_spec
from tests.synthetic import synthetic_config, synthetic_inspection, synthetic_records
from tuner.front import front, objectives_of
from tuner.report.findings.diagnoses import Diagnosis, Kind, Seen
from tuner.report.findings.doctor import diagnose
from tuner.report.findings.held_out import Confirmation, Spread, flattery_of
from tuner.trial import FailReason, HeldOut, Metrics, Outcome, Sampled, TrialRecord, TrialState

RANKS, RATES = [4, 8, 16], {"low": 1e-4, "high": 1e-2, "log": True}


def seen(records: list[TrialRecord], **changes: Any) -> Seen:
    config = changes.pop("config", make_config())
    tests = changes.pop("tests", {})
    best = front(records, objectives_of(config))
    values: dict[str, Any] = {
        "config": config,
        "inspection": make_inspection(),
        "trials": tuple(records),
        "front": best,
        "tests": tests,
        "confirmations": (),
        "flattery": flattery_of(config.metric, best, tests),
    }
    return Seen(**values | changes)


def told(records: list[TrialRecord], kind: Kind, **changes: Any) -> Diagnosis | None:
    return next((found for found in diagnose(seen(records, **changes)) if found.kind is kind), None)


def trial(number: int, accuracy: float, r: int = 8, rate: float = 1e-3, **changes: Any) -> TrialRecord:
    scale = changes.pop("scale", 2.0)
    params = (("r", r), ("learning_rate", rate))
    spec = make_spec(number, params=params, lora=make_lora(r=r, lora_alpha=scale * r), learning_rate=rate)
    return make_record(number, spec=spec, accuracy=accuracy, **changes)


def curve(*points: tuple[float, float, float | None]) -> tuple[Metrics, ...]:
    """(accuracy, validation loss, training loss) at each rung."""
    return tuple(
        make_metrics(steps=30 * 2**place, accuracy=accuracy, loss=loss, train_loss=train)
        for place, (accuracy, loss, train) in enumerate(points)
    )


def test_a_rank_at_the_edge_is_told_where_it_is_best_beyond_the_noise() -> None:
    found = told([trial(0, 0.60, r=4), trial(1, 0.62, r=8), trial(2, 0.80, r=16)], Kind.RANK_AT_EDGE)

    assert found is not None
    assert "The best away from it, trial 1, is 18.0 points worse, beyond the noise." in found.evidence
    assert found.advice == "Let search.space.r go higher."


def test_a_rank_at_the_edge_is_not_told_where_it_leads_by_noise() -> None:
    assert told([trial(0, 0.79, r=4), trial(1, 0.80, r=8), trial(2, 0.81, r=16)], Kind.RANK_AT_EDGE) is None


def test_a_rank_at_the_edge_is_told_where_trials_there_score_higher_by_a_test() -> None:
    inside = [trial(number, 0.78 + 0.001 * number, r=8) for number in range(5)]
    there = [trial(10 + number, 0.80 + 0.001 * number, r=16) for number in range(4)]

    found = told([*inside, *there], Kind.RANK_AT_EDGE)

    assert found is not None
    assert "The 4 finished trials there score higher than the 5 others (Mann-Whitney U, p = 0.0079)" in found.evidence


def test_ranks_that_do_nothing_are_seldom_found_at_an_edge() -> None:
    draw = random.Random(0)
    alarms = 0
    for _ in range(60):
        records = [trial(n, draw.gauss(0.8, 0.02), r=draw.choice([4, 8, 16]), rate=1e-3) for n in range(9)]
        alarms += told(records, Kind.RANK_AT_EDGE) is not None

    assert alarms <= 6


def test_a_rank_of_one_is_no_edge_for_nothing_is_below() -> None:
    space = {"r": {"choices": [1, 4, 16]}, "learning_rate": RATES, "target_modules": ["query"]}
    config = make_config(search={"num_trials": 4, "space": space})

    assert told([trial(0, 0.9, r=1), trial(1, 0.5, r=4), trial(2, 0.5, r=16)], Kind.RANK_AT_EDGE, config=config) is None


def test_the_smallest_rank_at_its_best_asks_for_smaller_ones() -> None:
    found = told([trial(0, 0.9, r=4), trial(1, 0.6, r=8), trial(2, 0.6, r=16)], Kind.RANK_AT_EDGE)

    assert found is not None
    assert found.advice == "Let search.space.r go lower."


@pytest.mark.parametrize(("rate", "end"), [(9e-3, "upper"), (1.1e-4, "lower")])
def test_a_learning_rate_at_the_edge_is_told(rate: float, end: str) -> None:
    found = told([trial(0, 0.6), trial(1, 0.62), trial(2, 0.85, rate=rate)], Kind.LEARNING_RATE_AT_EDGE)

    assert found is not None
    assert found.advice == f"Widen search.space.learning_rate at its {end} end."


def test_a_learning_rate_in_the_middle_is_no_edge() -> None:
    assert told([trial(0, 0.6, rate=9e-3), trial(1, 0.85)], Kind.LEARNING_RATE_AT_EDGE) is None


def test_two_choices_have_no_edge() -> None:
    space = {"r": {"choices": [4, 8]}, "learning_rate": RATES, "target_modules": ["query"]}
    config = make_config(search={"num_trials": 4, "space": space})

    assert told([trial(0, 0.6, r=4), trial(1, 0.9, r=8)], Kind.RANK_AT_EDGE, config=config) is None


def diverged(number: int, rate: float, scale: float = 2.0) -> TrialRecord:
    outcome = Outcome(state=TrialState.FAIL, reason=FailReason.LOSS_NOT_FINITE, detail="nan")
    return TrialRecord(spec=trial(number, 0.5, rate=rate, scale=scale).spec, state=TrialState.FAIL, outcome=outcome)


def test_spikes_are_blamed_on_the_learning_rate_where_it_is_larger_there() -> None:
    calm = [trial(number, 0.8, rate=1e-3 + 1e-5 * number) for number in range(8)]
    shaken = [diverged(10 + number, 8e-3 + 1e-4 * number) for number in range(4)]

    found = told([*calm, *shaken], Kind.UNSTABLE)

    assert found is not None
    assert "In 4 of 12 trials the loss spiked or was not finite. Their learning rate is larger" in found.evidence
    assert "search.space.learning_rate" in found.advice


def test_spikes_are_blamed_on_the_scale_where_that_is_larger_there() -> None:
    calm = [trial(number, 0.8, rate=1e-3 + 1e-4 * number, scale=1.0 + 0.01 * number) for number in range(8)]
    shaken = [diverged(10 + number, 1e-3 + 1.5e-4 * number, scale=8.0) for number in range(4)]

    found = told([*calm, *shaken], Kind.UNSTABLE)

    assert found is not None
    assert "lora_scale" in found.advice


def test_spikes_at_any_learning_rate_blame_nothing() -> None:
    records = [trial(number, 0.8, rate=1e-3 * (1 + number)) for number in range(6)]

    assert told([*records, diverged(10, 1.5e-3), diverged(11, 4.5e-3)], Kind.UNSTABLE) is None


def test_a_validation_loss_that_leaps_with_the_training_loss_is_a_spike() -> None:
    spiky = curve((0.7, 0.9, 0.9), (0.4, 1.9, 1.8), (0.6, 1.2, 1.1))
    calm = [trial(number, 0.8, rate=1e-3 + 1e-5 * number) for number in range(8)]
    records = [*calm, *(trial(10 + n, 0.6, rate=9e-3, curve=spiky) for n in range(4))]

    assert told(records, Kind.UNSTABLE) is not None


def test_a_step_whose_loss_leaps_is_a_spike_though_the_rungs_look_calm() -> None:
    points = curve((0.6, 1.0, 1.0), (0.7, 0.8, 0.8), (0.8, 0.6, 0.6))
    leaping = (*points[:2], replace(points[2], worst_train_loss=5.0))
    calm = [trial(number, 0.8, rate=1e-3 + 1e-5 * number, curve=points) for number in range(8)]

    found = told([*calm, *(trial(10 + n, 0.8, rate=9e-3, curve=leaping) for n in range(4))], Kind.UNSTABLE)

    assert found is not None


def test_a_front_that_would_gain_more_than_the_noise_is_under_trained() -> None:
    rising = [trial(0, 0.8, curve=curve((0.5, 1.5, 1.4), (0.65, 1.0, 0.9), (0.75, 0.7, 0.6)))]
    levelling = [trial(0, 0.8, curve=curve((0.5, 1.5, 1.4), (0.76, 0.8, 0.7), (0.8, 0.7, 0.6)))]

    found = told(rising, Kind.UNDER_TRAINED)

    assert found is not None
    assert (
        "gained 10.0 points in the median; falling off as before, another such stretch would bring 6.7 points"
        in found.evidence
    )
    assert told(levelling, Kind.UNDER_TRAINED) is None
    assert told([trial(0, 0.8)], Kind.UNDER_TRAINED) is None


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_overfitting() -> None:
    over = [trial(0, 0.8, curve=curve((0.7, 0.8, 0.7), (0.8, 0.6, 0.4), (0.8, 0.9, 0.1)))]
    spike = [trial(0, 0.8, curve=curve((0.7, 0.8, 0.7), (0.8, 0.6, 0.4), (0.8, 0.9, 0.9)))]

    found = told(over, Kind.OVERFITTING)

    assert found is not None
    assert "50% (median) above its lowest" in found.evidence
    assert told(spike, Kind.OVERFITTING) is None
    assert told([trial(0, 0.8)], Kind.OVERFITTING) is None


def test_a_curve_is_followed_on_the_same_examples_though_its_last_rung_is_scored_on_more() -> None:
    falling = curve((0.7, 0.8, 0.7), (0.8, 0.6, 0.4), (0.8, 0.9, 0.1))
    harder = (*falling[:2], replace(falling[2], sampled=Sampled(accuracy=0.8, loss=0.55, num=40)))
    over = (*falling[:2], replace(falling[2], loss=0.6, sampled=Sampled(accuracy=0.8, loss=0.9, num=40)))

    found = told([trial(0, 0.8, curve=over)], Kind.OVERFITTING)

    assert told([trial(0, 0.8, curve=harder)], Kind.OVERFITTING) is None
    assert found is not None
    assert "50% (median) above its lowest" in found.evidence


def test_an_evaluation_that_can_not_tell_the_recommended_apart_says_how_many_would_do() -> None:
    records = [
        trial(0, 0.70, trainable_params=100),
        trial(1, 0.83, trainable_params=1_000),
        trial(2, 0.85, trainable_params=9_000),
    ]

    found = told(records, Kind.TOO_FEW_EXAMPLES)

    assert found is not None
    number = int(re.sub(r"\D", "", re.search(r"About ([\d,]+) would show", found.advice).group(1)))  # type: ignore[union-attr]
    # (z + z')^2 (p q + p' q') / d^2 with p = 0.83, p' = 0.85, and z' of a power of 80 %
    assert number == pytest.approx((1.96 + 0.8416) ** 2 * (0.83 * 0.17 + 0.85 * 0.15) / 0.02**2, rel=0.05)


def test_trials_that_are_as_good_as_equal_ask_for_no_examples() -> None:
    records = [trial(0, 0.8500, trainable_params=100), trial(1, 0.8501, trainable_params=9_000)]

    assert told(records, Kind.TOO_FEW_EXAMPLES) is None


def test_a_sweep_that_learned_nothing_is_told_so() -> None:
    assert told([trial(0, 0.56)], Kind.NOTHING_LEARNED, inspection=make_inspection(majority_share=0.55)) is not None
    assert told([trial(0, 0.30)], Kind.NOTHING_LEARNED, inspection=make_inspection(majority_share=0.55)) is not None
    assert told([trial(0, 0.80)], Kind.NOTHING_LEARNED, inspection=make_inspection(majority_share=0.55)) is None


def test_a_flattered_score_is_told_beyond_the_noise_only() -> None:
    def scored(accuracy: float) -> dict[int, HeldOut]:
        return {0: HeldOut(accuracy=accuracy, standard_error=0.01, loss=1.0, num_test=1000)}

    found = told([trial(0, 0.9)], Kind.FLATTERED, tests=scored(0.7))

    assert found is not None
    assert "Trial 0 scores 20.0 points worse on the test data" in found.evidence
    assert told([trial(0, 0.9)], Kind.FLATTERED, tests=scored(0.89)) is None


def again(number: int, *scores: float) -> Confirmation:
    mean = statistics.fmean(scores)
    spread = Spread(scores=scores, mean=mean, deviation=statistics.stdev(scores) if len(scores) > 1 else None)
    return Confirmation(number=number, seeds=(*range(len(scores)),), num_failed=0, validation=spread, test=None)


def test_seeds_that_move_more_than_the_choice_are_told() -> None:
    records = [trial(0, 0.8)]

    found = told(records, Kind.SEEDS, confirmations=(again(0, 0.76, 0.80, 0.84), again(1, 0.79, 0.82, 0.85)))

    assert found is not None
    assert "trials 0, 1 can't be told apart" in found.evidence
    assert told(records, Kind.SEEDS, confirmations=(again(0, 0.69, 0.70, 0.71), again(1, 0.81, 0.82, 0.83))) is None
    assert told(records, Kind.SEEDS, confirmations=(again(0, 0.70, 0.80),)) is None
    assert told(records, Kind.SEEDS, confirmations=(again(0, 0.70), again(1, 0.80))) is None


def test_nothing_is_wrong_with_nothing() -> None:
    assert diagnose(seen([])) == ()


def test_a_whole_synthetic_sweep_is_told_of_its_cliff() -> None:
    records, config = synthetic_records(200), synthetic_config(200)

    kinds = {found.kind for found in diagnose(seen(records, config=config, inspection=synthetic_inspection()))}

    assert Kind.UNSTABLE in kinds
    assert Kind.NOTHING_LEARNED not in kinds


def test_what_befell_trials_is_told_once_for_all_and_not_without_end() -> None:
    remarked = replace(make_metrics(), remarks=("its process was ended",))
    records = [make_record(number, curve=(remarked,)) for number in range(7)]

    found = told(records, Kind.FAULTS)

    assert found is not None
    assert found.evidence.startswith(f"trial 0, by step {remarked.steps}: its process was ended; trial 1")
    assert found.evidence.endswith("; and 2 more.")
    assert told([make_record(0)], Kind.FAULTS) is None
