"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cluster_cli import app as cluster_app
from tuner.errors import TunerError
from tuner.redaction import redacted
from tuner.without_gc import without_gc

if TYPE_CHECKING:
    from tuner.live import View
    from tuner.sweep import Sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the right LoRA: accuracy against trainable parameters and memory.",
)

app.add_typer(cluster_app)  # without a name: its commands stand beside these

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it."""

SweepFile = Annotated[Path, typer.Argument(help="The sweep's YAML file.", show_default=False)]
SweepDir = Annotated[Path, typer.Argument(help="The sweep's folder.", show_default=False)]
BackendName = Annotated[str | None, typer.Option("--backend", help="ray or local; as the sweep file says by default.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster: auto on one of its nodes, or host:port of its head. RAY_ADDRESS by default, else this machine."
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key.key=value put over the file; repeatable.")]


@app.command()
def run(
    sweep_file: SweepFile,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder; reports/<name> by default.")] = None,
    backend: BackendName = None,
    address: Address = None,
    overrides: Overrides = None,
) -> None:
    """Run a sweep and write its report."""
    from tuner import sweep  # noqa: PLC0415 -- keeps --help fast

    with _interruptible():
        _tell(sweep.run(sweep_file, out=out, backend=backend, address=address, overrides=overrides or (), view=_view()))


@app.command()
def resume(
    folder: Annotated[
        str,
        typer.Argument(help="The sweep's folder; or its resources.storage, on another machine.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="With a storage: a new folder; reports/<name> by default.")] = None,
    backend: BackendName = None,
    address: Address = None,
) -> None:
    """Go on with a sweep that was interrupted."""
    from tuner import sweep  # noqa: PLC0415 -- keeps --help fast

    with _interruptible():
        _tell(sweep.resume(folder, out=out, backend=backend, address=address, view=_view()))


@app.command()
def report(
    folder: SweepDir,
    watch: Annotated[  # noqa: FBT002 -- typer's way
        bool, typer.Option("--watch", help="Write it again as the journal grows, until the sweep is over.")
    ] = False,
) -> None:
    """Write a sweep's report anew from its journal."""
    if watch:
        from tuner import watching  # noqa: PLC0415 -- keeps --help fast

        typer.echo(
            f"report: {folder / 'report.html'}, written anew every {watching.EVERY_S:g} s; Ctrl-C ends it", err=True
        )
        with _interruptible("no longer watched; the sweep goes on"):
            _tell(watching.watch(folder))
        return
    with without_gc():  # most of the time goes into imports, which make many values too
        from tuner import sweep  # noqa: PLC0415
        from tuner.report import write_report  # noqa: PLC0415

        loaded = sweep.load(folder)
        write_report(folder, loaded.config, loaded.inspection, loaded.records)
    _tell(loaded)


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="The sweeps' folders, two or more.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A folder for compare.html and compare.json.")] = Path("reports/compare"),
) -> None:
    """Put several sweeps of the same task on one page."""
    from tuner import sweep  # noqa: PLC0415 -- keeps --help fast
    from tuner.report.compare import compare as compare_reports  # noqa: PLC0415
    from tuner.report.compare_page import write_comparison  # noqa: PLC0415
    from tuner.report.writing import report_data  # noqa: PLC0415

    loaded = [sweep.load(folder) for folder in folders]
    reports = [report_data(one.folder, one.config, one.inspection, one.records) for one in loaded]
    page, _ = write_comparison(compare_reports(reports), out)
    typer.echo(f"comparison: {page}")


@app.command()
def export(  # noqa: PLR0913, PLR0917 -- each is an option
    folder: SweepDir,
    to: Annotated[
        Path, typer.Option(help="A new folder; with several picks it gets a folder for each.", show_default=False)
    ],
    pick: Annotated[
        list[str] | None,
        typer.Option(
            help="knee (the default), most-accurate, trial:N, within:0.01 or :1se, max-params:2M, max-memory:24GiB; repeatable, "
            "or front for all."
        ),
    ] = None,
    form: Annotated[str, typer.Option("--as", help="peft, serving, merged or gguf.")] = "peft",
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank of the result, by SVD.")] = None,
    dtype: Annotated[str, typer.Option(help="Of a merged model: float32, bfloat16 or float16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of an export that is there.")] = False,  # noqa: FBT002 -- typer's way
) -> None:
    """Export adapters in some form, with tokenizer, model card and provenance, each checked in a process of its own."""
    from tuner.exporting import export_all  # noqa: PLC0415 -- keeps --help fast

    picks = tuple(pick or ("knee",))
    for exported in export_all(folder, to=to, picks=picks, form=form, rank=rank, dtype=dtype, overwrite=overwrite):
        typer.echo(f"trial {exported.number} is in {exported.folder} as {exported.form}; {exported.words}")


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(help="An export.", show_default=False)],
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are generated each time.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Times that are counted, after one that is not.")] = 5,
) -> None:
    """Time generation: the base, the base with the adapter, and both merged."""
    from tuner.exporting.bench import bench as bench_export  # noqa: PLC0415 -- keeps --help fast
    from tuner.exporting.bench import bench_text  # noqa: PLC0415

    typer.echo(bench_text(bench_export(folder, num_new=new_tokens, num_repeats=repeats)))


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="An export.", show_default=False)],
    repo: Annotated[str, typer.Argument(help="owner/name on the hub.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public.")] = False,  # noqa: FBT002 -- typer's way
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go there; send nothing.")] = False,  # noqa: FBT002
) -> None:
    """Put an export on the Hugging Face hub."""
    from tuner.exporting.push import push as push_export  # noqa: PLC0415 -- keeps --help fast

    pushed = push_export(folder, repo, is_private=not public, is_dry=dry_run)
    for name, size in pushed.files:
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"{pushed.repo}: {pushed.url or 'nothing was sent'}")


