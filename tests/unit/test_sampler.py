"""Where the next point comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import make_metrics, make_model, make_record, make_spec
from tests.sweeps import small_config
from tuner.config import SweepConfig
from tuner.sampler import MIN_AT_RUNG, MOST_LEARNED, MOST_UNDER_WAY, learned_rung, newest, propose
from tuner.space import Suggestion
from tuner.trial import TrialRecord, TrialState

LAYERS = make_model().layers


def proposed(config: SweepConfig, records: list[TrialRecord], number: int) -> Suggestion:
    return propose(records, config, LAYERS, number)


def tried(
    config: SweepConfig, num: int, *, state: TrialState = TrialState.COMPLETE, best: float = 0.002
) -> list[TrialRecord]:
    """Trials at the sampler's own points, the better the nearer their learning rate is to `best`."""
    records = []
    for number in range(num):
        suggestion = proposed(
            config.model_copy(update={"search": config.search.model_copy(update={"sampler": "random"})}), [], number
        )
        spec = suggestion.as_spec(number, seed=0)
        loss = abs(spec.learning_rate - best) / best
        metrics = make_metrics(steps=2, loss=loss, accuracy=max(0.0, 1 - loss / 5), trainable_params=1000)
        records.append(make_record(number, state, spec=spec, curve=(metrics,), outcome=None))
    return records


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_records_and_number_give_the_same_point(tmp_path: Path, sampler: str) -> None:
    config = small_config(tmp_path, {"search.sampler": sampler})
    records = tried(config, 20)

    assert proposed(config, records, 20) == proposed(config, records, 20)
    assert proposed(config, records, 20) != proposed(config, records, 21)


def test_tpe_goes_where_trials_were_good_at_a_rung_though_none_has_finished(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"search.sampler": "tpe"})
    paused = tried(config, 40, state=TrialState.PAUSED)

    rates = [proposed(config, paused, number).learning_rate for number in range(40, 60)]

    near = sum(0.001 <= rate <= 0.004 for rate in rates) / len(rates)
    by_chance = sum(0.001 <= record.spec.learning_rate <= 0.004 for record in paused) / len(paused)
    assert near > by_chance + 0.2


def test_random_search_learns_nothing(tmp_path: Path) -> None:
    config = small_config(tmp_path, {"search.sampler": "random"})

    assert proposed(config, tried(config, 20), 20) == proposed(config, [], 20)


def at_rungs(*steps: int) -> TrialRecord:
    return make_record(spec=make_spec(), curve=tuple(make_metrics(steps=rung) for rung in steps))


def test_points_are_learned_from_the_highest_rung_that_enough_have_reached() -> None:
    records = [at_rungs(2)] * 5 + [at_rungs(2, 4)] * (MIN_AT_RUNG - 1) + [at_rungs(2, 4, 8)]

    assert learned_rung(records, (2, 4, 8)) == 4
    assert learned_rung(records[:3], (2, 4, 8)) == 2
    assert learned_rung([], (2, 4, 8)) == 2


def test_where_a_thousand_are_under_way_a_point_is_learned_from_those_before_them() -> None:
    ended = [make_record(number) for number in range(2 * MOST_LEARNED)]
    under_way = [make_record(len(ended) + place, TrialState.RUNNING, curve=(), outcome=None) for place in range(1000)]

    assert newest([*ended, *under_way]) == [*ended[-MOST_LEARNED:], *under_way[-MOST_UNDER_WAY:]]


def test_a_sweep_of_ordinary_size_is_learned_from_whole() -> None:
    records = [make_record(number) for number in range(MOST_LEARNED)]

    assert newest(records) == records
