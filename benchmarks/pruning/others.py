"""Other libraries' stopping rules on recorded curves, through their own calls: `python benchmarks/pruning/others.py TASK`.

Optuna 5.0.0, Ray Tune 2.60.0 and Syne Tune 0.16.0 choose points and stop trials as they do in a sweep; `Replay` stands where
their loops stand. No cluster is started and nothing is trained.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import optuna
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from recording import Recording
from replay import Finish, Trial, run_side_by_side
from syne_tune.backend.trial_status import Trial as SyneTuneTrial
from syne_tune.config_space import choice, loguniform, uniform
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA
from syne_tune.optimizer.schedulers.multiobjective.non_dominated_priority import compute_epsilon_net, pareto_efficient

from tuner.dimensions import Range
from tuner.pareto import FloatArray
from tuner.space import Searched, SuggestingTrial, dimensions
from tuner.trial import Metrics, ParamValue, TrialState

REDUCTION_FACTOR = 2
"""Puts the rungs of every library where the curves were scored."""
RAY_REDUCTION_FACTOR = 4
"""Ray's default: ASHA decides at every other rung."""

Params = dict[str, ParamValue]
Handle = TypeVar("Handle")
"""A library's own trial."""


class Library(Protocol[Handle]):
    """A search of another library, as its own loop drives it."""

    def ask(self) -> tuple[Handle, Params]:
        """A new trial and its point."""

    def stops(self, trial: Handle, report: Metrics) -> bool:
        """Take in a trial's results at a rung and say whether to stop it; not heeded at the last rung."""

    def tell(self, trial: Handle, report: Metrics, state: TrialState) -> None:
        """Take in how a trial ended, with its last results."""


class Replay(Generic[Handle]):
    """A search over a recording, run until all configurations are used.

    Args:
        recording: The curves.
        library: Chooses and stops; it is used up.
    """

    def __init__(self, recording: Recording, library: Library[Handle]) -> None:
        self.finishes: list[Finish] = []
        self.spent_steps = 0
        self._recording = recording
        self._library = library
        self._used: set[int] = set()
        run_side_by_side(self._next_trial)

    def _next_trial(self) -> Trial | None:
        if len(self._used) == len(self._recording.curves):
            return None
        trial, params = self._library.ask()
        index = self._recording.nearest(params, self._used)
        self._used.add(index)
        return self._life(trial, index)

    def _life(self, trial: Handle, index: int) -> Trial:
        steps = 0
        for report in self._recording.curves[index].reports:
            yield report.steps - steps
            self.spent_steps += report.steps - steps
            steps = report.steps
            is_stopped = self._library.stops(trial, report)
            if steps == self._recording.rungs[-1]:
                self.finishes.append(Finish(spent_steps=self.spent_steps, curve=index))
                self._library.tell(trial, report, TrialState.COMPLETE)
                return
            if is_stopped:
                self._library.tell(trial, report, TrialState.PRUNED)
                return
        self._library.tell(trial, self._recording.curves[index].reports[-1], TrialState.FAIL)  # it diverged


def sample(trial: SuggestingTrial, recording: Recording) -> Params:
    """Ask an Optuna trial for a point, define-by-run: a rank of its own only where the targets have one."""
    params: Params = {}
    for name, dimension in dimensions(recording.config.search.space).items():
        if not is_idle(name, params, recording):
            params[name] = _suggested(trial, name, dimension)
    return params


def is_idle(name: str, params: Params, recording: Recording) -> bool:
    """Whether a parameter is a rank of its own that no recorded configuration with these targets has."""
    if not name.startswith("rank_pattern."):
        return False
    alike = (curve.params for curve in recording.curves if curve.params["target_modules"] == params["target_modules"])
    return not any(name in other for other in alike)


def _suggested(trial: SuggestingTrial, name: str, dimension: Searched) -> ParamValue:
    if isinstance(dimension, Range):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    value: ParamValue = trial.suggest_categorical(name, [*dimension.choices])
    return value


def _domain(dimension: Searched) -> Any:  # noqa: ANN401 -- Syne Tune has no types
    if isinstance(dimension, Range):
        return (loguniform if dimension.log else uniform)(dimension.low, dimension.high)
    return choice([*dimension.choices])


@dataclass(frozen=True, kw_only=True, slots=True)
class OptunaStudy:
    """Optuna's ask and tell."""

    recording: Recording
    """Gives the space."""
    study: optuna.Study
    """Accuracy alone, with a pruner; or accuracy, parameters and memory, where Optuna has no pruning."""

    def ask(self) -> tuple[optuna.Trial, Params]:
        """A point of the sampler."""
        trial = self.study.ask()
        return trial, sample(trial, self.recording)

    def stops(self, trial: optuna.Trial, report: Metrics) -> bool:
        """Ask the pruner."""
        if len(self.study.directions) > 1:
            return False  # Trial.report raises
        trial.report(report.accuracy, report.steps)
        return trial.should_prune()

    def tell(self, trial: optuna.Trial, report: Metrics, state: TrialState) -> None:
        """Values of a finished trial; of a pruned one Optuna itself takes the last report."""
        values = (report.accuracy, report.trainable_params, report.peak_memory_bytes)[: len(self.study.directions)]
        is_complete = state is TrialState.COMPLETE
        self.study.tell(trial, values if is_complete else None, state=optuna.trial.TrialState[state])


