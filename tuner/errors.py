"""What can go wrong outside a trial, on any process.

    TunerError                     exit code 1 unless a child says otherwise
    ├── UsageError                 exit code 2: the person at the keyboard can mend it
    │   ├── ConfigError            the sweep file, or what it names; holds every problem found
    │   ├── FolderError            a sweep's folder exists already, is none, is in use, can't be written
    │   ├── StorageError           a database or an object storage does not answer, or refuses
    │   ├── ResourcesError         the cluster has not what a trial asks for
    │   ├── ClusterError           no cluster answers, it refuses the token, knows no such job, or a job can't be sent to it
    │   ├── LoggingError           a logger that the sweep names can't be set up
    │   ├── PickError              no such trial, or its adapter was not kept
    │   ├── CompareError           sweeps of different tasks can't share a page
    │   ├── AdviceError            nothing can be recommended for what was asked
    │   └── PredictionError        the memory of what was asked for can't be predicted
    ├── TooManyFailuresError       trials failed one after another; holds the last traceback
    ├── PausedError                something outside of the trials is in the way, such as a full disk
    └── ExportError                the exported adapter does not load, or scores otherwise than the report says

A trial that fails is data (`trial.Outcome`), not an exception.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong with a sweep file or with what it names."""

    key: str
    """Dotted path in the YAML, such as `search.space.r.low`; empty where the whole file is meant."""
    message: str
    """What is wrong, the value got, what is allowed."""
    line: int | None = None
    """Line in the file, from 1; None where the problem has no place in it."""


class TunerError(Exception):
    """Base of every error that a caller of `tuner` may see."""

    exit_code = 1


class UsageError(TunerError):
    """Something that the caller can mend: the file, the folder, the resources asked for."""

    exit_code = 2


class ConfigError(UsageError):
    """The sweep file is wrong; every problem is told at once.

    Args:
        file: The file as the caller named it.
        problems: At least one.
    """

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(file, problems)
        self.file = file
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self._line(problem) for problem in self.problems)

    def _line(self, problem: Problem) -> str:
        place = self.file if problem.line is None else f"{self.file}:{problem.line}"
        return f"{place}: {problem.key}: {problem.message}" if problem.key else f"{place}: {problem.message}"


class FolderError(UsageError):
    """The sweep's folder can't be used for what was asked."""


class StorageError(UsageError):
    """A database or an object storage does not answer, or refuses; nothing that it has taken is lost."""


class ResourcesError(UsageError):
    """A trial asks for more than any node of the cluster has."""


class ClusterError(UsageError):
    """A Ray cluster can't be used for what was asked: nobody answers, the token is refused, there is no such job."""


class LoggingError(UsageError):
    """A logger can't be set up: say, its server does not answer, or there is no key for it."""


class PickError(UsageError):
    """The trial asked for does not exist, or its adapter was not kept."""


class CompareError(UsageError):
    """Sweeps can't be held against each other: they are of different tasks, or there is only one."""


class AdviceError(UsageError):
    """There is no such model or task to recommend anything for."""


class PredictionError(UsageError):
    """The memory of what was asked for can't be predicted."""


class TooManyFailuresError(TunerError):
    """Trials failed one after another, so the sweep ended early; what finished is kept."""


class PausedError(TunerError):
    """Something outside of the trials keeps the sweep from going on, such as a full disk; it can be resumed after that."""


class ExportError(TunerError):
    """The exported adapter could not be shown to be the one that the report describes."""
