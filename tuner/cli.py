"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.errors import TunerError
from tuner.redaction import redacted

if TYPE_CHECKING:
    from tuner.cluster.jobs import Cluster
    from tuner.live import View
    from tuner.sweep import Sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find the right LoRA: accuracy against trainable parameters and memory.",
)

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
def resume(folder: SweepDir, backend: BackendName = None, address: Address = None) -> None:
    """Go on with a sweep that was interrupted."""
    from tuner import sweep  # noqa: PLC0415 -- keeps --help fast

    with _interruptible():
        _tell(sweep.resume(folder, backend=backend, address=address, view=_view()))


@app.command()
def report(
    folder: SweepDir,
    watch: Annotated[  # noqa: FBT002 -- typer's way
        bool, typer.Option("--watch", help="Write it again as the journal grows, until the sweep is over.")
    ] = False,
) -> None:
    """Write a sweep's report anew from its journal."""
    from tuner import sweep, watching  # noqa: PLC0415 -- keeps --help fast
    from tuner.report import write_report  # noqa: PLC0415

    if watch:
        typer.echo(
            f"report: {folder / 'report.html'}, written anew every {watching.EVERY_S:g} s; Ctrl-C ends it", err=True
        )
        with _interruptible("no longer watched; the sweep goes on"):
            _tell(watching.watch(folder))
        return
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Take the place of what is there.")] = False,  # noqa: FBT002 -- typer's way
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


DashboardAddress = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard, as forwarded to this machine."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The sweep's, as `tuner submit` said it.", show_default=False)]
HERE = "http://127.0.0.1:8265"


@app.command()
def submit(  # noqa: PLR0913, PLR0917 -- each is an option
    sweep_file: SweepFile,
    address: DashboardAddress = HERE,
    out: Annotated[
        str | None,
        typer.Option(
            help="The sweep's folder on the cluster; $TUNER_REPORTS/<name> there by default, else ~/reports/<name>."
        ),
    ] = None,
    resumes: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that is in that folder.")] = False,  # noqa: FBT002 -- typer's way
    install: Annotated[  # noqa: FBT002
        bool,
        typer.Option("--install", help="Install tuner there for this job, in the versions that are installed here."),
    ] = False,
    shared: Annotated[
        list[Path] | None, typer.Option(help="A folder that the cluster sees under the same path; repeatable.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show what the sweep prints until it is over.")] = True,  # noqa: FBT002
    overrides: Overrides = None,
) -> None:
    """Send a sweep to a Ray cluster, with the data and the model that it names, and follow it."""
    from tuner.cluster.jobs import Cluster  # noqa: PLC0415 -- keeps --help fast
    from tuner.cluster.parcel import plan_parcel  # noqa: PLC0415
    from tuner.cluster.request import sweep_request  # noqa: PLC0415

    parcel = plan_parcel(sweep_file, overrides or (), shared or ())
    request = sweep_request(parcel.config.name, folder=out, is_resumed=resumes, is_installed=install)
    cluster = Cluster(address)
    job_id = cluster.submit(request, parcel)
    typer.echo(f"sent as {job_id}", err=True)
    if follow:
        _follow(cluster, job_id)


@app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One sweep; all by default.")] = None,
    address: DashboardAddress = HERE,
    follow: Annotated[bool, typer.Option("--follow", help="Show what it prints until it is over.")] = False,  # noqa: FBT002 -- typer's way
) -> None:
    """Say how the sweeps of a cluster are getting on."""
    from tuner.cluster.job_text import job_text, jobs_text  # noqa: PLC0415
    from tuner.cluster.jobs import Cluster  # noqa: PLC0415 -- keeps --help fast

    cluster = Cluster(address)
    if job_id is None:
        typer.echo(jobs_text(cluster.jobs(), time.time()))
        return
    typer.echo(job_text(cluster.job(job_id), "" if follow else cluster.log(job_id), time.time()))
    if follow:
        _follow(cluster, job_id)


@app.command()
def stop(
    job_id: JobId,
    address: DashboardAddress = HERE,
    wait: Annotated[bool, typer.Option(help="Wait until it has saved and ended.")] = True,  # noqa: FBT002 -- typer's way
) -> None:
    """End a sweep on a cluster as Ctrl-C would: it saves, writes its report, and can be resumed."""
    from tuner.cluster.jobs import Cluster  # noqa: PLC0415 -- keeps --help fast

    cluster = Cluster(address)
    job = cluster.job(job_id)
    if job.is_over:
        typer.echo(f"{job_id} is over already: {job.status.lower()}")
        return
    cluster.stop(job_id)
    with _interruptible(f"no longer waited for; {job_id} ends when it has saved"):
        state = cluster.watch(job_id) if wait else None
    typer.echo(f"{job_id}: {state.lower()}" if state else f"{job_id} was asked to end")


@app.command()
def fetch(
    job_id: JobId,
    to: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    address: DashboardAddress = HERE,
    like: Annotated[
        Path | None,
        typer.Option(help="The sweep file here: model and data are looked for where it says, as for an export."),
    ] = None,
) -> None:
    """Bring a sweep's folder from a cluster: report, journal, adapters of the front."""
    from tuner.cluster.fetching import fetch as fetch_folder  # noqa: PLC0415 -- keeps --help fast
    from tuner.cluster.jobs import Cluster  # noqa: PLC0415
    from tuner.cluster.moved import rename_inputs  # noqa: PLC0415

    cluster = Cluster(address)
    size = fetch_folder(cluster, cluster.job(job_id), to)
    if like is not None:
        rename_inputs(like, to)
    typer.echo(f"{size / 2**20:.1f} MiB came; report: {to / 'report.html'}")


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


def _follow(cluster: Cluster, job_id: str) -> None:
    with _interruptible(
        f"no longer followed; {job_id} goes on: `tuner status {job_id} --follow`, `tuner stop {job_id}`, each with "
        f"--address {cluster.address}"
    ):
        cluster.follow(job_id, lambda lines: typer.echo(lines, nl=False))
    job = cluster.job(job_id)
    typer.echo(f"{job_id}: {job.status.lower()}", err=True)
    if job.status == "SUCCEEDED":
        typer.echo(f"results: `tuner fetch {job_id} --to DIR --address {cluster.address}`", err=True)
        return
    raise typer.Exit(job.exit_code or 1)


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
