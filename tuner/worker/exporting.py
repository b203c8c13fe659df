"""Makes an export and uses it as whoever gets it would. Runs on the worker, in a process of its own: JSON in, JSON out.

What is handed over is what was loaded here: nothing of the process that trained it, or that read the sweep, is in it.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from pydantic import BaseModel as Message
from safetensors import SafetensorError

from tuner.config import SweepConfig
from tuner.forms import Checked, Form, Request
from tuner.worker.architecture import layers_of
from tuner.worker.evaluation import evaluate, forward
from tuner.worker.forms import AdapterWeights, as_rank, as_serving, lost_share, read_adapter, write_adapter
from tuner.worker.gguf import SUFFIX
from tuner.worker.gguf_adapter import read_gguf_adapter, write_gguf_adapter
from tuner.worker.host import BaseSpec, Loaded, load
from tuner.worker.merging import merge

if TYPE_CHECKING:
    from torch import nn

NUM_COMPARED = 8
"""Validation batches on which logits are compared; scores are of all."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Type of activations -> largest difference of logits, over the largest logit, of forms that are equal in real numbers."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Asked(Message):
    """A line of input."""

    config: SweepConfig
    request: Request


class Answered(Message):
    """A line of output: one of the two is set."""

    checked: Checked | None = None
    problem: str = ""


def carry_out(config: SweepConfig, request: Request) -> Checked:
    """Make the form that is asked for, load it, and hold it against the trained adapter.

    Raises:
        OSError: A file can't be read or written.
        ValueError: The adapter has no such form, or does not fit the base.
    """
    adapter, folder = Path(request.adapter), Path(request.folder)
    loaded = load(config, BaseSpec(config=config.model))
    weights = read_adapter(adapter)
    lost = _lost(weights, request.rank)
    smaller = weights if request.rank is None else as_rank(weights, request.rank)
    loaded.base.tokenizer.save_pretrained(folder)
    match request.form:
        case Form.PEFT:
            write_adapter(smaller, folder)
        case Form.SERVING:
            write_adapter(as_serving(smaller, layers_of(loaded.base.model)), folder)
        case Form.MERGED:
            return _merged(config, request, loaded, smaller, lost)
        case Form.GGUF:
            return _gguf(config, request, loaded, smaller, lost)
    is_exact = request.rank is None
    return _compared(config, loaded, adapter, functools.partial(_adapted, loaded, folder), lost, is_exact=is_exact)


def _compared(
    config: SweepConfig, loaded: Loaded, adapter: Path, build: Callable[[], nn.Module], lost: float, *, is_exact: bool
) -> Checked:
    """Score two adapters on one base, one after the other."""
    trained_score, trained = _used(config, loaded, _adapted(loaded, adapter))
    score, made = _used(config, loaded, build())
    dtype = loaded.base.compute_dtype
    return Checked(
        score=score,
        trained_score=trained_score,
        largest_difference=_difference(trained, made),
        tolerance=TOLERANCES[dtype] if is_exact else None,
        compute_dtype=str(dtype).removeprefix("torch."),
        lost_share=lost,
    )


def _merged(config: SweepConfig, request: Request, loaded: Loaded, weights: AdapterWeights, lost: float) -> Checked:
    """A merged model is held against the adapter on the base that it was trained on, from which it is meant to differ."""
    adapter, folder = Path(request.adapter), Path(request.folder)
    trained_score, trained = _used(config, loaded, _adapted(loaded, adapter))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as beside:
        source = Path(beside)
        write_adapter(weights, source)
        merge(config, source, folder, DTYPES[request.dtype])
    plain = config.model.model_copy(update={"name": str(folder), "revision": None, "quantization": "none"})
    merged = load(config, BaseSpec(config=plain))
    score, made = _used(config, merged, merged.base.model)
    return Checked(
        score=score,
        trained_score=trained_score,
        largest_difference=_difference(trained, made),
        tolerance=None,
        compute_dtype=str(merged.base.compute_dtype).removeprefix("torch."),
        lost_share=lost,
    )


def _gguf(config: SweepConfig, request: Request, loaded: Loaded, weights: AdapterWeights, lost: float) -> Checked:
    """An adapter for llama.cpp, which is not here: the file is read again by llama.cpp's rules, and run by PEFT."""
    base = Path(config.model.name)
    if base.suffix != SUFFIX:
        raise ValueError(f"needs a base in GGUF to fit, and model.name is {config.model.name}")
    folder = Path(request.folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as beside:
        source, again = Path(beside) / "source", Path(beside) / "again"
        write_adapter(weights, source)
        write_gguf_adapter(source, base, folder / "adapter.gguf")
        layers = [layer.name for layer in layers_of(loaded.base.model)]
        write_adapter(read_gguf_adapter(folder / "adapter.gguf", base, layers), again)
        build = functools.partial(_adapted, loaded, again)
        return _compared(config, loaded, Path(request.adapter), build, lost, is_exact=request.rank is None)


def _adapted(loaded: Loaded, folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(loaded.base.model, str(folder))


@torch.no_grad()
def _used(config: SweepConfig, loaded: Loaded, model: nn.Module) -> tuple[float, list[torch.Tensor]]:
    """(score on the validation data, logits of its first batches); an adapter is taken off again."""
    base, data = loaded.base, loaded.data.validation
    model.eval()
    score = evaluate(base, model, data.batches, data.choices).scores[config.metric].value
    logits = [forward(base, model, batch).float().cpu() for batch in data.batches[:NUM_COMPARED]]
    if isinstance(model, PeftModel):
        model.unload()
    return score, logits


def _difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The largest difference over the largest value."""
    largest = max(float(logits.abs().max()) for logits in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / max(largest, 1e-9)


def _lost(weights: AdapterWeights, rank: int | None) -> float:
    """The largest share of the norm of a layer's update that a smaller rank costs."""
    return 0.0 if rank is None else max(lost_share(weights, rank).values())


def main() -> None:
    """Read one line, answer with one line."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    asked = Asked.model_validate_json(sys.stdin.readline())
    try:
        answer = Answered(checked=carry_out(asked.config, asked.request))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        answer = Answered(problem=str(error))
    out.write(answer.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
