"""From a chosen trial to a folder that others can use. Runs on the driver; what needs torch runs in a process of its own.

Not named `export`: `tuner.export` is the function, and a package's attribute can't be both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import metric_text
from tuner.errors import ExportError, FolderError, PickError
from tuner.exporting.card import inference_code, model_card
from tuner.exporting.making import made
from tuner.folder import SweepFolder, require_empty
from tuner.forms import Checked, Form, Request
from tuner.mirror import bring_adapter
from tuner.picking import Pick
from tuner.sweep import Sweep, load
from tuner.trial import folder_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.trial import Metric, Metrics, TrialRecord

TOLERANCE = 0.01
"""Largest difference between report and exported adapter, since another device rounds otherwise: a point for shares, one
per cent for perplexity."""

PACKAGES = ("tuner", "torch", "transformers", "peft", "bitsandbytes", "optuna", "ray")
CHECKSUMS = "SHA256SUMS"
FRONT = "front"
"""Stands for every trial of the front where several may be picked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """An adapter that was exported."""

    folder: Path
    """Where it is."""
    number: int
    """The trial."""
    form: Form
    """As what."""
    checked: Checked
    """What was found when it was loaded and used."""
    metric: Metric
    """The sweep's."""

    @property
    def accuracy(self) -> float:
        """The sweep's metric on the validation data, measured anew."""
        return self.checked.score

    @property
    def score(self) -> str:
        """The same in words: `exact match 61.2%`, `perplexity 3.42`."""
        return f"{metric_text.name(self.metric)} {metric_text.text(self.metric, self.accuracy)}"

    @property
    def words(self) -> str:
        """What was found when it was checked, as half a sentence."""
        if self.checked.tolerance is not None:
            return f"it has {self.score}, as the report says"
        trained = metric_text.text(self.metric, self.checked.trained_score)
        return f"it has {self.score}, the trained adapter {trained}"


def export(  # noqa: PLR0913 -- each is an option
    folder: Path | str,
    *,
    to: Path | str,
    pick: str = "knee",
    form: Form | str = Form.PEFT,
    rank: int | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Exported:
    """Export a trial's adapter in some form, with tokenizer, model card and provenance, checked in a process of its own.

    Args:
        folder: The sweep's folder.
        to: A new or empty folder.
        pick: `knee`, `most-accurate`, `trial:N`, `within:MARGIN`, `max-params:2M`, `max-memory:24GiB`.
        form: `peft`, `serving`, `merged` or `gguf`.
        rank: Largest rank of the result, by SVD; that of training by default.
        dtype: Of a merged model's weights.
        overwrite: Take the place of what is at `to`.

    Raises:
        FolderError: `folder` holds no sweep, or `to` is not empty or can't be written.
        PickError: No such trial on the front, or no such rule.
        ExportError: The adapter has no such form, does not load, or scores otherwise than the report says. Nothing is then left.
    """
    return _exported(load(folder), Path(to), pick, form=Form(form), rank=rank, dtype=dtype, overwrite=overwrite)


def _exported(  # noqa: PLR0913 -- each is an option
    sweep: Sweep, target: Path, pick: str, *, form: Form, rank: int | None, dtype: str, overwrite: bool
) -> Exported:
    record = Pick(rule=pick).of(sweep.front, sweep.objectives)
    folder = SweepFolder(sweep.folder)
    bring_adapter(folder, record.number)
    adapter = folder.adapter(record.number)
    if not adapter.is_dir():
        msg = f"the adapter of trial {record.number} is not in {adapter.parent}"
        raise PickError(msg)
    _require_room(target, sweep.folder, overwrite=overwrite)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir(parents=True)
        request = Request(
            adapter=str(adapter.absolute()), folder=str(partial.absolute()), form=form, rank=rank, dtype=dtype
        )
        checked = _filled(request, sweep, record, pick)
        _put_in_place(partial, target)
    except OSError as error:
        msg = f"{target} can't be written: {error}"
        raise FolderError(msg) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder=target, number=record.number, form=request.form, checked=checked, metric=sweep.config.metric)


