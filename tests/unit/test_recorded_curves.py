"""The rule on real learning curves: the committed recordings of benchmarks/pruning, replayed."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks" / "pruning"))

from ours import tuner_search  # noqa: E402 -- scripts, no package
from recording import Recording  # noqa: E402

SEEDS = range(5)


def share_needed(recording: Recording, seed: int) -> float:
    """Share of the steps of training everything at which 99 % of its hypervolume stands."""
    reports = []
    for finish in tuner_search(recording, seed):
        reports.append(recording.curves[finish.curve].reports[-1])
        if recording.share_of_hypervolume(reports) >= 0.99:
            return finish.spent_steps / recording.full_steps
    return 1.0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["wordnet10", "movie-reviews"])
def test_nearly_all_of_the_front_is_found_for_a_quarter_of_the_steps(task: str) -> None:
    recording = Recording(task)

    assert median(share_needed(recording, seed) for seed in SEEDS) <= 0.25


@pytest.mark.parametrize("task", ["wordnet10", "movie-reviews"])
def test_the_recordings_hold_what_their_readme_says(task: str) -> None:
    first, second = Recording(task), Recording(task, seed=1)

    assert len(first.curves) == 96
    assert len(second.curves) == 32
    assert all(curve.reports[-1].steps == first.rungs[-1] for curve in first.finished)
    points = {curve.config: curve.params for curve in first.curves}
    assert all(points[curve.config] == curve.params for curve in second.curves)