@app.command()
def recommend(
    model: Annotated[str, typer.Option(help="A folder, a .gguf file or a hub id.", show_default=False)],
    task: Annotated[str, typer.Option(help="classification, summarization, question-answering or generation")],
    examples: Annotated[int, typer.Option(help="How many training examples there are.", show_default=False)],
) -> None:
    """Say where a search should start, and why."""
    from tuner.advice import advise  # noqa: PLC0415 -- keeps --help fast

    typer.echo(advise(model, task, examples))


@app.command()
def plan(  # noqa: PLR0913, PLR0917 -- each is an option
    sweep_file: SweepFile,
    gpu: Annotated[
        str | None, typer.Option(help="A card, such as L4-24GB or 24GiB; as the file says by default.")
    ] = None,
    trials: Annotated[int, typer.Option(min=0, help="How many trials to sample.")] = 20,
    explain: Annotated[bool, typer.Option("--explain", help="Break every peak down.")] = False,  # noqa: FBT002 -- typer's way
    step_s: Annotated[float | None, typer.Option(min=0, help="Seconds of an optimizer step.")] = None,
    like: Annotated[Path | None, typer.Option(help="A sweep's folder, for its step time.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU hour.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for plan.txt, plan.json and plan.png.")] = None,
    overrides: Overrides = None,
) -> None:
    """Say what a sweep will need of a GPU, without one and without weights; start nothing."""
    from tuner import sweep  # noqa: PLC0415 -- keeps --help fast
    from tuner.planning import make_plan, measured_step_s  # noqa: PLC0415
    from tuner.planning.text import plan_text  # noqa: PLC0415
    from tuner.planning.writing import write_plan  # noqa: PLC0415
    from tuner.sweep_file import load_sweep_file  # noqa: PLC0415

    config = load_sweep_file(sweep_file, overrides or ())
    if like is not None:
        step_s = measured_step_s(sweep.load(like).records)
    planned = make_plan(config, str(sweep_file), gpu=gpu, num_samples=trials, step_s=step_s)
    typer.echo(plan_text(planned, is_explained=explain, price=price))
    if out is not None:
        write_plan(planned, out, price=price)
        typer.echo(f"plan: {out / 'plan.txt'}")


@app.command()
def validate(sweep_file: SweepFile, overrides: Overrides = None) -> None:
    """Check a sweep file; start nothing."""
    from tuner.sweep_file import load_sweep_file  # noqa: PLC0415 -- keeps --help fast

    config = load_sweep_file(sweep_file, overrides or ())
    typer.echo(
        f"{sweep_file} is a sweep of {config.search.num_trials} trials, evaluated at steps {_listed(config.rungs)}"
    )


def main() -> None:
    """Run the command line; errors that a person can mend are one message, never a traceback."""
    sys.excepthook = _show_redacted
    try:
        typer.main.get_command(app)()  # app() would put a hook of its own in the place of ours
    except TunerError as error:
        typer.echo(f"error: {redacted(str(error), os.environ)}", err=True)
        sys.exit(error.exit_code)


def _show_redacted(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
    """What nobody has foreseen, as Python shows it, without secrets."""
    typer.echo(redacted("".join(traceback.format_exception(kind, error, frames)), os.environ), err=True, nl=False)


@contextlib.contextmanager
def _interruptible(
    words: str = "interrupted; all that was reported is kept, `tuner resume DIR` goes on from there",
) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(words, err=True)
        raise typer.Exit(INTERRUPTED) from None


def _view() -> View:
    from tuner.live import LiveView, PlainView  # noqa: PLC0415 -- keeps --help fast

    return LiveView() if sys.stderr.isatty() else PlainView()


def _tell(sweep: Sweep) -> None:
    from tuner import metric_text  # noqa: PLC0415 -- keeps --help fast
    from tuner.front import GIB  # noqa: PLC0415
    from tuner.trial import MemoryKind, TrialState  # noqa: PLC0415

    metric = sweep.config.metric
    baselines = (record for record in sweep.records if record.spec.baseline and record.state is TrialState.COMPLETE)
    for record in (*sweep.front, *baselines):
        if record.last:
            mark = " predicted" if record.last.memory_kind is MemoryKind.PREDICTED else ""
            name = record.spec.label if record.spec.baseline else f"trial {record.number:>3}"
            typer.echo(
                f"{name}: {metric_text.name(metric)} {metric_text.text(metric, record.last.accuracy)}, "
                f"{record.last.trainable_params:,} parameters, {record.last.peak_memory_bytes / GIB:.3f} GiB{mark}"
            )
    typer.echo(f"report: {sweep.folder / 'report.html'}")


def _listed(steps: tuple[int, ...]) -> str:
    return ", ".join(str(step) for step in steps)
