"""The one truth about a sweep, in three verbs: ask, report, tell. Runs on the driver.

It joins the journal, which is written before anything is acted on, the sampler, which chooses new points, and the scheduler,
which says who works next.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.beside import after_search
from tuner.distributions import distributions
from tuner.ending import excess_gib_of, explained, infeasible, new_steps
from tuner.errors import ResourcesError
from tuner.feasibility import misfit, too_large
from tuner.front import GIB, has_begun, objectives_of
from tuner.journal import Journal, SearchTrial, create_journal, open_journal, place_of
from tuner.prediction import Prediction
from tuner.recommend import baseline_specs, starting_points
from tuner.records import Records
from tuner.sampler import Proposer
from tuner.scheduler import Next, Scheduler, floor_of
from tuner.space import Suggestion, suggest
from tuner.trial import (
    Baseline,
    Decision,
    FailReason,
    Inspection,
    MemoryKind,
    Metrics,
    Outcome,
    Stop,
    StopReason,
    TrialRecord,
    TrialSpec,
    TrialState,
)
from tuner.without_gc import without_gc

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.layers import Layer

MOST_INFEASIBLE_IN_A_ROW = 100
"""New points that may be found infeasible one after another before the sweep says that nothing fits."""


class Study:
    """A sweep's trials, from the first ask to the last tell. Build one with `create_study` or `open_study`.

    Args:
        journal: Holds all that is known.
        config: The sweep.
        clock: Seconds, rising; for `search.budget.time_s`.
        propose: Chooses new points; only benchmarks name another.
    """

    def __init__(
        self,
        journal: Journal,
        config: SweepConfig,
        clock: Callable[[], float] = time.monotonic,
        propose: Callable[[Sequence[TrialRecord], SweepConfig, Sequence[Layer], int], Suggestion] | None = None,
    ) -> None:
        self._propose = propose or Proposer()
        self._journal = journal
        self.close = journal.let_go  # a database's study is held
        self._config = config
        self._clock = clock
        self._start_s = clock() - journal.elapsed_s
        self._objectives = objectives_of(config)
        self._distributions = distributions(config.search.space)
        self.inspection: Inspection = journal.inspection
        """What was found out about model and data when the sweep began."""
        self._records = Records(journal.load_records())
        self._ended: list[TrialRecord] = []
        self._scheduler = Scheduler(config, self._objectives, floor_of(config, self.inspection))
        self._spent_steps, self._num_begun = 0, 0
        self._kinds: set[MemoryKind] = set()
        for record in self.records:
            self._recall(record)
        self._unfinished = [record.spec for record in self.records if record.state is TrialState.RUNNING]
        self._baselines = [spec for spec in baseline_specs(config, self.inspection) if spec.number not in self._records]
        self._retried = {
            record.number
            for record in self.records
            if record.spec.scores is not None and record.state is TrialState.FAIL
        }
        """Scorings that failed under an earlier driver: whoever resumes has mended the cause."""
        self._is_over = False
        self.is_interrupted = False
        """Whether nothing more is given out though the sweep is not finished."""
        self.problem = ""
        """What keeps the sweep from going on; empty where somebody has asked for the interruption, or nobody has."""
        self.predict: Callable[[TrialSpec, Gpu | None], Prediction | None] = lambda *_: None
        """Tells a trial's peak memory before it begins, on a card or the sweep's, where it can; set by who drives the sweep."""

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials, by number; baselines and audits last."""
        return self._records.all

    @property
    def is_over(self) -> bool:
        """Whether `ask` will never give out a trial again; if not, it may once a trial at work has reported."""
        return self._is_over or self.is_interrupted

    def interrupt(self, problem: str = "") -> None:
        """Give out nothing more; trials at work save their state, and the sweep can be resumed.

        Args:
            problem: What keeps the sweep from going on, such as a full disk; the first one counts.
        """
        self.is_interrupted = True
        self.problem = self.problem or problem

    def ask(self) -> TrialSpec | None:
        """The next trial to work on; None when there is none now.

        First come those that a killed driver left running, then baselines, then new ones and paused ones as the scheduler says,
        then the audit, at last the front's scores on the test data and its best from other seeds. What is sampled depends on the
        sweep's seed, the trial's number and what was told before.

        Raises:
            ResourcesError: No trial of the space seems to fit into `resources.memory_limit_gib`.
        """
        if self.is_interrupted:
            return None
        return self._next_given() or self._next_chosen()

    def _next_given(self) -> TrialSpec | None:
        """What needs no choice: trials that were left running, and baselines."""
        if self._unfinished:
            return self._unfinished.pop(0)
        while self._baselines:
            if (spec := self._begun(self._baselines.pop(0))) is not None:
                return spec
        return None

    def _next_chosen(self) -> TrialSpec | None:
        choice = self._scheduler.choose(may_begin=self._may_begin, left_steps=self._left_steps)
        self._stop(self._scheduler.take_stopped())
        if choice is Next.BEGIN:
            return self._begin()
        if isinstance(choice, int):
            return self._go_on(choice)
        if not self._scheduler.is_idle:
            return None
        self._stop(self._scheduler.stop_all_waiting())
        spec = self._next_after_search()
        self._is_over = spec is None
        return spec

    def report(self, number: int, metrics: Metrics) -> Decision:
        """Take in a trial's results at a rung.

        A repeated report changes nothing, and lets a trial go on that was given out again.

        Args:
            number: A running trial.
            metrics: Its results; `metrics.steps` is the rung.
        """
        record = self._records[number]
        metrics = self._as_predicted(record, metrics)
        known = {known.steps: known for known in record.curve}
        if metrics.steps not in known:
            self._journal.write_metrics(number, metrics)
            self._records.keep(dataclasses.replace(record, curve=(*record.curve, metrics)))
            self._spent_steps += new_steps(record, metrics)
        elif new := [remark for remark in metrics.remarks if remark not in known[metrics.steps].remarks]:
            self._remark(record, known[metrics.steps], new)
        if self._is_too_large(number, metrics):
            return Decision.PRUNE
        if metrics.steps >= self._config.training.max_steps or record.spec.baseline is Baseline.ZERO_SHOT:
            return self._finished(number, metrics)
        if not record.spec.is_searched or self._scheduler.has_gone_on(number, metrics.steps):
            return Decision.CONTINUE
        return self._decided(number, metrics)

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Close a trial.

        A finished trial whose memory was measured in another way than the sweep's first ends as FAIL: the numbers could not
        be compared. One that ran out of memory ends as INFEASIBLE.

        Args:
            number: A running trial; a finished one must have reported its last rung.
            outcome: How it ended.
        """
        record = self._records[number]
        stop = self._scheduler.end(number, is_finished=outcome.state is TrialState.COMPLETE)
        if outcome.state is TrialState.COMPLETE:
            return self._close(record, self._checked(record, outcome))
        return self._close(record, explained(outcome, stop))

    def take_ended(self) -> tuple[TrialRecord, ...]:
        """Trials that have ended since the last call."""
        ended, self._ended = self._ended, []
        return tuple(ended)

    @property
    def _may_begin(self) -> bool:
        """Whether the search has trials left; one that was infeasible before it began has cost nothing and does not count."""
        return self._num_begun < self._config.search.num_trials

    @property
    def _left_steps(self) -> float:
        """Steps left in the budget; what is left in seconds counts by the sweep's pace so far."""
        budget = self._config.search.budget
        left = math.inf if budget.steps is None else budget.steps - self._spent_steps
        if budget.time_s is None or not self._spent_steps:
            return left
        elapsed_s = self._clock() - self._start_s
        return min(left, (budget.time_s - elapsed_s) / elapsed_s * self._spent_steps)

    def _recall(self, record: TrialRecord) -> None:
        """Take in what the journal knows."""
        if record.state is TrialState.COMPLETE and record.last:
            self._kinds.add(record.last.memory_kind)
        if not record.spec.is_searched:
            self._set_floor(record)
            return
        for metrics in record.curve:
            self._scheduler.learn(record.number, metrics)
        steps = record.last.steps if record.last else 0
        if record.state is TrialState.PAUSED:
            self._scheduler.wait(record.number, steps)
        elif record.state is TrialState.RUNNING:
            self._scheduler.begin(record.number, steps)
        elif record.state is TrialState.COMPLETE:
            self._scheduler.end(record.number, is_finished=True)
        self._spent_steps += steps
        self._num_begun += has_begun(record)

    def _begin(self) -> TrialSpec:
        """A new trial; infeasible ones before it are written down as such."""
        detail = ""
        for _ in range(MOST_INFEASIBLE_IN_A_ROW):
            spec, trial = self._next_point()
            record = self._written(spec, trial)
            found = too_large(record, self._config, self.inspection.model, self._records.searched)
            if found is None:
                self._scheduler.begin(spec.number)
                self._num_begun += 1
                return spec
            detail, excess_gib = found
            self._close(record, infeasible(detail), excess_gib)
        msg = f"resources.memory_limit_gib: {MOST_INFEASIBLE_IN_A_ROW} points in a row do not fit; the last: {detail}"
        raise ResourcesError(msg)

    def _next_point(self) -> tuple[TrialSpec, SearchTrial | None]:
        """A point that waits in the journal, with its trial there, or else a new one."""
        config, layers = self._config, self.inspection.model.layers
        number, is_given = self._journal.next_number()
        trial = self._journal.begin() if is_given else None
        if trial is not None:
            suggestion = suggest(trial, config.search.space, layers)
        else:
            suggestion = self._propose(self._records.searched, config, layers, number)
        return suggestion.as_spec(number, seed=config.training.seed), trial

    def _go_on(self, number: int) -> TrialSpec:
        record = self._records[number]
        self._journal.write_pause(number, is_paused=False)
        self._scheduler.go_on(number)
        self._records.keep(dataclasses.replace(record, state=TrialState.RUNNING))
        return record.spec

    def _begun(self, spec: TrialSpec) -> TrialSpec | None:
        """A trial beside the search; None if it is known not to fit."""
        record = self._written(spec)
        if (found := misfit(record, self._config)) is None:
            return spec
        self._close(record, infeasible(found[0]), found[1])
        return None

    def _written(self, spec: TrialSpec, trial: SearchTrial | None = None) -> TrialRecord:
        """A trial that stands in the journal, with what is known of its memory."""
        prediction = self.predict(spec, None)
        if trial is None and spec.is_searched:
            self._journal.write_new(spec, self._distributions, prediction)
        else:
            self._journal.write_spec(spec, trial, prediction)
        return self._records.keep(TrialRecord(spec=spec, state=TrialState.RUNNING, prediction=prediction))

    def _as_predicted(self, record: TrialRecord, metrics: Metrics) -> Metrics:
        """On a CPU the memory that counts is what the trial would need on the card that the sweep names."""
        if record.prediction is None or metrics.memory_kind is not MemoryKind.CPU_ALLOCATED:
            return metrics
        return dataclasses.replace(
            metrics,
            peak_memory_bytes=record.prediction.allocated_bytes,
            peak_reserved_bytes=record.prediction.reserved_bytes,
            memory_kind=MemoryKind.PREDICTED,
        )

    def _remark(self, record: TrialRecord, metrics: Metrics, remarks: Sequence[str]) -> None:
        """Add to a report what befell the trial after it."""
        more = dataclasses.replace(metrics, remarks=(*metrics.remarks, *remarks))
        self._journal.write_metrics(record.number, more)
        self._records.keep(
            dataclasses.replace(record, curve=tuple(more if one is metrics else one for one in record.curve))
        )

    def _decided(self, number: int, metrics: Metrics) -> Decision:
        decision = self._scheduler.report(number, metrics, may_begin=self._may_begin, left_steps=self._left_steps)
        if decision is Decision.PAUSE:
            self._journal.write_pause(number, is_paused=True)
            self._records.keep(dataclasses.replace(self._records[number], state=TrialState.PAUSED))
        self._stop(self._scheduler.take_stopped())
        return decision

    def _stop(self, stops: Mapping[int, Stop]) -> None:
        """Close paused trials."""
        for number, stop in stops.items():
            self._close(self._records[number], explained(Outcome(state=TrialState.PRUNED), stop))

    def _next_after_search(self) -> TrialSpec | None:
        """The next that stands beside the search; what does not fit is written down as such."""
        while (spec := next(self._after_search(), None)) is not None:
            if (begun := self._begun(spec)) is not None:
                return begun
        return None

    def _after_search(self) -> Iterator[TrialSpec]:
        return after_search(self.records, self._config, self.inspection, self._retried)

    def _finished(self, number: int, metrics: Metrics) -> Decision:
        if number >= 0:
            self._scheduler.learn(number, metrics)
        return Decision.FINISH

    def _is_too_large(self, number: int, metrics: Metrics) -> bool:
        limit = self._config.resources.memory_limit_gib
        if limit is None or number < 0 or metrics.peak_memory_bytes <= limit * GIB:
            return False
        detail = f"measured {metrics.peak_memory_bytes / GIB:.2f} GiB, the limit is {limit:g} GiB"
        self._scheduler.stop(number, Stop(reason=StopReason.MEMORY, detail=detail))
        return True

    def _set_floor(self, record: TrialRecord) -> None:
        """The zero-shot baseline is a floor as soon as it is known."""
        if record.spec.baseline is Baseline.ZERO_SHOT and record.last and self._config.pruning.floor == "auto":
            floor = self._config.metric.loss(record.last.accuracy)
            self._scheduler.floor = min(floor, self._scheduler.floor)

    def _close(self, record: TrialRecord, outcome: Outcome, excess_gib: float = 0.0) -> TrialRecord:
        values = None
        if outcome.state is TrialState.COMPLETE and record.last:
            values = [objective.of(record.last) for objective in self._objectives]
            self._kinds.add(record.last.memory_kind)
        self._journal.close(
            record.number, outcome, values, excess_gib or excess_gib_of(record, self._config.resources.memory_limit_gib)
        )
        if self._config.search.budget.time_s is not None:
            self._journal.write_elapsed(self._clock() - self._start_s)
        closed = self._records.keep(dataclasses.replace(record, state=outcome.state, outcome=outcome))
        self._ended.append(closed)
        self._set_floor(closed)
        return closed

    def _checked(self, record: TrialRecord, outcome: Outcome) -> Outcome:
        if record.last is None or self._kinds <= {record.last.memory_kind}:
            return outcome
        detail = f"{record.last.memory_kind}, the sweep's trials: {', '.join(self._kinds)}"
        return Outcome(state=TrialState.FAIL, reason=FailReason.MEMORY_KIND, detail=detail)


def create_study(file: Path, config: SweepConfig, inspection: Inspection) -> Study:
    """Begin a sweep's study in a new journal; recommended starting points wait in it to be tried first."""
    points = starting_points(config, inspection)[: config.search.num_trials]
    place, objectives = place_of(file, config), objectives_of(config)
    return Study(create_journal(place, config.name, objectives, inspection, points), config)


def open_study(file: Path, config: SweepConfig, clock: Callable[[], float] = time.monotonic) -> Study:
    """Read a sweep's study from its journal, to go on with it; the folder's lock is held.

    Raises:
        FolderError: There is no journal of this sweep, it is damaged, or another driver writes in the database.
    """
    with without_gc():
        return Study(open_journal(place_of(file, config), config.name, is_read_only=False), config, clock)
