"""From a chosen trial to a folder that others can use. Runs on the driver; only the check of the adapter needs torch.

Not named `export`: `tuner.export` is the function, and a package's attribute can't be both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pkgutil
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import metric_text
from tuner.errors import ExportError, FolderError, PickError
from tuner.exporting.card import model_card
from tuner.folder import SweepFolder, require_empty
from tuner.picking import Pick
from tuner.sweep import Sweep, load

if TYPE_CHECKING:
    from tuner.trial import Metric, Metrics, TrialRecord

VERIFIER = "tuner.worker.verification:verify_adapter"
"""Dotted, so that this room does not import torch."""

TOLERANCE = 0.01
"""Largest difference between report and exported adapter, since another device rounds otherwise: a point for shares, one
per cent for perplexity."""

PACKAGES = ("tuner", "torch", "transformers", "peft", "bitsandbytes", "optuna", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An adapter that was copied out."""

    folder: Path
    """Where it is."""
    number: int
    """The trial."""
    accuracy: float
    """The sweep's metric on the validation data, measured anew with the copy."""
    score: str
    """The same in words: `exact match 61.2%`, `perplexity 3.42`."""


def export(folder: Path | str, *, to: Path | str, pick: str = "knee") -> Exported:
    """Copy a trial's adapter, with tokenizer, model card and provenance, and check it.

    Args:
        folder: The sweep's folder.
        to: A new or empty folder.
        pick: `knee`, `most-accurate`, `trial:N` or `cheapest-within:MARGIN`.

    Raises:
        FolderError: `folder` holds no sweep, or `to` is not empty.
        PickError: No such trial on the front, or no such rule.
        ExportError: The copy does not load, or scores otherwise than the report says; nothing is left behind.
    """
    sweep, target = load(folder), Path(to)
    record = Pick(rule=pick).of(sweep.front, sweep.objectives)
    adapter = SweepFolder(sweep.folder).adapter(record.number)
    if not adapter.is_dir():
        msg = f"the adapter of trial {record.number} is not in {adapter.parent}"
        raise PickError(msg)
    require_empty(target)
    partial = target.with_name(f"{target.name}.partial")
    try:
        accuracy = _fill(partial, adapter, sweep, record, pick)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        msg = f"{target} can't be written: {error}"
        raise FolderError(msg) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    score = f"{metric_text.name(sweep.config.metric)} {metric_text.text(sweep.config.metric, accuracy)}"
    return Exported(folder=target, number=record.number, accuracy=accuracy, score=score)


def _fill(partial: Path, adapter: Path, sweep: Sweep, record: TrialRecord, pick: str) -> float:
    assert record.last is not None  # noqa: S101 -- trials on the front have reported
    shutil.copytree(adapter, partial, dirs_exist_ok=True)
    accuracy = _verified(partial, sweep, record.last)
    (partial / "README.md").write_text(model_card(sweep, record, pick), encoding="utf-8")
    provenance = json.dumps(_provenance(partial, sweep, record, pick), indent=2)
    (partial / "provenance.json").write_text(f"{provenance}\n", encoding="utf-8")
    return accuracy


def _verified(adapter: Path, sweep: Sweep, reported: Metrics) -> float:
    verify = pkgutil.resolve_name(VERIFIER)
    try:
        scored = verify(sweep.config, adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        msg = f"the exported adapter does not load: {error}"
        raise ExportError(msg) from error
    accuracy, metric = float(scored.value), sweep.config.metric
    if not is_as_reported(metric, accuracy, reported.accuracy):
        said = f"{accuracy:.4f}, the report says {reported.accuracy:.4f}"
        msg = f"the exported adapter scores {metric_text.name(metric)} {said}"
        raise ExportError(msg)
    return accuracy


def is_as_reported(metric: Metric, scored: float, reported: float) -> bool:
    """Whether an adapter scores what the report says of it, as near as another device comes; NaN is never near."""
    scale = 1.0 if metric.is_share else abs(reported)
    return abs(scored - reported) <= TOLERANCE * scale


def _provenance(adapter: Path, sweep: Sweep, record: TrialRecord, pick: str) -> dict[str, Any]:
    return {
        "sweep": sweep.config.name,
        "pick": pick,
        "trial": dataclasses.asdict(record.spec),
        "metrics": dataclasses.asdict(record.last) if record.last else None,
        "model": sweep.config.model.model_dump(mode="json"),
        "data": {
            "path": sweep.config.data.path,
            "name": sweep.config.data.name,
            "subset": sweep.config.data.subset,
            "revision": sweep.config.data.revision,
            "fingerprint_sha256": sweep.inspection.data_fingerprint,
        },
        "training": sweep.config.training.model_dump(mode="json"),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "files_sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(adapter.glob("*.safetensors"))
        },
    }
