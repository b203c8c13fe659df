"""Optuna without what it says to people who did not ask it. Runs on the driver; talks to Optuna."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import optuna


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Use what optuna 5.0 marks as experimental, without a warning on the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
