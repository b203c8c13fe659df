"""What a person sees while a sweep runs."""

from __future__ import annotations

import io
from collections.abc import Callable

from tests.builders import make_config, make_inspection, make_record, make_spec
from tuner.live import (
    STYLES,
    LiveView,
    PlainView,
    Progress,
    clock_time,
    headline,
    row,
    steps_done,
    steps_to_come,
    tally,
    visible,
)
from tuner.trial import Baseline, Metric, Outcome, StopReason, TrialRecord, TrialState

CONFIG = make_config()  # 4 trials of 120 steps


def ticking(*times_s: float) -> Callable[[], float]:
    remaining = list(times_s)
    return lambda: remaining.pop(0)


def test_steps_to_come_are_full_trials_before_any_has_ended() -> None:
    assert steps_to_come(CONFIG, []) == 4 * 120


def test_steps_to_come_follow_what_ended_trials_took() -> None:
    records = [make_record(0, steps=120), make_record(1, TrialState.PRUNED, steps=60)]

    assert steps_to_come(CONFIG, records) == 2 * 90


def test_time_left_is_the_rate_so_far_times_what_is_to_come() -> None:
    progress = Progress(CONFIG, [], ticking(100.0, 130.0))

    assert progress.left_s([make_record(0, steps=120)]) == 30.0 / 120 * 3 * 120


def test_what_an_earlier_process_did_does_not_count_into_the_rate() -> None:
    before = [make_record(0, steps=120)]
    progress = Progress(CONFIG, before, ticking(100.0))

    assert progress.left_s(before) is None


def paused(number: int, **changes: object) -> TrialRecord:
    return make_record(number, TrialState.PAUSED, outcome=None, **changes)


def never_begun(number: int) -> TrialRecord:
    outcome = Outcome(state=TrialState.INFEASIBLE, stop=StopReason.MEMORY, detail="too large")
    return make_record(number, TrialState.INFEASIBLE, curve=(), outcome=outcome)


def test_a_paused_trial_is_expected_to_end_where_ended_trials_did() -> None:
    records = [make_record(0, steps=120), make_record(1, TrialState.PRUNED, steps=60), paused(2, steps=30)]

    assert steps_to_come(CONFIG, records) == (90 - 30) + 1 * 90


def test_no_more_steps_are_to_come_than_the_budget_has_left() -> None:
    search = make_config().search.model_dump() | {"budget": {"steps": 200}}

    assert steps_to_come(make_config(search=search), [make_record(0, steps=120)]) == 80


def test_a_trial_that_never_fitted_is_none_of_those_asked_for() -> None:
    records = [never_begun(0), make_record(1, steps=120)]

    assert tally(records, CONFIG) == "1/4 trials"
    assert steps_to_come(CONFIG, records) == 3 * 120


def test_the_tally_tells_how_many_trials_wait() -> None:
    assert tally([make_record(0), paused(1), make_record(2, TrialState.RUNNING)], CONFIG) == "1/4 trials, 1 paused"


def test_an_audit_goes_on_from_the_stopped_trial_and_is_finished() -> None:
    config = make_config(pruning={"min_steps": 30, "audit": 3}, search=CONFIG.search.model_dump() | {"num_trials": 2})
    stopped = [make_record(number, TrialState.PRUNED, steps=30) for number in (0, 1)]
    audit = make_record(-1, TrialState.RUNNING, spec=make_spec(-1, audits=0), steps=60)

    assert steps_to_come(config, stopped) == 2 * 90
    assert steps_to_come(config, [*stopped, audit]) == 60 + 90
    assert steps_done([*stopped, audit]) == 30 + 30 + (60 - 30)


def test_an_audit_is_no_trial_of_the_search_and_says_what_it_audits() -> None:
    audit = make_record(-1, spec=make_spec(-1, audits=7))

    assert tally([audit], CONFIG) == "0/4 trials"
    assert row(audit, CONFIG)[0] == "audit of 7"


def test_running_trials_come_first_then_the_best_finished_ones() -> None:
    records = [
        make_record(0, accuracy=0.5),
        make_record(1, accuracy=0.9),
        make_record(2, TrialState.PRUNED, accuracy=0.95),
        make_record(3, TrialState.RUNNING),
    ]

    assert [record.number for record in visible(records, Metric.ACCURACY, rows=3)] == [3, 1, 0]


def test_paused_trials_come_after_finished_ones_and_before_stopped_ones() -> None:
    records = [make_record(0, TrialState.PRUNED), paused(1, accuracy=0.6), paused(2, accuracy=0.7), make_record(3)]

    assert [record.number for record in visible(records, Metric.ACCURACY, rows=4)] == [3, 2, 1, 0]


def test_of_finished_trials_of_perplexity_the_lowest_comes_first() -> None:
    records = [make_record(number, accuracy=value) for number, value in enumerate((9.0, 3.0, 5.0))]

    assert [record.number for record in visible(records, Metric.PERPLEXITY, rows=3)] == [1, 2, 0]


