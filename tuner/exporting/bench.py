"""`tuner bench`: how fast an export writes beside its base. Runs on the driver; the models run in a process of their own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tuner.errors import ExportError, FolderError
from tuner.exporting.asking import answer_of
from tuner.forms import Form, Speed

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULE = "tuner.worker.benching"
FILE = "bench.json"
MIB = 2**20


class Answered(BaseModel):
    """What the process says: one of the two is set."""

    speeds: tuple[Speed, ...] = ()
    problem: str = ""


def bench(folder: Path | str, *, num_new: int = 64, num_repeats: int = 5) -> tuple[Speed, ...]:
    """Time generation with an export, and write `bench.json` into it.

    Args:
        folder: An export of a causal language model.
        num_new: Tokens that are generated each time.
        num_repeats: Times that are counted, after one that is not.

    Raises:
        FolderError: There is no such export.
        ExportError: It can't be run.
    """
    place = Path(folder)
    provenance = load_provenance(place)
    if provenance["form"] == Form.GGUF:
        msg = f"{place} is for llama.cpp, which has a bench of its own: llama-bench"
        raise ExportError(msg)
    if provenance["training"]["task"] != "causal-lm":
        msg = f"{place} classifies, and only generation is timed"
        raise ExportError(msg)
    asked = {
        "folder": str(place.absolute()),
        "model": provenance["model"],
        "is_merged": provenance["form"] == Form.MERGED,
        "num_new": num_new,
        "num_repeats": num_repeats,
    }
    answer = Answered.model_validate_json(answer_of(MODULE, json.dumps(asked)))
    if answer.problem:
        msg = f"{place} can't be run: {answer.problem}"
        raise ExportError(msg)
    written = json.dumps([dataclasses.asdict(speed) for speed in answer.speeds], indent=1) + "\n"
    (place / FILE).write_text(written, encoding="utf-8")
    return answer.speeds


def bench_text(speeds: Sequence[Speed]) -> str:
    """A line for each variant; its ratio to the first stands at the end."""
    return "\n".join(_line(speed, speeds[0].tokens_per_s) for speed in speeds)


def _line(speed: Speed, reference: float) -> str:
    peak = f", peak {speed.peak_bytes / MIB:,.0f} MiB" if speed.peak_bytes else ""
    return (
        f"{speed.variant:<15} {speed.tokens_per_s:8.1f} tokens/s ({speed.least_tokens_per_s:.1f} to "
        f"{speed.most_tokens_per_s:.1f})  {speed.latency_s:7.3f} s an answer  weights {speed.weights_bytes / MIB:,.0f} MiB"
        f"{peak}  x {speed.tokens_per_s / reference:.2f}"
    )


def load_provenance(folder: Path) -> dict[str, Any]:
    """What an export was made from.

    Raises:
        FolderError: There is no export.
    """
    try:
        loaded: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder} holds no export: no provenance.json that can be read"
        raise FolderError(msg) from error
    return loaded
