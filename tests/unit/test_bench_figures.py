"""The pure part of benchmarks/by_hand: what is worked out from runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "by_hand" / "figures.py"


def _figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("by_hand_figures", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = _figures()
SMALL, MIDDLE, LARGE = (10.0, 0.6, 1e3, 2**30), (20.0, 0.8, 1e4, 2**30), (30.0, 0.9, 1e5, 2**31)


def test_the_full_sweep_reaches_its_whole_hypervolume_with_its_last_trial() -> None:
    full = [SMALL, MIDDLE, LARGE]

    curve = figures.shares(full, full)

    assert [seconds for seconds, _ in curve] == [10.0, 20.0, 30.0]
    assert curve[-1][1] == pytest.approx(1.0)


def test_the_share_never_falls_and_a_dominated_trial_adds_nothing() -> None:
    worse = (25.0, 0.7, 2e4, 2**30)

    curve = figures.shares([SMALL, MIDDLE, worse, LARGE], [SMALL, MIDDLE, LARGE])

    values = [share for _, share in curve]
    assert values == sorted(values)
    assert values[1] == values[2]


def test_the_time_to_a_share_is_that_of_the_first_trial_that_reaches_it() -> None:
    curve = [(5.0, 0.5), (9.0, 0.95), (12.0, 0.995)]

    assert figures.time_to(0.95, curve) == 9.0
    assert figures.time_to(0.99, curve) == 12.0


def test_a_share_that_is_not_reached_has_no_time() -> None:
    assert figures.time_to(0.99, [(5.0, 0.98)]) is None


def test_trials_per_hour_count_from_the_begin_to_the_last_end() -> None:
    assert figures.trials_per_hour([600.0, 1800.0]) == 4.0


def test_objectives_that_all_trials_share_do_not_divide_by_zero() -> None:
    same = [(1.0, 0.5, 1e3, 2**30), (2.0, 0.5, 1e3, 2**30)]

    assert figures.shares(same, same)[-1][1] == pytest.approx(1.0)
