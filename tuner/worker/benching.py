"""How fast an export writes: base, base with adapter, and merged. Runs on the worker, in a process of its own: JSON in, JSON out.

Generation is greedy and of a fixed number of tokens, on prompts of several lengths. Base and adapter take turns on one model,
so that what else the machine does hits both.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from pydantic import BaseModel as Message

from tuner.config import ModelConfig
from tuner.forms import Speed
from tuner.worker.model import load_base

if TYPE_CHECKING:
    from tuner.worker.model import BaseModel

PROMPT_TOKENS = (16, 64, 256)
"""Lengths of the prompts; their words are drawn from the vocabulary, for speed does not hang on meaning."""


class Asked(Message):
    """A line of input."""

    folder: str
    model: ModelConfig
    is_merged: bool
    num_new: int
    num_repeats: int


class Answered(Message):
    """A line of output: one of the two is set."""

    speeds: tuple[Speed, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Every prompt once."""

    seconds: tuple[float, ...]
    """By prompt."""
    peak_bytes: int
    """Allocated on a GPU; 0 on a CPU."""


def measure(asked: Asked) -> tuple[Speed, ...]:
    """Time every variant that an export has.

    Raises:
        OSError: A file can't be read.
        ValueError: The export does not fit the base.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plain = asked.model.model_copy(update={"quantization": "none"})
    if asked.is_merged:
        own = plain.model_copy(update={"name": asked.folder, "revision": None})
        return (_merged(load_base(own, "causal-lm", (), device), asked),)
    beside = _side_by_side(load_base(asked.model, "causal-lm", (), device), asked)
    whole = load_base(plain, "causal-lm", (), device)
    adapted: Any = PeftModel.from_pretrained(whole.model, asked.folder)
    return (*beside, _merged(replace(whole, model=adapted.merge_and_unload()), asked))


def _side_by_side(base: BaseModel, asked: Asked) -> tuple[Speed, Speed]:
    bare_bytes = _weights_bytes(base.model)
    model: Any = PeftModel.from_pretrained(base.model, asked.folder)
    adapted = replace(base, model=model)
    bare_turns: list[Turn] = []
    adapted_turns: list[Turn] = []
    _turn(adapted, asked)  # not counted
    for _ in range(asked.num_repeats):
        with model.disable_adapter():
            bare_turns.append(_turn(adapted, asked))
        adapted_turns.append(_turn(adapted, asked))
    return (
        _speed("base", bare_turns, bare_bytes, asked),
        _speed("base + adapter", adapted_turns, _weights_bytes(model), asked),
    )


def _merged(base: BaseModel, asked: Asked) -> Speed:
    _turn(base, asked)  # not counted
    turns = [_turn(base, asked) for _ in range(asked.num_repeats)]
    return _speed("merged", turns, _weights_bytes(base.model), asked)


def _turn(base: BaseModel, asked: Asked) -> Turn:
    base.model.train(mode=False)
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = tuple(_generate(base, prompt, asked.num_new) for prompt in _prompts(base))
    peak = torch.cuda.max_memory_allocated() if base.device.type == "cuda" else 0
    return Turn(seconds=seconds, peak_bytes=peak)


def _prompts(base: BaseModel) -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    model: Any = base.model
    size = model.get_input_embeddings().weight.shape[0]
    longest = getattr(model.config, "max_position_embeddings", None) or max(PROMPT_TOKENS) * 2
    for length in PROMPT_TOKENS:
        yield torch.randint(3, size, (1, min(length, longest // 2)), generator=draw).to(base.device)


@torch.no_grad()
def _generate(base: BaseModel, ids_BT: torch.Tensor, num_new: int) -> float:
    """Seconds for so many tokens, no fewer."""
    model: Any = base.model
    begun = time.perf_counter()
    with base.autocast():
        model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            min_new_tokens=num_new,
            max_new_tokens=num_new,
            pad_token_id=base.pad_id,
            use_cache=True,
        )
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _speed(name: str, turns: list[Turn], weights_bytes: int, asked: Asked) -> Speed:
    """Medians over the turns; a turn's latency is that of the mean prompt."""
    latencies = [statistics.fmean(turn.seconds) for turn in turns]
    rates = [asked.num_new / latency for latency in latencies]
    return Speed(
        variant=name,
        tokens_per_s=statistics.median(rates),
        least_tokens_per_s=min(rates),
        most_tokens_per_s=max(rates),
        latency_s=statistics.median(latencies),
        weights_bytes=weights_bytes,
        peak_bytes=max(turn.peak_bytes for turn in turns),
        num_repeats=len(turns),
    )


def _weights_bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))


def main() -> None:
    """Read one line, answer with one line."""
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    asked = Asked.model_validate_json(sys.stdin.readline())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = Answered(speeds=measure(asked))
        except (OSError, ValueError, RuntimeError) as error:
            answer = Answered(problem=str(error))
    out.write(answer.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
