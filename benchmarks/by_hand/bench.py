"""Both programs side by side, in turn, and what comes out: `make bench`.

    .venv/bin/python benchmarks/by_hand/bench.py throughput --example quickstart --trials 20 --repeats 3
    .venv/bin/python benchmarks/by_hand/bench.py front --example quickstart --repeats 3
    .venv/bin/python benchmarks/by_hand/bench.py summary

`throughput` trains the same points in both programs to the end, nothing is pruned. `front` searches, each program with its own
sampler and its own rule of stopping. Each run is appended to results.json; the summary is worked out from all runs there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import figures
from measuring import Run, measure, read_by_hand, read_phases, read_tuner
from pydantic import TypeAdapter

from tuner.config import SweepConfig
from tuner.sweep_file import load_sweep_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
EXAMPLES = ("quickstart", "tool-calling-smollm2")
PROGRAMS = ("tuner", "by-hand")
NUM_WORKERS = 2
MOST_TRIALS = 1000
"""Of a front, which ends by its limit of time."""
RUNS = TypeAdapter(list[Run])
Kind = tuple[str, bool, int, str, int, str]


def main() -> None:
    """Measure, and write results.json."""
    asked = _arguments()
    runs = [] if asked.fresh else _kept(asked.results)
    for example in EXAMPLES if asked.example == "all" else (asked.example,):
        for repeat in range(0 if asked.what == "summary" else asked.repeats):
            for program in PROGRAMS if asked.program == "both" else (asked.program,):
                run = _measured(program, example, runs, asked)
                runs.append(run)
                _write(runs, asked.results)
                print(f"{example}, repeat {repeat}: {_told(run)}", flush=True)
    _write(runs, asked.results)
    print(json.dumps(summary(runs), indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "front", "summary"))
    parser.add_argument("--example", choices=(*EXAMPLES, "all"), default="all")
    parser.add_argument("--program", choices=(*PROGRAMS, "both"), default="both")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, help="as the sweep file says by default")
    parser.add_argument("--max-steps", type=int, help="of a trial; as the sweep file says by default")
    parser.add_argument("--workers", type=int, default=NUM_WORKERS, help="processes that train, of both programs")
    parser.add_argument("--on-gpu", action="store_true", help="the workers share one card")
    parser.add_argument("--trials-per-worker", default="1", help="of tuner: as resources.trials_per_worker")
    parser.add_argument("--without-cudnn-attention", action="store_true", help="by hand, on a card")
    parser.add_argument("--model", help="a folder, in place of the example's model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of both programs; what `auto` is by default")
    parser.add_argument("--time-limit-s", type=float, default=3600.0, help="of a front")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget the runs in results.json")
    return parser.parse_args()


def _measured(program: str, example: str, runs: list[Run], asked: argparse.Namespace) -> Run:
    """One run, with empty caches of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        place = Path(scratch)
        overrides = _overrides(example, asked, place)
        config = load_sweep_file(_file(example), overrides)
        run = Run(
            program=program,
            example=example,
            is_pruned=asked.what == "front",
            num_trials=config.search.num_trials,
            max_steps=config.training.max_steps,
            dtype=_dtype(config),
            wall_s=0.0,
            device=_device(config),
            workers=asked.workers,
            has_cudnn_attention=program == "by-hand" and not asked.without_cudnn_attention,
            trials_per_worker=config.resources.trials_per_worker if program == "tuner" else 1,
            peak_memory_bytes=0,
            cpu_s=0.0,
            load_before=os.getloadavg()[0],
        )
        caches = {
            "TUNER_CACHE": str(place / "tuner"),
            "HF_DATASETS_CACHE": str(place / "datasets"),
            "HF_HUB_OFFLINE": "1",
        }
        out = place / "out"
        if program == "tuner":
            command = [sys.executable, str(HERE / "run_tuner.py"), str(_file(example)), str(out), *overrides]
            begun_s = measure(run, command, place, caches)
            read_tuner(run, out, begun_s)
        else:
            job = place / "job.json"
            points = [] if run.is_pruned else _points(run, runs)
            job.write_text(json.dumps(_job(config, example, out, points, asked)), encoding="utf-8")
            begun_s = measure(run, [sys.executable, str(HERE / "search.py"), str(job)], place, caches)
            read_by_hand(run, out, begun_s)
        read_phases(run, place, begun_s)
        return run


def _file(example: str) -> Path:
    return ROOT / "search_spaces" / f"{example}.yaml"


