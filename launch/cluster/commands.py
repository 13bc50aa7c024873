"""The commands of jobs on a cluster: `minirl submit`, `jobs`, `status`, `logs` and `stop`."""

import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.config import RunConfig
from launch.interruption import INTERRUPTED
from minirl.config.reader import read_config
from minirl.errors import InputError

if TYPE_CHECKING:
    from launch.cluster.jobs import Job

ADDRESS = typer.Option(help="URL of the cluster's dashboard, for example http://10.0.0.1:8265.", envvar="RAY_API_SERVER_ADDRESS")
JOB = typer.Argument(help="Id of a job, as `minirl submit` and `minirl jobs` print it.")
SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")
FAILED = 1  # exit code


def submit(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, for example configs/quickstart.yaml.")],
    address: Annotated[str, ADDRESS],
    overrides: Annotated[list[str] | None, typer.Argument(help="Config values to replace, as key.path=value.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the progress until the run ends, and exit with its exit code.")] = False,
    python: Annotated[str, typer.Option(help="Python on the head node that has this program's requirements.")] = "python",
    env: Annotated[list[str] | None, typer.Option(help="Environment variable of the run, NAME=VALUE; repeat the option for more.")] = None,
    stop_wait: Annotated[int, typer.Option(min=1, help="Seconds that a stopped run may take to write its checkpoint.")] = 600,
) -> None:
    """Run a config as a job of a Ray cluster; returns when its first stage begins. Submitting the same directory again resumes the run."""
    settings = read_config(RunConfig, config, overrides or [])
    variables = _variables(env or [])
    from launch.cluster.jobs import Jobs
    from launch.progress import make_console

    jobs, console = Jobs(address), make_console()
    job, notes = jobs.submit(settings, python=python, variables=variables, stop_wait_s=stop_wait)
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"job {job.id}; `minirl logs {job.id} --follow` shows its progress, `minirl stop {job.id}` ends it", highlight=False)
    _show(jobs.follow(job.id), live=True, until_first_stage=not follow)
    if follow or jobs.get(job.id).is_over:
        _exit_like(jobs.wait_over(job.id, stop_wait + 60.0))


def jobs(address: Annotated[str, ADDRESS]) -> None:
    """List the jobs of runs on a cluster."""
    from launch.cluster.jobs import Jobs
    from launch.progress import make_console, rich_table
    from minirl.tables import Table

    rows = [
        [job.id, job.status.lower(), _exit(job), _moment(job.started), _moment(job.ended), job.directory] for job in Jobs(address).all()
    ]
    columns = ["job", "status", "exit code", "started", "ended", "run directory"]
    make_console().print(rich_table(Table(f"Jobs of {address}", columns, rows)))


def status(job: Annotated[str, JOB], address: Annotated[str, ADDRESS]) -> None:
    """Say how a job is doing, and what it reported last."""
    from launch.cluster.jobs import Jobs
    from launch.progress import make_console
    from launch.progress_lines import RECORD

    cluster, console = Jobs(address), make_console()
    details = cluster.get(job)
    times = f"started {_moment(details.started)}" + (f", ended {_moment(details.ended)}" if details.ended else "")
    code = "" if details.exit_code is None else f" with exit code {details.exit_code}"
    console.print(f"{details.id}: {details.status.lower()}{code}; {times}; in {details.directory}", highlight=False, soft_wrap=True)
    lines = cluster.lines(job)
    records = [line for line in lines[:-1] if line.startswith(RECORD)]
    _show([*records[-1:], *lines[-1:]], live=False)


def logs(
    job: Annotated[str, JOB],
    address: Annotated[str, ADDRESS],
    follow: Annotated[bool, typer.Option("--follow", help="Show the progress until the run ends, and exit with its exit code.")] = False,
) -> None:
    """Show the progress of a job, as `minirl run` shows it."""
    from launch.cluster.jobs import Jobs

    cluster = Jobs(address)
    details = cluster.get(job)
    if not follow:
        _show(cluster.lines(job), live=False)
        return
    _show(cluster.follow(job), live=not details.is_over)
    _exit_like(cluster.wait_over(job, 60.0))


def stop(job: Annotated[str, JOB], address: Annotated[str, ADDRESS]) -> None:
    """Let a job write a checkpoint and end. Submitting the same directory again resumes the run."""
    from launch.cluster.jobs import STOP_WAIT, Jobs
    from launch.progress import make_console

    cluster, console = Jobs(address), make_console()
    details = cluster.get(job)
    if details.is_over:
        console.print(f"{job} is over already: {details.status.lower()}", highlight=False)
        return
    lines_before, began = len(cluster.lines(job)), time.monotonic()
    cluster.stop(job)
    with console.status(f"{job} ends"):
        over = cluster.wait_over(job, float(details.variables.get(STOP_WAIT, 0)) + 60.0)
    _show(cluster.lines(job)[lines_before:], live=False)
    console.print(f"{job}: {over.status.lower()} after {time.monotonic() - began:.0f} s", highlight=False)


def _variables(assignments: list[str]) -> dict[str, str]:
    variables = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise InputError(f"--env {assignment} must have the form NAME=VALUE")
        if any(word in name.upper() for word in SECRET_WORDS):
            raise InputError(f"--env {name}: every user of the cluster can read a job's variables; give secrets to the nodes instead")
        variables[name] = value
    return variables


def _show(lines: Iterable[str], *, live: bool, until_first_stage: bool = False) -> None:
    """Prints the lines of a job, and draws its progress. until_first_stage: stops at the first report of a stage."""
    from launch.progress import ProgressPanel, make_console
    from launch.progress_lines import EVENT, EventClock, replay

    console, clock = make_console(), EventClock()
    with ProgressPanel(console, clock=clock, live=live) as panel:
        for line in lines:
            if until_first_stage and line.startswith(EVENT):
                return
            text = replay(line, panel, clock)
            if text is not None:
                console.print(text, highlight=False, markup=False, soft_wrap=True)


def _exit_like(job: "Job") -> None:
    """Ends this command with the exit code of the job's driver; 130 for a job that was stopped."""
    if job.status == "STOPPED":
        raise typer.Exit(INTERRUPTED)
    if job.exit_code is None and job.status == "FAILED":
        from launch.progress import make_console

        make_console().print(f"the job {job.id} failed: {job.message}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(FAILED)
    raise typer.Exit(job.exit_code or 0)


def _exit(job: "Job") -> str:
    return "" if job.exit_code is None else str(job.exit_code)


def _moment(time_s: float | None) -> str:
    return "" if time_s is None else datetime.fromtimestamp(time_s).strftime("%Y-%m-%d %H:%M:%S")