def _random_search(recording: Recording, seed: int) -> OptunaStudy:
    return _without_stopping(recording, optuna.samplers.RandomSampler(seed=seed))


def _no_stopping(recording: Recording, seed: int) -> OptunaStudy:
    return _without_stopping(recording, _tpe(seed))


def _optuna_median(recording: Recording, seed: int) -> OptunaStudy:
    return _with_pruner(recording, seed, optuna.pruners.MedianPruner())


def _optuna_hyperband(recording: Recording, seed: int) -> OptunaStudy:
    first, last = recording.rungs[0], recording.rungs[-1]
    pruner = optuna.pruners.HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=REDUCTION_FACTOR)
    return _with_pruner(recording, seed, pruner)


def _without_stopping(recording: Recording, sampler: optuna.samplers.BaseSampler) -> OptunaStudy:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    return OptunaStudy(recording=recording, study=study)


def _with_pruner(recording: Recording, seed: int, pruner: optuna.pruners.BasePruner) -> OptunaStudy:
    # Hyperband deals out its brackets by a hash of the study's name, which is a random one by default.
    name = f"{recording.task} {seed}"
    study = optuna.create_study(direction="maximize", sampler=_tpe(seed), pruner=pruner, study_name=name)
    return OptunaStudy(recording=recording, study=study)


def _tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTrial:
    """What ASHA and OptunaSearch look at of Ray's `Trial`."""

    trial_id: str
    """Different for each."""


class RayAsha:
    """Ray Tune's ASHA with OptunaSearch, both on accuracy, called in the order of Ray's `TuneController`.

    Args:
        recording: Gives space and rungs.
        seed: Of OptunaSearch.
        reduction_factor: About one of so many goes on at each rung; a power of 2.

    Raises:
        ValueError: ASHA decides where the curves were not scored.
    """

    def __init__(self, recording: Recording, seed: int, *, reduction_factor: int) -> None:
        space = functools.partial(sample, recording=recording)
        self._searcher = OptunaSearch(space, metric="accuracy", mode="max", seed=seed)
        self._scheduler: Any = ASHAScheduler(  # its methods want a controller and Ray's Trial
            metric="accuracy",
            mode="max",
            max_t=recording.rungs[-1],
            grace_period=recording.rungs[0],
            reduction_factor=reduction_factor,
        )
        self._num_asked = 0
        if self.rungs != recording.rungs[:: round(math.log2(reduction_factor))]:
            msg = f"ASHA decides after {self.rungs} steps; the curves were scored after {recording.rungs}"
            raise ValueError(msg)

    @property
    def rungs(self) -> tuple[int, ...]:
        """Steps of ASHA's rungs, rising."""
        (bracket,) = self._scheduler._brackets  # noqa: SLF001 -- nothing public says it
        return tuple(sorted(milestone for milestone, _ in bracket._rungs))  # noqa: SLF001 -- as above

    def ask(self) -> tuple[RayTrial, Params]:
        """A point of OptunaSearch."""
        trial = RayTrial(trial_id=f"{self._num_asked:05d}")
        self._num_asked += 1
        params = self._searcher.suggest(trial.trial_id)
        self._scheduler.on_trial_add(None, trial)
        return trial, params or {}

    def stops(self, trial: RayTrial, report: Metrics) -> bool:
        """Ask ASHA; OptunaSearch hears of results that do not end the trial."""
        result = _ray_result(report)
        if self._scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            return True
        self._searcher.on_trial_result(trial.trial_id, result)
        return False

    def tell(self, trial: RayTrial, report: Metrics, state: TrialState) -> None:
        """To OptunaSearch a stopped trial is complete: its last accuracy stands as its final one."""
        if state is TrialState.FAIL:
            self._scheduler.on_trial_error(None, trial)
            self._searcher.on_trial_complete(trial.trial_id, error=True)
            return
        self._scheduler.on_trial_complete(None, trial, _ray_result(report))
        self._searcher.on_trial_complete(trial.trial_id, result=_ray_result(report))


def _ray_result(report: Metrics) -> dict[str, float]:
    return {"training_iteration": report.steps, "accuracy": report.accuracy}


LOSSES = ("error", "log10_params", "memory_gib")
"""Columns of `Recording.losses`."""
EPOCH = dt.datetime.fromtimestamp(0, tz=dt.UTC)
Priority = Callable[[FloatArray], npt.NDArray[np.int64]]
"""Losses of a rung, the newcomer's last -> a number for each; the lowest goes on first."""