def _overrides(example: str, asked: argparse.Namespace, place: Path) -> list[str]:
    """The example as a sweep of nothing but the search, on data that is split beforehand."""
    config = load_sweep_file(_file(example))
    overrides = [
        f"data.path={_split(config, place / 'data')}",
        "data.test=0",
        "confirm={}",
        "baselines={}",
        "search.budget={}",  # a front has a limit of time
        f"model.name={asked.model or _model(config)}",
        f"resources.trials_per_worker={asked.trials_per_worker}",
        f"resources.max_concurrent_trials={_at_a_time(asked)}",
    ]
    if asked.on_gpu:
        overrides.append(f"resources.gpus_per_trial={1 / asked.workers}")
    if asked.dtype:
        overrides.append(f"model.compute_dtype={asked.dtype}")
    if asked.trials:
        overrides.append(f"search.num_trials={asked.trials}")
    if asked.max_steps:
        overrides += [
            f"training.max_steps={asked.max_steps}",
            f"pruning.min_steps={min(asked.max_steps, config.rungs[0])}",
        ]
    if asked.what == "throughput":
        overrides.append("pruning.method=none")
    else:
        overrides += [f"search.num_trials={MOST_TRIALS}", f"search.budget.time_s={asked.time_limit_s}"]
    return overrides


def _split(config: SweepConfig, folder: Path) -> Path:
    """Training and validation data as `tuner` splits them, in files that both programs read."""
    from tuner.worker.data import load_splits  # noqa: PLC0415 -- pandas

    folder.mkdir(parents=True)
    splits = load_splits(config.data, config.training.task)
    is_classified = config.training.task == "classification"
    given, answer = ("text", "label") if is_classified else (config.data.prompt, config.data.completion)
    for name, examples in (("train", splits.train), ("validation", splits.validation)):
        lines = [json.dumps({given: one.text, answer: one.label}) for one in examples]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _model(config: SweepConfig) -> Path:
    """The model as safetensors; a GGUF file's conversion is done once for both."""
    path = Path(config.model.name)
    if path.suffix != ".gguf":
        return path
    from tuner.worker.gguf import converted  # noqa: PLC0415 -- torch

    return converted(path)


def _dtype(config: SweepConfig) -> str:
    """What `compute_dtype: auto` means on this machine."""
    import torch  # noqa: PLC0415 -- seconds

    from tuner.worker.model import compute_dtype  # noqa: PLC0415

    device = torch.device("cuda" if config.resources.uses_gpu else "cpu")
    return str(compute_dtype(config.model, device)).removeprefix("torch.")


def _device(config: SweepConfig) -> str:
    import torch  # noqa: PLC0415 -- seconds

    return torch.cuda.get_device_name() if config.resources.uses_gpu else "cpu"


def _at_a_time(asked: argparse.Namespace) -> int:
    """Trials of `tuner` that are under way at once: `auto` finds at most 8 for a worker."""
    each = 8 if asked.trials_per_worker == "auto" else int(asked.trials_per_worker)
    return int(asked.workers) * each


def _job(
    config: SweepConfig, example: str, out: Path, points: list[dict[str, Any]], asked: argparse.Namespace
) -> dict[str, Any]:
    """The sweep as the program by hand reads it."""
    training, is_pruned = config.training, asked.what == "front"
    return {
        "example": example,
        "model": config.model.name,
        "data": config.data.path,
        "system": config.data.system,
        "max_length": config.data.max_length,
        "task": training.task,
        "dtype": _dtype(config),
        "max_steps": training.max_steps,
        "batch_size": training.batch_size,
        "eval_batch_size": training.eval_batch_size,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": math.ceil(training.warmup_ratio * training.max_steps),
        "max_grad_norm": training.max_grad_norm,
        "rungs": config.rungs,
        "seed": training.seed,
        "workers": asked.workers,
        "gpus_per_trial": 1 / asked.workers if asked.on_gpu else 0,
        "has_cudnn_attention": not asked.without_cudnn_attention,
        "is_pruned": is_pruned,
        "num_trials": config.search.num_trials,
        "time_limit_s": asked.time_limit_s if is_pruned else None,
        "points": points,
        "out": str(out),
    }


def _points(run: Run, runs: list[Run]) -> list[dict[str, Any]]:
    """What `tuner` trained last in a run like this one."""
    like = [one for one in runs if one.program == "tuner" and _kind(one) == _kind(run)]
    if not like:
        sys.exit("run tuner first: the program by hand trains the same points")
    return [trial.params for trial in like[-1].trials]