def export_all(  # noqa: PLR0913 -- each is an option
    folder: Path | str,
    *,
    to: Path | str,
    picks: Sequence[str],
    form: Form | str = Form.PEFT,
    rank: int | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Iterator[Exported]:
    """Export several trials, each once, as `export` does one; more than one get folders of their own within `to`.

    Args:
        folder: The sweep's folder.
        to: A new or empty folder.
        picks: Rules as `export` takes them; `front` stands for every trial of it.
        form: As of `export`.
        rank: As of `export`.
        dtype: As of `export`.
        overwrite: As of `export`.

    Raises:
        FolderError: As of `export`.
        PickError: As of `export`.
        ExportError: As of `export`.
    """
    sweep = load(folder)
    rules = [rule for pick in picks for rule in (_front_rules(sweep) if pick == FRONT else [pick])]
    numbers = dict.fromkeys(Pick(rule=rule).of(sweep.front, sweep.objectives).number for rule in rules)
    is_one = len(numbers) == 1 and FRONT not in picks
    for number in numbers:
        target = Path(to) if is_one else Path(to) / folder_name(number)
        rule = picks[0] if is_one else f"trial:{number}"
        yield _exported(sweep, target, rule, form=Form(form), rank=rank, dtype=dtype, overwrite=overwrite)


def _require_room(target: Path, swept: Path, *, overwrite: bool) -> None:
    """Make sure that nothing goes which is not an export.

    Raises:
        FolderError: It would.
    """
    if not target.name or target.name == "..":
        msg = f"{target} is no folder that can be made; name one"
        raise FolderError(msg)
    if target.resolve() == swept.resolve() or target.resolve() in swept.resolve().parents:
        msg = f"{target} holds the sweep itself; choose another folder"
        raise FolderError(msg)
    if (target / "provenance.json").is_file() and overwrite:
        return
    require_empty(target, allowed=" (--overwrite takes the place of an export alone)" if overwrite else "")


def _put_in_place(partial: Path, target: Path) -> None:
    """By renaming alone, so that a kill at any moment leaves the old export or the new one whole, at most under another name."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # of an export that was killed
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _front_rules(sweep: Sweep) -> list[str]:
    return [f"trial:{record.number}" for record in sweep.front]


def is_as_reported(metric: Metric, scored: float, reported: float) -> bool:
    """Whether an adapter scores what the report says of it, as near as another device comes; NaN is never near."""
    scale = 1.0 if metric.is_share else abs(reported)
    return abs(scored - reported) <= TOLERANCE * scale


def _filled(request: Request, sweep: Sweep, record: TrialRecord, pick: str) -> Checked:
    """Fill the folder, and make sure that what is in it is what the report describes."""
    assert record.last is not None  # noqa: S101 -- trials on the front have reported
    folder = Path(request.folder)
    checked = made(sweep.config, request)
    _require_as_reported(checked, sweep.config.metric, record.last)
    (folder / "README.md").write_text(model_card(sweep, record, pick, request, checked), encoding="utf-8")
    if request.form is not Form.GGUF:
        (folder / "inference.py").write_text(inference_code(sweep, request), encoding="utf-8")
    provenance = json.dumps(_provenance(sweep, record, pick, request, checked), indent=2)
    (folder / "provenance.json").write_text(f"{provenance}\n", encoding="utf-8")
    (folder / CHECKSUMS).write_text(checksums(folder), encoding="utf-8")
    return checked


def _require_as_reported(checked: Checked, metric: Metric, reported: Metrics) -> None:
    name = metric_text.name(metric)
    if not is_as_reported(metric, checked.trained_score, reported.accuracy):
        msg = f"the adapter scores {name} {checked.trained_score:.4f}, the report says {reported.accuracy:.4f}"
        raise ExportError(msg)
    if checked.tolerance is None:
        return
    if not checked.largest_difference <= checked.tolerance:
        found = f"by up to {checked.largest_difference:.2g} of the largest, more than {checked.tolerance:.0e}"
        msg = f"the exported adapter's logits differ from the trained one's {found}"
        raise ExportError(msg)
    if not is_as_reported(metric, checked.score, reported.accuracy):
        msg = f"the exported adapter scores {name} {checked.score:.4f}, the report says {reported.accuracy:.4f}"
        raise ExportError(msg)


def checksums(folder: Path) -> str:
    """As `sha256sum --check` reads them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    lines = (f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return "".join(lines)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _provenance(sweep: Sweep, record: TrialRecord, pick: str, request: Request, checked: Checked) -> dict[str, Any]:
    return {
        "sweep": sweep.config.name,
        "pick": pick,
        "form": request.form,
        "rank": request.rank,
        "dtype": request.dtype if request.form is Form.MERGED else None,
        "checked": dataclasses.asdict(checked),
        "trial": dataclasses.asdict(record.spec),
        "metrics": dataclasses.asdict(record.last) if record.last else None,
        "model": sweep.config.model.model_dump(mode="json"),
        "model_fingerprint": sweep.inspection.model_fingerprint,
        "data": {
            "path": sweep.config.data.path,
            "name": sweep.config.data.name,
            "subset": sweep.config.data.subset,
            "revision": sweep.config.data.revision,
            "fingerprint_sha256": sweep.inspection.data_fingerprint,
        },
        "training": sweep.config.training.model_dump(mode="json"),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "files_sha256": {file.name: _digest(file) for file in sorted(Path(request.folder).glob("*.safetensors"))},
    }