class MoAsha:
    """Syne Tune's multi-objective ASHA, which samples at random, called in the order of its `Tuner`.

    Args:
        recording: Gives space and rungs.
        seed: Of the random points.
        priority: How a rung is ordered; Syne Tune's default if None.
    """

    def __init__(self, recording: Recording, seed: int, *, priority: Priority | None = None) -> None:
        space = {name: _domain(dimension) for name, dimension in dimensions(recording.config.search.space).items()}
        self._scheduler = MOASHA(
            space,
            metrics=list(LOSSES),
            time_attr="steps",
            multiobjective_priority=priority,
            max_t=recording.rungs[-1],
            grace_period=recording.rungs[0],
            reduction_factor=REDUCTION_FACTOR,
            random_seed=seed,
        )
        self._recording = recording
        self._seed = seed
        self._num_asked = 0

    def ask(self) -> tuple[SyneTuneTrial, Params]:
        """A random point; its space knows no conditions, so that idle ranks are taken out."""
        with _numpy_seeded(self._seed, self._num_asked):
            params: Params = self._scheduler.suggest().config
            trial = SyneTuneTrial(self._num_asked, params, creation_time=EPOCH)
            self._scheduler.on_trial_add(trial)
        self._num_asked += 1
        return trial, {name: value for name, value in params.items() if not is_idle(name, params, self._recording)}

    def stops(self, trial: SyneTuneTrial, report: Metrics) -> bool:
        """Ask MO-ASHA."""
        losses = self._recording.losses([report])[0].tolist()
        result = {"steps": report.steps, **dict(zip(LOSSES, losses, strict=True))}
        return bool(self._scheduler.on_trial_result(trial, result) == SchedulerDecision.STOP)

    def tell(self, trial: SyneTuneTrial, report: Metrics, state: TrialState) -> None:  # noqa: ARG002 -- the protocol's
        """MO-ASHA also stops a trial at its last rung, so that `Tuner` removes it like any stopped one."""
        if state is TrialState.FAIL:
            self._scheduler.on_trial_error(trial)
        else:
            self._scheduler.on_trial_remove(trial)


def fronts_first(losses: FloatArray) -> npt.NDArray[np.int64]:
    """Priorities as Syne Tune describes them: front by front; in each the lowest error first, then spread out.

    Those that it computes (0.16.0) take ranks and sorted indices for each other, twice: `nondominated_sort` returns
    sorted indices, which `Bracket` reads as each point's rank; and `compute_epsilon_net` returns each point's rank,
    which `nondominated_sort` reads as sorted indices.

    Source: Salinas et al., A multi-objective perspective on jointly tuning hardware and hyperparameters, NAS@ICLR 2021.
    """
    priorities = np.empty(len(losses), dtype=np.int64)
    rest = np.arange(len(losses))
    while rest.size:
        is_on_front = pareto_efficient(losses[rest])
        front = rest[is_on_front]
        priorities[front] = len(losses) - len(rest) + compute_epsilon_net(losses[front], dim=0)
        rest = rest[~is_on_front]
    return priorities


@contextlib.contextmanager
def _numpy_seeded(*seed: int) -> Iterator[None]:
    """`MOASHA.suggest` draws from numpy's global generator and leaves its `random_seed` unused (syne-tune 0.16.0)."""
    state = np.random.get_state()  # noqa: NPY002 -- this is the one
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


LIBRARIES: dict[str, Callable[[Recording, int], Library[Any]]] = {
    "random search": _random_search,
    "no stopping (TPE)": _no_stopping,
    "Ray ASHA + OptunaSearch": functools.partial(RayAsha, reduction_factor=REDUCTION_FACTOR),
    "Ray ASHA + OptunaSearch (factor 4)": functools.partial(RayAsha, reduction_factor=RAY_REDUCTION_FACTOR),
    "Optuna median": _optuna_median,
    "Optuna Hyperband": _optuna_hyperband,
    "Syne Tune MO-ASHA": MoAsha,
    "Syne Tune MO-ASHA (priority mended)": functools.partial(MoAsha, priority=fronts_first),
}
"""Method -> what builds it for a recording and a seed."""

Method = Callable[[Recording, int], list[Finish]]


def _finishes(recording: Recording, seed: int, *, build: Callable[[Recording, int], Library[Any]]) -> list[Finish]:
    return Replay(recording, build(recording, seed)).finishes


OTHERS: dict[str, Method] = {name: functools.partial(_finishes, build=build) for name, build in LIBRARIES.items()}
"""Method -> its replay; equal recordings and seeds give equal ones."""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def main() -> None:
    """Print what each method finishes and spends."""
    recording = Recording(sys.argv[1])
    print(f"{recording.task}: {len(recording.curves)} configurations, {recording.full_steps} steps in full")
    for name, build in LIBRARIES.items():
        start = time.perf_counter()
        replay = Replay(recording, build(recording, 0))
        took_s = time.perf_counter() - start
        print(f"{name:36}{len(replay.finishes):4} finished  {replay.spent_steps:6} steps  {took_s:5.1f} s")


if __name__ == "__main__":
    main()
