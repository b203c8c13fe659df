"""Asks llama.cpp what follows some tokens, in a process of its own: what llama.cpp can't do ends in an abort."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_NEW = 6
"""Tokens generated after each prompt, greedily."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What llama.cpp says to one prompt."""

    ids: list[int]
    """The tokens that it puts after the prompt."""
    log_probs: list[dict[int, float]]
    """Before each of them: token -> log probability, of the likeliest."""


def ask(
    base: Path, adapter: Path, prompts: Sequence[Sequence[int]], scales: Sequence[float], num_seen: int
) -> dict[float, list[Answer]]:
    """By scale of the adapter (0 is off), the answers to every prompt."""
    question = {
        "base": str(base),
        "adapter": str(adapter),
        "prompts": [list(prompt) for prompt in prompts],
        "scales": list(scales),
        "num_seen": num_seen,
    }
    ran = subprocess.run(
        [sys.executable, __file__], input=json.dumps(question), capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rows = json.loads(ran.stdout.splitlines()[-1])
    return {scale: [_answer(steps) for steps in of_scale] for scale, of_scale in zip(scales, rows, strict=True)}


def _answer(steps: list[dict[str, Any]]) -> Answer:
    tables = [{top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in steps]
    return Answer(ids=[step["id"] for step in steps], log_probs=tables)


def main() -> None:
    """Answer the question on stdin."""
    question = json.load(sys.stdin)
    server = _server(question["base"], question["adapter"])
    rows = [
        [_steps(server, prompt, scale, question["num_seen"]) for prompt in question["prompts"]]
        for scale in question["scales"]
    ]
    sys.stdout.write(json.dumps(rows))


def _server(base: str, adapter: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port = 512, 1, 0, 0
    params.warmup = params.fit_params = False
    params.verbosity = -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # float32 all through, so that nothing but the adapter can differ from PEFT
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(params)


def _steps(server: Any, prompt: list[int], scale: float, num_seen: int) -> list[dict[str, Any]]:
    asked = {
        "prompt": prompt,
        "n_predict": NUM_NEW,
        "temperature": 0.0,
        "n_probs": num_seen,
        "cache_prompt": False,
        "lora": [{"id": 0, "scale": scale}],
    }
    answer = server.handle_completions(asked)
    steps: list[dict[str, Any]] = answer["choices"][0]["logprobs"]["content"]
    return steps


if __name__ == "__main__":
    main()
