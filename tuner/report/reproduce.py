"""ReportData -> what it takes to run the sweep again: command, sweep file, versions, fingerprints, machine. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.sweep_file import sweep_text

if TYPE_CHECKING:
    from tuner.report.data import ReportData

Pairs = tuple[tuple[str, str], ...]
"""(name, value)."""


def command(data: ReportData) -> str:
    """What runs the sweep again, from the file in its folder."""
    return shlex.join(["tuner", "run", f"{data.folder}/sweep.yaml", "--out", f"{data.folder}-again"])


def facts(data: ReportData) -> Pairs:
    """Seeds, versions, fingerprints, machine, as far as the journal holds them."""
    found, config = data.inspection, data.config
    versions = ", ".join(f"{package} {version}" for package, version in found.versions)
    known = (
        ("Seeds", f"search {config.search.seed}, training {config.training.seed}"),
        ("Data fingerprint", found.data_fingerprint),
        ("Model fingerprint", found.model_fingerprint),
        ("Versions on the worker", versions),
        ("Hardware", found.hardware),
    )
    return tuple((name, value) for name, value in known if value)


def sweep_yaml(data: ReportData) -> str:
    """The sweep file as resolved; folders are left out of paths, so that no machine shows."""
    return sweep_text(data.config, lambda name: f".../{Path(name).name}")
