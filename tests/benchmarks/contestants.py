"""Contestants as processes: request and time their updates, measure their memory and CPU time."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from tests.benchmarks.protocol import UpdateCounts

ROOT = Path(__file__).parents[2]
DEADLINE_S = 900.0
SAMPLING_S = (0.25, 2.0)  # between two memory measurements, before and after the first update; one costs the contestant 0.05 s
MODULES = {"ours": "ours", "trl": "trl_minillm", "plain": "plain"}


@dataclass(frozen=True)
class TimedUpdate:
    """One update. seconds: wall clock, from the request to the answer. worked: its counts."""

    seconds: float
    worked: UpdateCounts


class ContestantProcess:
    """A started contestant. peak_bytes: the largest proportional set size (PSS) of its process tree at any measurement."""

    def __init__(self, name: str, job: Path, threads: int, python: str):
        self.name, self.log_path = name, job.with_name(f"{name}.log")
        self.peak_bytes = 0
        self.updates: list[TimedUpdate] = []
        self.log = self.log_path.open("wb")
        command = [python, "-m", f"tests.benchmarks.{MODULES[name]}", str(job)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )

    def wait_ready(self) -> None:
        with self._memory_measured():
            self._read()

    def update(self) -> None:
        """Request one update, wait for it and append it to `updates`."""
        with self._memory_measured():
            start = time.perf_counter()
            self._write({"do": "update"})
            answer = self._read()
            self.updates.append(TimedUpdate(time.perf_counter() - start, UpdateCounts(**answer)))

    def export(self, directory: Path) -> Path:
        """Let the contestant write its student into `directory`."""
        self._write({"do": "export", "to": str(directory)})
        self._read()
        return directory

    def stop(self) -> None:
        """Close the pipe, which ends the contestant. Kill the processes of its tree that still run after a minute."""
        tree = self._tree()
        self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        for process in [*tree, *self._tree()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()

    def cpu_seconds(self) -> float:
        """CPU seconds so far of the living processes of its tree."""
        return sum(times.user + times.system for times in self._measure_tree("cpu_times"))

    def _write(self, request: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # `_read` reports the cause
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            failure = "ended" if ready else f"did not answer within {DEADLINE_S:g} s"
            raise RuntimeError(f"the contestant {self.name} {failure}; the end of {self.log_path}:\n{tail(self.log_path)}")
        return json.loads(line)

    @contextmanager
    def _memory_measured(self) -> Iterator[None]:
        """Measure the memory at intervals while the contestant computes. An idle one is not measured: that would slow the others down."""
        finished = threading.Event()

        def measure() -> None:
            while not finished.wait(SAMPLING_S[bool(self.updates)]):
                self.peak_bytes = max(self.peak_bytes, sum(memory.pss for memory in self._measure_tree("memory_full_info")))

        thread = threading.Thread(target=measure)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    def _measure_tree(self, method: str) -> Iterator[Any]:
        """The result of a `psutil.Process` method for each process of the tree."""
        for process in self._tree():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                yield getattr(process, method)()

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []


def environment(threads: int) -> dict[str, str]:
    """Environment variables, the same for all contestants: the number of threads, and no idle thread that spins."""
    thread_settings = {
        "OMP_NUM_THREADS": str(threads),
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
    }
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **thread_settings, **quiet}


def tail(path: Path, size: int = 3000) -> str:
    """The last `size` bytes of a file, as text."""
    file: IO[bytes]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


def python_of(name: str) -> str:
    """The interpreter of a contestant's environment."""
    if name != "trl":
        return sys.executable
    python = ROOT / ".venv-trl" / "bin" / "python"
    if not python.is_file():
        raise SystemExit("TRL runs in a separate environment, which is missing: run make benchmark-trl, or leave trl out of --contestants")
    return str(python)
