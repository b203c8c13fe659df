"""How trials are carried out: the contract between a study, a backend and a worker. Runs on the driver.

A backend asks the study for trials, has a worker train each from rung to rung, and hands in what comes back. It decides
nothing. The worker is named by a dotted path, so that the driver never imports its room.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tuner.errors import ClusterError
from tuner.trial import (
    Decision,
    Inspection,
    Interruption,
    Metrics,
    Outcome,
    Result,
    TrialRecord,
    TrialSpec,
    TrialState,
)

if TYPE_CHECKING:
    from tuner.config import SweepConfig
    from tuner.gpus import Gpu
    from tuner.prediction import Prediction

WORKER = "tuner.worker.host:Worker"
"""The worker that trains; a test may name another."""


class StudyVerbs(Protocol):
    """What a backend sees of a sweep."""

    @property
    def is_over(self) -> bool:
        """Whether `ask` will never give out a trial again."""

    @property
    def is_interrupted(self) -> bool:
        """Whether trials at work are to save their state and stop; `ask` gives out none then, and `is_over` is true."""

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """All trials as the journal has them."""

    def predict(self, spec: TrialSpec, gpu: Gpu, /) -> Prediction | None:
        """A trial's peak memory on a card; None where nobody can tell."""

    def ask(self) -> TrialSpec | None:
        """The next trial to work on, a new one or one that was paused; None when there is none now."""

    def report(self, number: int, metrics: Metrics) -> Decision:
        """Take in results at a rung."""

    def tell(self, number: int, outcome: Outcome) -> TrialRecord:
        """Close a trial."""

    def interrupt(self, problem: str) -> None:
        """Something keeps all trials from going on: the sweep is to stop so that it can be resumed."""


class TrialWorker(Protocol):
    """What a backend sees of a worker; see `tuner.worker.host.Worker`."""

    def inspect(self) -> Inspection:
        """Look at model and data; train nothing."""

    def listen(self, is_interrupted: Callable[[], bool]) -> None:
        """From now on ask this between steps."""

    def start(self, spec: TrialSpec) -> None:
        """Make a trial the current one."""

    def advance(self) -> Result:
        """Bring it to its next rung, to its failure, or to a stop in the midst that was asked for."""

    def close(self) -> None:
        """Drop it."""


WorkerFactory = Callable[["SweepConfig", Path | None], TrialWorker]
"""(sweep, its folder) -> worker; without a folder it keeps nothing on disk."""


class Backend(Protocol):
    """A way to carry out trials."""

    def inspect(self, config: SweepConfig) -> Inspection:
        """Have a worker look at model and data.

        Raises:
            ResourcesError: No node has what a trial asks for.
        """

    def run(self, config: SweepConfig, folder: Path, study: StudyVerbs) -> None:
        """Work until the study gives out no more trials and all that were given out are told."""

    def close(self) -> None:
        """Give back processes and cluster."""


def hand_in(study: StudyVerbs, number: int, result: Result) -> Decision:
    """Give the study what a worker brought; a trial that is over is told.

    Returns:
        CONTINUE if the trial goes on; else why it does not. A paused one is not told: `ask` gives it out again. Nor is one
        that was interrupted: it goes on when the sweep is resumed.
    """
    if isinstance(result, Interruption):
        if result.problem:
            study.interrupt(result.problem)
        return Decision.PAUSE
    if isinstance(result, Outcome):
        study.tell(number, result)
        return Decision.FINISH
    decision = study.report(number, result)
    if decision is Decision.PRUNE:
        study.tell(number, Outcome(state=TrialState.PRUNED))
    if decision is Decision.FINISH:
        study.tell(number, Outcome(state=TrialState.COMPLETE))
    return decision


def worker_environment(config: SweepConfig) -> dict[str, str]:
    """Environment of a process that trains; must be set before torch is imported.

    Threads that spin while they wait make steps 5 to 12 times slower as soon as another process computes, hence PASSIVE.
    """
    threads = str(max(1, int(config.resources.cpus_per_trial)))
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "KINETO_LOG_LEVEL": "6",  # torch's profiler prints a line per use below this
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def build_backend(name: str, worker: str = WORKER, address: str | None = None) -> Backend:
    """The backend of that name.

    Args:
        name: `ray` or `local`.
        worker: Dotted path of a `WorkerFactory`.
        address: Of a Ray cluster.

    Raises:
        ClusterError: The local backend has no cluster.
    """
    if name == "local":
        if address is not None:
            raise ClusterError(f"--address {address} names a Ray cluster, and the sweep's resources.backend is local")
        from tuner.backends.local import LocalBackend  # noqa: PLC0415 -- one backend is enough

        return LocalBackend(worker)
    from tuner.backends.ray_tune import RayBackend  # noqa: PLC0415 -- ray takes two seconds to import

    return RayBackend(worker, address)
