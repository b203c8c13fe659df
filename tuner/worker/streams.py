"""Random numbers of trials that compute together: each draws what it would draw alone. Runs on the worker."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence

import torch


class Streams:
    """A random state for each of several trials, on one device.

    Args:
        device: Where dropout draws.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generator = _generator_of(device)
        self._states: list[torch.Tensor] = []
        self._drawn: dict[tuple[Hashable, int], torch.Tensor] = {}
        self.is_again = False
        """Whether a forward pass is done a second time, for the backward pass of checkpointed blocks: the draws repeat."""

    def begin(self, seeds: Sequence[int]) -> None:
        """Where each trial's draws start: as after `torch.manual_seed`."""
        self._states = [torch.Generator(self._device).manual_seed(seed).get_state() for seed in seeds]
        self._drawn.clear()
        self.is_again = False

    @contextlib.contextmanager
    def of(self, place: Hashable, index: int) -> Iterator[None]:
        """Inside, torch's own generator is the trial's.

        Args:
            place: Where in the model it draws; each place draws once in a forward pass.
            index: Which trial.
        """
        state = self._drawn[place, index] if self.is_again else self._states[index]
        self._generator.set_state(state)
        yield
        if not self.is_again:
            self._drawn[place, index] = state
            self._states[index] = self._generator.get_state()


def _generator_of(device: torch.device) -> torch.Generator:
    """The one that dropout draws from."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index  # type: ignore[redundant-expr]
    return torch.cuda.default_generators[index]
