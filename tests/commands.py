"""Calls the command line as a person would, in this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tuner import cli

if TYPE_CHECKING:
    import pytest


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `tuner words...`."""
    monkeypatch.setattr(sys, "argv", ["tuner", *words])
    code: object = 0
    try:
        cli.main()
    except SystemExit as exited:
        code = exited.code
    captured = capsys.readouterr()
    return int(str(code or 0)), captured.out, captured.err