def test_baselines_stand_among_the_trials_and_say_what_they_are() -> None:
    spec = make_spec(-1, baseline=Baseline.FULL, lora=None, params=())
    baseline, trial = make_record(-1, spec=spec, accuracy=0.9), make_record(0)

    assert visible([trial, baseline], Metric.ACCURACY, rows=2) == [baseline, trial]
    assert (row(baseline, CONFIG)[0], row(baseline, CONFIG)[-1]) == ("baseline 1", "full fine-tuning")


def test_baselines_are_no_trials_of_the_search_and_train_to_the_end() -> None:
    config = make_config(baselines={"head_only": [0.001], "full": [0.0001]})
    spec = make_spec(-1, baseline=Baseline.HEAD_ONLY, lora=None, params=())
    running = make_record(-1, TrialState.RUNNING, spec=spec, steps=30)

    assert steps_to_come(config, [running]) == 4 * 120 + (120 - 30) + 120
    assert tally([make_record(-1, spec=spec), make_record(0)], config) == "1/4 trials"


def test_a_zero_shot_baseline_has_no_steps_to_come() -> None:
    config = make_config(training={"task": "causal-lm", "max_steps": 120}, baselines={"zero_shot": True})
    spec = make_spec(-1, baseline=Baseline.ZERO_SHOT, lora=None, params=())

    assert steps_to_come(config, []) == 4 * 120
    assert row(make_record(-1, spec=spec, steps=0), config)[2] == "0"


def test_plain_lines_name_the_metric_and_the_baseline() -> None:
    stream = io.StringIO()
    config = make_config(training={"task": "causal-lm", "max_steps": 120}, objectives={"accuracy": "perplexity"})
    spec = make_spec(-1, baseline=Baseline.FULL, lora=None, params=())
    view = PlainView(stream, clock=lambda: 0.0)
    with view.watching(config, make_inspection(labels=()), []):
        view.update([make_record(-1, spec=spec, accuracy=3.456)])

    assert "baseline 1 (full fine-tuning)" in stream.getvalue()
    assert "perplexity 3.46" in stream.getvalue()
    assert "commonest completion" in stream.getvalue()
    assert "classes" not in stream.getvalue()


def test_plain_lines_tell_each_change_once() -> None:
    stream = io.StringIO()
    view = PlainView(stream, clock=lambda: 0.0)
    records = [make_record(0, TrialState.RUNNING)]
    with view.watching(CONFIG, make_inspection(), []):
        view.update(records)
        view.update(records)

    assert stream.getvalue().count("trial   0") == 1
    assert "80.0%" in stream.getvalue()


def test_a_plain_line_tells_why_a_trial_was_stopped() -> None:
    stream = io.StringIO()
    outcome = Outcome(state=TrialState.PRUNED, stop=StopReason.DOMINATED, detail="trial 3 leads by 0.2")
    view = PlainView(stream, clock=lambda: 0.0)
    with view.watching(CONFIG, make_inspection(), []):
        view.update([make_record(0, TrialState.PRUNED, outcome=outcome), never_begun(1)])

    assert "dominated at its rung: trial 3 leads by 0.2" in stream.getvalue()
    assert "INFEASIBLE · step 0/120" in stream.getvalue()


def test_every_state_has_a_style_of_its_own() -> None:
    assert set(STYLES) == set(TrialState)
    assert STYLES[TrialState.PAUSED] == "yellow"
    assert len(set(STYLES.values())) == len(STYLES)


def test_a_failed_trials_row_says_why() -> None:
    assert row(make_record(0, TrialState.FAIL), CONFIG)[1] == "exception"


def test_the_live_table_shows_trials_and_the_share_done() -> None:
    from rich.console import Console

    view = LiveView(clock=lambda: 0.0)
    view._config, view._inspection = CONFIG, make_inspection()
    view._console = Console(width=160, height=40, file=io.StringIO())
    view._progress = Progress(CONFIG, [], lambda: 0.0)
    view.update([make_record(0), make_record(1, TrialState.RUNNING)])
    view._console.print(view._draw())

    text = view._console.file.getvalue()  # type: ignore[attr-defined]
    assert "COMPLETE" in text
    assert "1/4 trials" in text
    assert "accuracy" in text


def test_clock_time_reads_as_people_write_it() -> None:
    assert [clock_time(seconds) for seconds in (None, 9, 65, 3909)] == ["-:--", "0:09", "1:05", "1:05:09"]


def test_the_headline_says_what_was_left_out_of_the_data() -> None:
    line = headline(make_config(), make_inspection(num_duplicates=1200, num_too_long=3))

    assert "left out: 1,200 duplicate, 3 too long" in line
    assert "left out" not in headline(make_config(), make_inspection())


def test_of_many_trials_the_time_left_is_found_once_a_second() -> None:
    stream = io.StringIO()
    now_s = [0.0]
    view = PlainView(stream, clock=lambda: now_s[0])
    config = make_config(search={**CONFIG.model_dump()["search"], "num_trials": 400})
    with view.watching(config, make_inspection(), []):
        for num_done in (0, 200, 400):
            done = [make_record(number) for number in range(num_done)]
            view.update(
                [*done, *(make_record(number, TrialState.RUNNING, curve=()) for number in range(num_done, 400))]
            )
            now_s[0] += 0.6

    shares = [line.split(" · ")[-2] for line in stream.getvalue().splitlines()[1:]]
    assert shares == ["0%"] * 600 + ["100%"] * 200
