"""All that a study knows of its trials, in the order in which they are told. Runs on the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tuner.trial import TrialRecord


class Records:
    """Trials by number, and in order without being sorted: a sweep of ten thousand is asked for all of them at each decision.

    Args:
        records: Those known already.
    """

    def __init__(self, records: Iterable[TrialRecord]) -> None:
        self._searched: dict[int, TrialRecord] = {}
        self._beside: dict[int, TrialRecord] = {}
        for record in sorted(records, key=lambda record: record.place):
            self.keep(record)

    def __getitem__(self, number: int) -> TrialRecord:
        return (self._searched if number >= 0 else self._beside)[number]

    def __contains__(self, number: int) -> bool:
        return number in self._searched or number in self._beside

    @property
    def all(self) -> tuple[TrialRecord, ...]:
        """By number; those beside the search last."""
        return (*self._searched.values(), *self._beside.values())

    @property
    def searched(self) -> tuple[TrialRecord, ...]:
        """Those of the search, by number."""
        return tuple(self._searched.values())

    def keep(self, record: TrialRecord) -> TrialRecord:
        """Put a trial in the place of what was known of it; a new one has the next number, of the search or beside it."""
        (self._searched if record.number >= 0 else self._beside)[record.number] = record
        return record
