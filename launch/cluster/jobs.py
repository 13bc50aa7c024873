"""The jobs of runs on a cluster: submit, list, follow and stop them through Ray's job API."""

import asyncio
import re
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from launch.cluster.connection import answered, connect
from launch.cluster.working_directory import write_working_directory
from launch.config import RunConfig
from launch.progress_lines import LineBuffer
from minirl.errors import InputError, RunError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

DIRECTORY = "minirl_directory"  # the key of a job's metadata that marks it as ours
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # seconds between SIGTERM and SIGKILL of a job; Ray reads it in the job's own environment
RAYS_OWN = re.compile(r"\d{4}-\d\d-\d\d \S+ INFO job_manager\.py|Running entrypoint for job ")  # lines that Ray puts before the driver's
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Job:
    """A job as the cluster describes it.

    status: Ray's word, such as "RUNNING". exit_code: None until the driver ended by itself. started, ended: seconds since 1970. variables:
    of its environment. message: what Ray says about the status, with the end of the output if the job failed.
    """

    id: str
    directory: str
    status: str
    exit_code: int | None
    started: float | None
    ended: float | None
    variables: dict[str, str]
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Jobs:
    """The jobs of one cluster. Errors of the connection and of the token are InputErrors."""

    def __init__(self, address: str):
        self._client = connect(address)
        self._url = self._client.get_address()

    def submit(self, config: RunConfig, *, python: str, variables: dict[str, str], stop_wait_s: int) -> tuple[Job, list[str]]:
        """Starts a run as a job. Returns the job, and a sentence for each path that the nodes must see.

        python: the Python on the head that has this program's requirements. variables: of the job's environment; every user of the cluster
        can read them. stop_wait_s: seconds between SIGTERM and SIGKILL. Raises InputError if a job works in the run's directory already.
        """
        jobs, run_directory = self.all(), str(Path(config.directory).absolute())
        for job in jobs:
            if job.directory == run_directory and not job.is_over:
                raise InputError(f"the job {job.id} works in {run_directory}; wait for it, or end it with `minirl stop {job.id}`")
        with tempfile.TemporaryDirectory(prefix="minirl-job-") as directory:
            notes = write_working_directory(config, Path(directory))
            environment = variables | {STOP_WAIT: str(stop_wait_s), "PYTHONUNBUFFERED": "1"}
            job_id = self._request(
                lambda: self._client.submit_job(
                    submission_id=_free_id(Path(run_directory).name, {job.id for job in jobs}),
                    entrypoint=f"exec {shlex.quote(python)} -m launch.job",
                    runtime_env={"working_dir": directory, "env_vars": environment},
                    metadata={DIRECTORY: run_directory},
                )
            )
        return self.get(job_id), notes

    def all(self) -> list[Job]:
        """Every job of a run that the cluster remembers, the oldest first."""
        jobs = [_job(details) for details in self._request(self._client.list_jobs) if DIRECTORY in (details.metadata or {})]
        return sorted(jobs, key=lambda job: job.started or 0)

    def get(self, job_id: str) -> Job:
        """Raises InputError if the cluster knows no such job of a run."""
        try:
            details = self._request(lambda: self._client.get_job_info(job_id))
        except RuntimeError:
            details = None
        if details is None or DIRECTORY not in (details.metadata or {}):
            known = ", ".join(job.id for job in self.all()[-5:]) or "none"
            raise InputError(f"the cluster has no job {job_id} of a run; it has {known} (`minirl jobs` lists all)")
        return _job(details)

    def stop(self, job_id: str) -> None:
        """Asks the job's driver to write a checkpoint and end. Does not wait for it."""
        self._request(lambda: self._client.stop_job(job_id))

    def wait_over(self, job_id: str, timeout_s: float) -> Job:
        """The job once it is over. Raises RunError if that takes longer."""
        end = time.monotonic() + timeout_s
        while not (job := self.get(job_id)).is_over:
            if time.monotonic() > end:
                raise RunError(f"the job {job_id} did not end within {timeout_s:g} s; look at `minirl logs {job_id}`")
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return job

    def lines(self, job_id: str) -> list[str]:
        """All lines that the job's driver has written."""
        return [line for line in self._request(lambda: self._client.get_job_logs(job_id)).splitlines() if not RAYS_OWN.match(line)]

    def follow(self, job_id: str) -> Iterator[str]:
        """The lines of the job's driver as they are written, from the first one until the job is over."""
        pieces: SimpleQueue = SimpleQueue()
        Thread(target=lambda: asyncio.run(self._tail(job_id, pieces)), daemon=True).start()
        buffer = LineBuffer()
        while isinstance(piece := pieces.get(), str):
            yield from (line for line in buffer.lines(piece) if not RAYS_OWN.match(line))
        yield from buffer.rest()
        if isinstance(piece, Exception):
            raise RunError(f"the connection to the cluster was lost while following {job_id} ({first_line(piece)}); the job goes on")

    async def _tail(self, job_id: str, pieces: SimpleQueue) -> None:
        """Puts pieces of the job's output, then None or the error that ended it."""
        try:
            async for piece in self._client.tail_job_logs(job_id):
                pieces.put(piece)
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    def _request(self, request: Any) -> Any:
        return answered(request, self._url)


def _job(details: "JobDetails") -> Job:
    started, ended = ((time_ms / 1000 if time_ms else None) for time_ms in (details.start_time, details.end_time))
    status, exit_code = str(details.status.value), details.driver_exit_code
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return Job(details.submission_id, details.metadata[DIRECTORY], status, exit_code, started, ended, variables, details.message or "")


def _free_id(name: str, used: set[str]) -> str:
    """`NAME-1`, `NAME-2`, ...: the first that no job has."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    return next(job_id for number in range(1, len(used) + 2) if (job_id := f"{name}-{number}") not in used)
