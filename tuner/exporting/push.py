"""`tuner push`: an export to a model hub, after its checksums have been looked at. Runs on the driver.

The token is that of `hf auth login` or HF_TOKEN; it is never written anywhere.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import ExportError, FolderError
from tuner.exporting import CHECKSUMS, checksums
from tuner.exporting.bench import load_provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What went to a hub, or would."""

    repo: str
    """`owner/name`."""
    files: tuple[tuple[str, int], ...]
    """(path, bytes) of every file."""
    url: str
    """Of the commit; empty after a dry run."""


def push(folder: Path | str, repo: str, *, is_private: bool = True, is_dry: bool = False) -> Pushed:
    """Put an export on the hub, as a commit of its own.

    Args:
        folder: An export.
        repo: `owner/name`; made where it is missing.
        is_private: Whether a repository that is made is private.
        is_dry: Say what would go there, and send nothing.

    Raises:
        FolderError: There is no such export.
        ExportError: Its files are not what was exported, or the hub refuses.
    """
    place = Path(folder)
    provenance = load_provenance(place)
    _require_untouched(place)
    files = tuple(
        (file.relative_to(place).as_posix(), file.stat().st_size) for file in sorted(place.rglob("*")) if file.is_file()
    )
    if is_dry:
        return Pushed(repo=repo, files=files, url="")
    message = f"{provenance['sweep']}, trial {provenance['trial']['number']}, as {provenance['form']}"
    return Pushed(repo=repo, files=files, url=_sent(place, repo, message, is_private=is_private))


def _sent(place: Path, repo: str, message: str, *, is_private: bool) -> str:
    from huggingface_hub import HfApi  # noqa: PLC0415 -- takes a third of a second to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415 -- as above

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repo, private=is_private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=place, commit_message=message).commit_url)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        msg = f"{repo}: the hub refuses: {str(error).splitlines()[0]}"
        raise ExportError(msg) from error


def _require_untouched(place: Path) -> None:
    """Refuse what was changed after it was checked."""
    try:
        said = (place / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        msg = f"{place} has no {CHECKSUMS}; export it anew"
        raise FolderError(msg) from error
    now = {line.partition("  ")[2]: line for line in checksums(place).splitlines()}
    changed = [line.partition("  ")[2] for line in said if now.get(line.partition("  ")[2]) != line]
    if changed:
        msg = f"{place} is not what was exported; changed or gone: {', '.join(changed)}"
        raise ExportError(msg)
