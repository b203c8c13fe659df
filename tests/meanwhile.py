"""Something that happens to a sweep in its midst, at a moment that a test names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuner.live import NoView
from tuner.trial import TrialRecord


class Meanwhile(NoView):
    """Does something once, when a number of trials are known."""

    def __init__(self, num: int, act: Callable[[], object]) -> None:
        self._num, self._act, self.is_done = num, act, False

    def update(self, records: Sequence[TrialRecord]) -> None:
        if len(records) >= self._num and not self.is_done:
            self.is_done = True
            self._act()
