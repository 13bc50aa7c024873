"""The coordinator's end: contestants as processes, what their turns took, what memory their process trees held."""

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

from tests.benchmarks.turns import Worked

ROOT = Path(__file__).parents[2]
DEADLINE_S = 900.0
LOOK_S = (0.25, 2.0)  # between two looks at a contestant's memory, until its first update is done and after: a look costs it 0.05 s
MODULES = {"ours": "ours", "trl": "trl_minillm", "plain": "plain"}


@dataclass(frozen=True)
class Turn:
    """seconds: wall clock, from the order to the answer."""

    seconds: float
    worked: Worked


class Contestant:
    """A started contestant. peak_bytes: the most proportional set size (PSS) that its process tree held at once."""

    def __init__(self, name: str, job: Path, threads: int, python: str):
        self.name, self.log_path = name, job.with_name(f"{name}.log")
        self.peak_bytes = 0
        self.turns: list[Turn] = []
        self.log = self.log_path.open("wb")
        command = [python, "-m", f"tests.benchmarks.{MODULES[name]}", str(job)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log
        )

    def wait_ready(self) -> None:
        with self._watched():
            self._read()

    def update(self) -> None:
        with self._watched():
            began = time.perf_counter()
            self._write({"do": "update"})
            answer = self._read()
            self.turns.append(Turn(time.perf_counter() - began, Worked(**answer)))

    def export(self, directory: Path) -> Path:
        self._write({"do": "export", "to": str(directory)})
        self._read()
        return directory

    def stop(self) -> None:
        """The closed pipe asks it to end; what is left of its process tree after a minute is killed."""
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
        """What the living processes of its tree have computed so far."""
        return sum(times.user + times.system for times in self._each("cpu_times"))

    def _write(self, order: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # `_read` tells why
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"did not answer within {DEADLINE_S:g} s"
            raise RuntimeError(f"the contestant {self.name} {what}; the end of {self.log_path}:\n{tail(self.log_path)}")
        return json.loads(line)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look at the memory now and then while it computes: idle contestants are not looked at, which would cost the others."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_S[bool(self.turns)]):
                self.peak_bytes = max(self.peak_bytes, sum(memory.pss for memory in self._each("memory_full_info")))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _each(self, method: str) -> Iterator[Any]:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                yield getattr(process, method)()

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []


def environment(threads: int) -> dict[str, str]:
    """The same for all: as many threads as asked for, and none that spins when its work is done."""
    chosen = {"OMP_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    return {**os.environ, **chosen, **quiet}


def tail(path: Path, size: int = 3000) -> str:
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
        raise SystemExit("TRL has an environment of its own: make benchmark-trl makes it, or leave trl out of --contestants")
    return str(python)
