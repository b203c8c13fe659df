"""A journal's points that wait for their spec, found without looking at all trials. Runs on the driver; talks to Optuna."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class JournalQueue:
    """Trials that were written down and not yet begun, the first of them first.

    Args:
        study: The search.
        spec: Key of the attribute that a begun trial has.
    """

    def __init__(self, study: optuna.Study, spec: str) -> None:
        self._study = study
        self._spec = spec
        self.num_past = 0
        """Trials, from the first, that have begun or never will: they are not looked at again."""

    def pass_by(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in all trials at once, as a journal that is opened has them."""
        self.num_past = next((trial.number for trial in trials if self._waits(trial)), len(trials))

    def first(self) -> FrozenTrial | None:
        """The first that waits; None where none does."""
        storage, study_id = self._study._storage, self._study._study_id  # noqa: SLF001 -- optuna has no public way by number
        with contextlib.suppress(KeyError):  # there is no trial of that number yet
            while True:
                trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, self.num_past))
                if self._waits(trial):
                    return trial
                self.num_past += 1
        return None

    def take(self) -> optuna.Trial:
        """Take out the first; one that was taken out before and has no spec is given again."""
        waiting = self.first()
        if waiting is None:
            return self._study.ask()
        if waiting.state is TrialState.WAITING:  # optuna's `ask` would look through all trials for it
            self._study._storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)  # noqa: SLF001 -- as above
        return optuna.trial.Trial(self._study, waiting._trial_id)  # noqa: SLF001 -- as above

    def add(
        self, params: dict[str, Any], distributions: Mapping[str, BaseDistribution], attrs: dict[str, Any]
    ) -> FrozenTrial:
        """A trial that has begun with its spec, where none waits; `distributions` are those of all that is searched."""
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: distributions[name] for name in params},
            user_attrs=attrs,
        )
        storage = self._study._storage  # noqa: SLF001 -- optuna's `add_trial` does not say which one it has made
        return storage.get_trial(storage.create_new_trial(self._study._study_id, begun))  # noqa: SLF001 -- as above

    def _waits(self, trial: FrozenTrial) -> bool:
        return not trial.state.is_finished() and self._spec not in trial.user_attrs
