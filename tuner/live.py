"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere. Runs on the driver."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TextIO

from tuner.front import GIB, front, objectives_of
from tuner.trial import Inspection, TrialRecord, TrialState, param_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.config import SweepConfig


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
    """Optimizer steps of all trials so far, as far as reported."""
    return sum(record.last.steps for record in records if record.last)


def steps_to_come(config: SweepConfig, records: Sequence[TrialRecord]) -> float:
    """Steps still expected: trials not begun take what ended trials took on average."""
    max_steps = config.training.max_steps
    ended = [record for record in records if record.state is not TrialState.RUNNING]
    mean = steps_done(ended) / len(ended) if ended else float(max_steps)
    running = [record for record in records if record.state is TrialState.RUNNING]
    rest = sum(max(0.0, mean - (record.last.steps if record.last else 0)) for record in running)
    return rest + mean * (config.search.num_trials - len(records))


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
            if self._shown.get(record.number) != record:
                self._shown[record.number] = record
                self._print(self._line(record, records))

    def _line(self, record: TrialRecord, records: Sequence[TrialRecord]) -> str:
        cells = dict(zip(COLUMNS, row(record, self._config), strict=True))
        parts = [f"trial {cells['trial']:>3}", f"{cells['state']:<8}", f"step {cells['rung']}"]
        if record.last:
            parts += [f"accuracy {cells['accuracy']}", f"{cells['params']} params", cells["memory"]]
        else:
            parts.append(cells["choices"])
        if record.outcome and record.outcome.reason:
            parts.append(str(record.outcome.reason))
        left = self._progress.left_s(records)
        return " · ".join([*parts, f"{self._progress.share(records):.0%}", f"{clock_time(left)} left"])

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

        table = Table(*COLUMNS, title=headline(self._config, self._inspection), title_justify="left", expand=True)
        for name in ("rung", "accuracy", "params", "memory"):
            table.columns[COLUMNS.index(name)].justify = "right"
        table.columns[-1].no_wrap = True  # one row a trial, however narrow the terminal
        on_front = {record.number for record in front(self._records, objectives_of(self._config))}
        for record in visible(self._records, rows=max(4, self._console.height - 8)):
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


COLUMNS = ("trial", "state", "rung", "accuracy", "params", "memory", "choices")
STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETE: "green",
    TrialState.PRUNED: "dim",
    TrialState.FAIL: "red",
}


def headline(config: SweepConfig, inspection: Inspection) -> str:
    """What is searched on what, in one line."""
    data = f"{inspection.num_train:,} train, {inspection.num_validation:,} validation, {inspection.num_test:,} test"
    majority = f"always the commonest class: {inspection.majority_share:.1%}"
    return f"{config.name}: {config.search.num_trials} trials · {data} · {len(inspection.labels)} classes · {majority}"


def row(record: TrialRecord, config: SweepConfig) -> tuple[str, ...]:
    """A trial's cells, in the order of COLUMNS."""
    last = record.last
    rung = f"{last.steps if last else 0}/{config.training.max_steps}"
    choices = " ".join(f"{name}={param_text(value)}" for name, value in record.spec.params)
    state = record.outcome.reason if record.outcome and record.outcome.reason else record.state
    if last is None:
        return (str(record.number), str(state), rung, "", "", "", choices)
    memory = f"{last.peak_memory_bytes / GIB:.3f} GiB"
    return (str(record.number), str(state), rung, f"{last.accuracy:.1%}", f"{last.trainable_params:,}", memory, choices)


def visible(records: Sequence[TrialRecord], *, rows: int) -> list[TrialRecord]:
    """The trials worth a row: running ones first, then by accuracy."""
    running = [record for record in records if record.state is TrialState.RUNNING]
    ended = [record for record in records if record.state is not TrialState.RUNNING]
    ended.sort(
        key=lambda record: (record.state is not TrialState.COMPLETE, -(record.last.accuracy if record.last else 0))
    )
    return [*running, *ended][:rows]


def tally(records: Sequence[TrialRecord], config: SweepConfig) -> str:
    """How many trials have ended, of how many."""
    ended = sum(record.state is not TrialState.RUNNING for record in records)
    return f"{ended}/{config.search.num_trials} trials"


def clock_time(seconds: float | None) -> str:
    """`1:05:09`, or `-:--` where it is not known yet."""
    if seconds is None:
        return "-:--"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"
