"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere. Runs on the driver."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from tuner import metric_text
from tuner.front import GIB, front, has_begun, objectives_of
from tuner.trial import Baseline, Inspection, Metric, TrialRecord, TrialState, param_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.config import SweepConfig

MANY = 300
"""Trials from which on the time left is not found anew for each line."""


class View(Protocol):
    """Shows a sweep that runs."""

    def watching(
        self, config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord]
    ) -> contextlib.AbstractContextManager[None]:
        """Show from here to the end of the block."""

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Something has changed."""


class NoView:
    """Shows nothing."""

    def watching(
        self, config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord]
    ) -> contextlib.AbstractContextManager[None]:
        """Do nothing."""
        del config, inspection, records
        return contextlib.nullcontext()

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Do nothing."""


class Progress:
    """Steps done and to come, and the time left by the rate so far.

    Args:
        config: The sweep.
        records: Trials known at the start; what they have done took no time of ours.
        clock: Seconds, rising.
    """

    def __init__(self, config: SweepConfig, records: Sequence[TrialRecord], clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._start_s = clock()
        self._steps_before = steps_done(records)

    def left_s(self, records: Sequence[TrialRecord]) -> float | None:
        """Seconds to the end if things go on as they did; None before anything was done."""
        done_now = steps_done(records) - self._steps_before
        if done_now <= 0:
            return None
        return (self._clock() - self._start_s) / done_now * steps_to_come(self._config, records)

    def share(self, records: Sequence[TrialRecord]) -> float:
        """Share of the work that is done, in [0, 1]."""
        done = steps_done(records)
        return done / max(1, done + steps_to_come(self._config, records))


def steps_done(records: Sequence[TrialRecord]) -> int:
    """Optimizer steps of all that was trained so far, as far as reported; an audit goes on from the stopped trial."""
    return sum(max(0, _steps_of(record) - _steps_before(record, records)) for record in records)


def _steps_of(record: TrialRecord) -> int:
    return record.last.steps if record.last else 0


def _steps_before(record: TrialRecord, records: Sequence[TrialRecord]) -> int:
    """Where an audit goes on, and all that a trial has which is scored alone; 0 for all others."""
    if record.spec.scores is not None:
        return _steps_of(record)
    number = record.spec.audits
    return 0 if number is None else next((_steps_of(record) for record in records if record.number == number), 0)


def steps_to_come(config: SweepConfig, records: Sequence[TrialRecord]) -> float:
    """Steps still expected.

    Trials not begun, running or paused take what ended trials took on average, within the budget. What stands beside the
    search is never stopped early.
    """
    trials = [record for record in records if record.spec.is_searched and has_begun(record)]
    ended = [record for record in trials if not record.state.is_open]
    mean = steps_done(ended) / len(ended) if ended else float(config.training.max_steps)
    rest = sum(max(0.0, mean - _steps_of(record)) for record in trials if record.state.is_open)
    rest += mean * max(0, config.search.num_trials - len(trials))
    if config.search.budget.steps is not None:
        rest = min(rest, max(0, config.search.budget.steps - steps_done(trials)))
    beside = _baseline_steps_to_come(config, records), _confirmed_steps_to_come(config, records)
    return rest + sum(beside) + _audit_steps_to_come(config, records)


def _baseline_steps_to_come(config: SweepConfig, records: Sequence[TrialRecord]) -> int:
    asked, max_steps = config.baselines, config.training.max_steps
    trained = [record for record in records if record.spec.baseline not in {None, Baseline.ZERO_SHOT}]
    num_asked = len(asked.head_only) + len(asked.full) + asked.unquantized_lora
    rest = sum(max_steps - _steps_of(record) for record in trained if record.state.is_open)
    return rest + max_steps * max(0, num_asked - len(trained))


def _confirmed_steps_to_come(config: SweepConfig, records: Sequence[TrialRecord]) -> int:
    """As if the front were as large as asked for."""
    begun = [record for record in records if record.spec.confirms is not None]
    rest = sum(config.training.max_steps - _steps_of(record) for record in begun if record.state.is_open)
    return rest + config.training.max_steps * max(0, config.confirm.top * config.confirm.seeds - len(begun))


def _audit_steps_to_come(config: SweepConfig, records: Sequence[TrialRecord]) -> float:
    """Of the stopped trials known so far; there may be more at the end."""
    max_steps = config.training.max_steps
    stopped = [record for record in records if record.spec.is_searched and record.state is TrialState.PRUNED]
    audits = [record for record in records if record.spec.audits is not None]
    running = (record for record in audits if record.state.is_open)
    rest = sum(max_steps - max(_steps_of(record), _steps_before(record, records)) for record in running)
    num_to_come = max(0, min(config.pruning.audit, len(stopped)) - len(audits))
    return rest + (num_to_come * (max_steps - steps_done(stopped) / len(stopped)) if num_to_come else 0.0)


class PlainView:
    """One line per change, for logs and pipes.

    Args:
        stream: Where lines go.
        clock: Seconds, rising.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._shown: dict[int, TrialRecord] = {}
        self._outlook_text, self._outlook_due_s = "", -math.inf

    @contextlib.contextmanager
    def watching(self, config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord]) -> Iterator[None]:
        """Say what begins."""
        self._config = config
        self._progress = Progress(config, records, self._clock)
        self._shown = {record.number: record for record in records}
        self._print(headline(config, inspection))
        yield

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Say what has changed."""
        for record in records:
            shown = self._shown.get(record.number)
            if shown is not record and shown != record:
                self._shown[record.number] = record
                self._print(self._line(record, records))

    def _line(self, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
        _, state, rung, result, params, memory, choices = row(record, self._config)
        name = f"trial {record.number:>3}" if record.spec.is_searched else record.spec.label
        parts = [name, f"{state:<8}", f"step {rung}"]
        if record.last:
            parts += [f"{metric_text.name(self._config.metric)} {result}", f"{params} params", memory]
        elif choices:
            parts.append(choices)
        if record.outcome and record.outcome.reason:
            parts.append(str(record.outcome.reason))
        elif record.outcome and record.outcome.stop:
            parts.append(": ".join(filter(None, (record.outcome.stop, record.outcome.detail))))
        return " · ".join([*parts, self._words_on_progress(records)])

    def _words_on_progress(self, records: Sequence[TrialRecord]) -> str:
        """The share done and the time left; of many trials found anew once a second, for it takes a look at each."""
        now_s = self._clock()
        if len(records) <= MANY or now_s >= self._outlook_due_s:
            left = clock_time(self._progress.left_s(records))
            self._outlook_text, self._outlook_due_s = f"{self._progress.share(records):.0%} · {left} left", now_s + 1.0
        return self._outlook_text

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveView:
    """A table of trials and a progress bar, redrawn in place.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: tuple[TrialRecord, ...] = ()

    @contextlib.contextmanager
    def watching(self, config: SweepConfig, inspection: Inspection, records: Sequence[TrialRecord]) -> Iterator[None]:
        """Take the terminal."""
        from rich.console import Console  # noqa: PLC0415 -- only terminals need it
        from rich.live import Live  # noqa: PLC0415

        self._config = config
        self._inspection = inspection
        self._records = tuple(records)
        self._progress = Progress(config, records, self._clock)
        self._console = Console(stderr=True)
        with Live(get_renderable=self._draw, console=self._console, refresh_per_second=2):
            yield

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Keep what the next redraw shows."""
        self._records = tuple(records)

    def _draw(self) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        table = Table(title=headline(self._config, self._inspection), title_justify="left", expand=True)
        for name, justify in columns(self._config.metric):
            table.add_column(name, justify=justify)
        table.columns[-1].no_wrap = True  # one row a trial, however narrow the terminal
        on_front = {record.number for record in front(self._records, objectives_of(self._config))}
        for record in visible(self._records, self._config.metric, rows=max(4, self._console.height - 8)):
            style = STYLES[record.state] + (" bold" if record.number in on_front else "")
            table.add_row(*row(record, self._config), style=style)
        foot = Table.grid(padding=(0, 1), expand=True)
        foot.add_column(ratio=1)
        foot.add_column(justify="right")
        share = self._progress.share(self._records)
        left = clock_time(self._progress.left_s(self._records))
        foot.add_row(
            ProgressBar(total=1.0, completed=share),
            f"{tally(self._records, self._config)} · {len(on_front)} on the front (bold) · {share:.0%} · {left} left",
        )
        return Group(table, foot)


STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "yellow",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "dim",
    TrialState.INFEASIBLE: "dim red",
    TrialState.FAIL: "red",
}


def headline(config: SweepConfig, inspection: Inspection) -> str:
    """What is searched on what, in one line."""
    data = f"{inspection.num_train:,} train, {inspection.num_validation:,} validation, {inspection.num_test:,} test"
    answers = [f"{len(inspection.labels)} classes"] if inspection.labels else []
    majority = f"always the commonest {'class' if inspection.labels else 'completion'}: {inspection.majority_share:.1%}"
    counts = ((inspection.num_duplicates, "duplicate"), (inspection.num_too_long, "too long"))
    left_out = ", ".join(f"{count:,} {words}" for count, words in counts if count)
    rest = [f"left out: {left_out}"] if left_out else []
    return " · ".join([f"{config.name}: {config.search.num_trials} trials", data, *rest, *answers, majority])


def columns(metric: Metric) -> tuple[tuple[str, Literal["left", "right"]], ...]:
    """(heading, side) of a trial's cells."""
    return (
        ("trial", "left"),
        ("state", "left"),
        ("rung", "right"),
        (metric_text.name(metric), "right"),
        ("params", "right"),
        ("memory", "right"),
        ("choices", "left"),
    )


def row(record: TrialRecord, config: SweepConfig) -> tuple[str, ...]:
    """A trial's cells, in the order of `columns`; a baseline says what it is before its choices."""
    last, number = record.last, _number_text(record)
    rung = f"{_steps_of(record)}/{config.training.max_steps}"
    if record.spec.baseline is Baseline.ZERO_SHOT:
        rung = "0"
    baseline = [str(record.spec.baseline)] if record.spec.baseline else []
    choices = " ".join([*baseline, *(f"{name}={param_text(value)}" for name, value in record.spec.params)])
    state = record.outcome.reason if record.outcome and record.outcome.reason else record.state
    if last is None:
        return (number, str(state), rung, "", "", "", choices)
    result = metric_text.text(config.metric, last.accuracy)
    memory = f"{last.peak_memory_bytes / GIB:.3f} GiB"
    return (number, str(state), rung, result, f"{last.trainable_params:,}", memory, choices)


def _number_text(record: TrialRecord) -> str:
    if record.spec.audits is not None:
        return f"audit of {record.spec.audits}"
    if record.spec.scores is not None:
        return f"test of {record.spec.scores}"
    if record.spec.confirms is not None:
        return f"{record.spec.confirms} again"
    return f"baseline {-record.number}" if record.spec.baseline else str(record.number)


def visible(records: Sequence[TrialRecord], metric: Metric, *, rows: int) -> list[TrialRecord]:
    """The trials and what stands beside them worth a row: running ones, then finished, then paused ones, the best first."""
    order = (TrialState.COMPLETE, TrialState.PAUSED)

    def place(record: TrialRecord) -> tuple[int, float]:
        rank = order.index(record.state) if record.state in order else len(order)
        return rank, metric.loss(record.last.accuracy) if record.last else math.inf

    shown = [record for record in records if record.spec.scores is None or record.state is TrialState.RUNNING]
    running = [record for record in shown if record.state is TrialState.RUNNING]
    others = [record for record in shown if record.state is not TrialState.RUNNING]
    return [*running, *sorted(others, key=place)][:rows]


def tally(records: Sequence[TrialRecord], config: SweepConfig) -> str:
    """How many trials of the search have ended, of how many, and how many wait."""
    trials = [record for record in records if record.spec.is_searched and has_begun(record)]
    num_ended = sum(not record.state.is_open for record in trials)
    num_paused = sum(record.state is TrialState.PAUSED for record in trials)
    paused = f", {num_paused} paused" if num_paused else ""
    return f"{num_ended}/{config.search.num_trials} trials{paused}"


def clock_time(seconds: float | None) -> str:
    """`1:05:09`, or `-:--` where it is not known yet."""
    if seconds is None:
        return "-:--"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"
