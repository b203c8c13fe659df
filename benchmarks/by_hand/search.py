"""The search that a user would write without `tuner`: Ray Tune, OptunaSearch, ASHAScheduler. `trial.py` is one trial of it.

    .venv/bin/python benchmarks/by_hand/search.py job.json

Several objectives for OptunaSearch and one metric for ASHA, as Ray's documentation shows them; worker processes are
reused, the data is tokenized once and shared through Ray's object store.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import phases
import ray
from datasets import DatasetDict, load_dataset
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Job = dict[str, Any]
HERE = Path(__file__).resolve().parent


def quickstart_space(trial: Any) -> None:
    """As search_spaces/quickstart.yaml."""
    trial.suggest_categorical("r", [1, 2, 4, 8, 16, 32])
    trial.suggest_categorical("lora_scale", [1.0, 2.0, 4.0])
    trial.suggest_float("lora_dropout", 0.0, 0.2)
    trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)
    if trial.suggest_categorical("target_modules", ["query-value", "attention", "all-linear"]) == "all-linear":
        _mlp_ranks(trial)


def tool_calling_space(trial: Any) -> None:
    """As search_spaces/tool-calling-smollm2.yaml."""
    trial.suggest_categorical("r", [1, 2, 4, 8, 16, 32])
    trial.suggest_categorical("lora_scale", [1.0, 2.0, 4.0])
    trial.suggest_float("learning_rate", 5e-4, 5e-3, log=True)
    if trial.suggest_categorical("target_modules", ["attention", "mlp", "all-linear"]) != "attention":
        _mlp_ranks(trial)


def _mlp_ranks(trial: Any) -> None:
    trial.suggest_categorical("rank_pattern.mlp", [1, 4, 16])
    trial.suggest_categorical("rank_pattern.mlp@first", [0, 4])


SPACES = {"quickstart": quickstart_space, "tool-calling-smollm2": tool_calling_space}


def tokenized(job: Job, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """The data as token ids, lengths beside them."""
    files = {split: str(Path(job["data"]) / f"{split}.jsonl") for split in ("train", "validation")}
    rows = load_dataset("json", data_files=files)
    if job["task"] == "classification":
        ids = {label: index for index, label in enumerate(sorted(set(rows["train"]["label"])))}
        return rows.map(
            lambda batch: _texts(tokenizer, batch, ids, job["max_length"]),
            batched=True,
            remove_columns=rows["train"].column_names,
        )
    completions = rows.map(
        lambda row: _completion(tokenizer, row, job["system"]), remove_columns=rows["train"].column_names
    )
    return completions.filter(lambda length: length <= job["max_length"], input_columns="length")


def _texts(
    tokenizer: PreTrainedTokenizerBase, batch: dict[str, list[str]], ids: dict[str, int], max_length: int
) -> dict[str, Any]:
    encoded = tokenizer(batch["text"], truncation=True, max_length=max_length)
    lengths = [len(row) for row in encoded["input_ids"]]
    return {**encoded, "labels": [ids[label] for label in batch["label"]], "length": lengths}


def _completion(tokenizer: PreTrainedTokenizerBase, row: dict[str, str], system: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": row["utterance"]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(row["call"], add_special_tokens=False)["input_ids"]
    answer_ids = [*answer_ids, tokenizer.eos_token_id]
    whole = [*prompt_ids, *answer_ids]
    labels = [-100] * len(prompt_ids) + answer_ids
    return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": labels, "length": len(whole)}


def trainable(params: dict[str, Any], data: DatasetDict, job: Job) -> None:
    """One trial; heavy imports are the worker's alone."""
    begun = phases.now()
    sys.path.insert(0, str(HERE))
    from trial import train  # noqa: PLC0415 -- timed

    phases.note("imports", begun)
    train(params, data, job)


def main() -> None:
    """Search."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(
        "local",
        num_cpus=job["workers"],
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"], "TOKENIZERS_PARALLELISM": "false"}},
    )
    with phases.timed("tokenizing"):
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
        data = tokenized(job, tokenizer)
    goals = ["accuracy", "trainable_params", "peak_memory"]
    asha = ASHAScheduler(
        time_attr="steps",
        metric="accuracy",
        mode="max",
        max_t=job["max_steps"],
        grace_period=job["rungs"][0],
        reduction_factor=2,
    )
    everyone = FIFOScheduler()  # type: ignore[no-untyped-call]
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trainable, data=data, job=job), {"cpu": 1, "gpu": job["gpus_per_trial"]}
        ),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                SPACES[job["example"]],
                metric=goals,
                mode=["max", "min", "min"],
                seed=job["seed"],
                points_to_evaluate=job["points"] or None,
            ),
            scheduler=asha if job["is_pruned"] else everyone,
            num_samples=job["num_trials"],
            max_concurrent_trials=job["workers"],
            time_budget_s=job["time_limit_s"],
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="by-hand", storage_path=job["out"], verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise SystemExit(f"{len(results.errors)} trials failed: {results.errors[0]}")
    ray.shutdown()


if __name__ == "__main__":
    main()