def _kind(run: Run) -> Kind:
    """Runs that may be compared are of one kind."""
    return run.example, run.is_pruned, run.max_steps, run.dtype, run.num_trials, run.device


def summary(runs: list[Run]) -> dict[str, Any]:
    """Median, least and most of each figure, by example, size and program."""
    found: dict[str, Any] = {}
    for kind in sorted({_kind(run) for run in runs}):
        example, is_pruned, max_steps, dtype, num_trials, device = kind
        what = "search" if is_pruned else "nothing pruned"
        name = f"{example}, {what}, {num_trials} trials of {max_steps} steps, {dtype}, {device}"
        like = [run for run in runs if _kind(run) == kind]
        found[name] = {
            way: _summed([run for run in like if _way(run) == way], runs) for way in dict.fromkeys(map(_way, like))
        }
    return found


def _way(run: Run) -> str:
    """A program, in how many processes, with how many trials in each."""
    beside = f", {run.trials_per_worker} trials each" if run.trials_per_worker != 1 else ""
    is_without = run.program == "by-hand" and not run.has_cudnn_attention
    return f"{run.program}, {run.workers} processes{beside}{', without cuDNN attention' if is_without else ''}"


def _summed(like: list[Run], runs: list[Run]) -> dict[str, Any]:
    phases = sorted({phase for run in like for phase in run.phases})
    summed: dict[str, Any] = {
        "peak_memory_gib": figures.spread([run.peak_memory_bytes / 2**30 for run in like]),
        "share_of_workers_time": {
            phase: figures.spread([run.phases.get(phase, 0.0) / run.workers_s for run in like]) for phase in phases
        },
        "training_and_evaluation": figures.spread([_share_at_work(run) for run in like]),
    }
    if not like[0].is_pruned:
        rates = [figures.trials_per_hour([trial.finished_s for trial in run.trials]) for run in like]
        begun = [figures.trials_per_hour([one.finished_s - run.training_begun_s for one in run.trials]) for run in like]
        cpu_s = [run.cpu_s / len(run.trials) for run in like]
        return summed | {
            "trials_per_hour": figures.spread(rates),
            "trials_per_hour_once_training": figures.spread(begun),
            "cpu_s_per_trial": figures.spread(cpu_s),
        }
    full = _full(like[0], runs)
    if not full:
        return summed
    curves = [figures.shares(_finishes(run), full) for run in like]
    times = {
        f"s_to_{share:.0%}".replace("%", "_percent"): [figures.time_to(share, curve) for curve in curves]
        for share in (0.95, 0.99)
    }
    return (
        summed
        | times
        | {
            "share_reached": [curve[-1][1] if curve else 0.0 for curve in curves],
            "steps": [run.steps for run in like],
            "wall_s": [run.wall_s for run in like],
        }
    )


def _share_at_work(run: Run) -> float:
    return (run.phases.get("training", 0.0) + run.phases.get("evaluation", 0.0)) / run.workers_s


def _full(run: Run, runs: list[Run]) -> list[figures.Finish]:
    """The largest sweep of the example by the same program, for memory is that of its own layers, in which nothing was pruned."""
    like = (run.program, run.example, run.max_steps, run.dtype)
    whole = [one for one in runs if not one.is_pruned and (one.program, one.example, one.max_steps, one.dtype) == like]
    most = max(whole, key=lambda one: len(one.trials), default=None)
    return _finishes(most) if most else []


def _finishes(run: Run) -> list[figures.Finish]:
    return [
        (trial.finished_s, trial.accuracy, float(trial.trainable_params), float(trial.peak_memory_bytes))
        for trial in run.trials
    ]


def _told(run: Run) -> str:
    return (
        f"{run.program}: {len(run.trials)} trials finished, {run.steps} steps, {run.wall_s:.0f} s, "
        f"{run.peak_memory_bytes / 2**30:.2f} GiB, {_share_at_work(run):.0%} in training and evaluation"
    )


def _kept(file: Path) -> list[Run]:
    return RUNS.validate_python(json.loads(file.read_text(encoding="utf-8"))["runs"]) if file.is_file() else []


def _write(runs: list[Run], file: Path) -> None:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    whole = {"machine": machine, "summary": summary(runs), "runs": [dataclasses.asdict(run) for run in runs]}
    file.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
