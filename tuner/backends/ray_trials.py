"""Which of the study's trials are at work in which of Ray's, and what becomes of them if a worker is lost. Runs on the driver."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial

from tuner.backends import StudyVerbs
from tuner.trial import FailReason, Outcome, TrialSpec, TrialState

if TYPE_CHECKING:
    from tuner.resources_config import ResourcesConfig


@dataclass(slots=True)
class Trials:
    """What is known of Ray's trials, by Ray's id: each is a worker, and what is at work in it.

    Args:
        study: Gives out trials.
        resources: The sweep's.
    """

    study: StudyVerbs
    resources: ResourcesConfig
    teams: dict[str, dict[int, TrialSpec]] = field(default_factory=dict)
    """The study's trials by number."""
    errors: dict[str, str] = field(default_factory=dict)
    """What Ray said when the worker was last lost."""
    again: list[TrialSpec] = field(default_factory=list)
    """To be given to other workers, each alone."""
    loners: set[str] = field(default_factory=set)
    """Workers that are given nothing more."""
    _num_restarts: Counter[int] = field(default_factory=Counter)

    def new_team(self, trial_id: str, room: int) -> dict[int, TrialSpec]:
        """Trials for a worker that has none; empty if there are none now."""
        team = self.teams.setdefault(trial_id, {})
        if self.again and not self.study.is_interrupted:
            spec = self.again.pop(0)
            team[spec.number] = spec
            self.loners.add(trial_id)
        self.fill(trial_id, room)
        if not team:
            del self.teams[trial_id]  # Tune asks again under another id
        return team

    def fill(self, trial_id: str, room: int) -> list[TrialSpec]:
        """Give a worker more trials, as many as it has room for; returns them."""
        team, limit = self.teams[trial_id], self.resources.max_concurrent_trials
        new: list[TrialSpec] = []
        while room > len(new) and trial_id not in self.loners:
            if limit is not None and sum(map(len, self.teams.values())) >= limit:
                break
            if (spec := self.study.ask()) is None:
                break
            team[spec.number] = spec
            new.append(spec)
        return new

    def lost(self, trial: Trial) -> None:
        """Keep what Ray says; it calls this each time that a worker is lost, also where the trial then goes on."""
        # not trial.get_error(), which looks in the storage, where the file comes only later (ray 2.60)
        said = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        self.errors[trial.trial_id] = said
        team = self.teams[trial.trial_id]
        # Tune has no restart for a trial whose worker dies while it takes the trial on (ray 2.60): that one is PENDING
        if trial.status == Trial.PENDING or (trial.status == Trial.RUNNING and len(team) > 1):
            for number, spec in team.items():
                if self._num_restarts[number] < self.resources.max_worker_restarts:
                    self._num_restarts[number] += 1
                    self.again.append(spec)

    def ended(self, trial_id: str, *, is_lost: bool) -> None:
        """A worker is done; trials that were lost with it once too often are told."""
        for number, spec in self.teams.pop(trial_id, {}).items():
            if is_lost and spec not in self.again:
                detail = self.errors.get(trial_id, "")
                outcome = Outcome(state=TrialState.FAIL, reason=FailReason.WORKER_LOST, detail=detail)
                self.study.tell(number, outcome)
