"""The command line of clusters: `submit`, `status`, `stop`, `fetch`. Everything heavy is imported inside the command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tuner.cluster.jobs import Cluster

app = typer.Typer()

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect it."""
DashboardAddress = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="Of the cluster's dashboard, as forwarded to this machine."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The sweep's, as `tuner submit` said it.", show_default=False)]
HERE = "http://127.0.0.1:8265"
"""Where `ray dashboard` forwards it to."""


@app.command()
def submit(  # noqa: PLR0913, PLR0917 -- each is an option
    sweep_file: Annotated[Path, typer.Argument(help="The sweep's YAML file.", show_default=False)],
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
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.key=value put over the file; repeatable.")
    ] = None,
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
    with _ctrl_c(f"no longer waited for; {job_id} ends when it has saved"):
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


def _follow(cluster: Cluster, job_id: str) -> None:
    with _ctrl_c(
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
def _ctrl_c(words: str) -> Iterator[None]:
    """Ctrl-C ends what is shown here, not what runs there."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(words, err=True)
        raise typer.Exit(INTERRUPTED) from None
