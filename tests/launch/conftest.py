"""A tiny experiment on disk, and the real command that runs it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.tiny import tiny_model

VOCABULARY = 192
COMMAND = [str(Path(sys.executable).with_name("minirl")), "run"]
MARK = "MINIRL_TEST_RUN"
SECONDS = 300
NO_CLUSTER = "127.0.0.1:1"  # where nobody answers: what ends well, or with another error, has not asked for a cluster


@dataclass(frozen=True)
class Experiment:
    """Models and data of a tiny experiment; `settings` are what every test starts from."""

    root: Path
    settings: dict

    def config(self, name: str, **changes) -> Path:
        """Write the settings, with top-level keys replaced, as `<name>.yaml`; the run's directory is `<name>`."""
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self.settings | {"directory": str(self.root / name)} | changes))
        return file


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Experiment:
    """A Llama teacher, a GPT-2 student (it has dropout, so its fine-tuning draws random numbers), records and a corpus."""
    root = tmp_path_factory.mktemp("experiment")
    draw = np.random.default_rng(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"t{token}" for token in draw.integers(6, VOCABULARY, draw.integers(low, high)))

    records = [{"prompt": f"t{6 + number} {words(1, 8)}", "completion": words(2, 8)} for number in range(90)]
    (root / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "corpus.txt").write_text(words(1200, 1201))
    engine = {"dtype": "float32", "kv_cache_gib": 0.0625}
    settings = {
        "seed": 3,
        "deterministic": True,
        "teacher": {"model": tiny_model(root / "teacher", "llama", vocab=VOCABULARY, seed=1), **engine},
        "student": {"model": tiny_model(root / "student", "gpt2", vocab=VOCABULARY, seed=2)},
        "data": {
            "train": str(root / "records.jsonl"), "max_prompt_tokens": 16, "max_response_tokens": 12,
            "validation_share": 0.15, "test_share": 0.2,
        },
        "corpus": {"source": str(root / "corpus.txt"), "block_tokens": 24, "blocks_per_update": 3},
        "rollout": {"workers": 2, "teacher_share": 0.2, **engine},
        "learner": {"workers": 2, "zero_stage": 2, "dtype": "float32", "tokens_per_microbatch": 96},
        "stages": {
            "sft": {"learning_rate": 3e-3, "sequences_per_update": 8, "max_updates": 4, "validations_per_epoch": 3},
            "distill": {
                "iterations": 4, "learning_rate": 1e-3, "prompts_per_iteration": 12, "updates_per_epoch": 2,
                "validate_every": 1, "checkpoint_every": 1, "validation_prompts": 6,
            },
            "evaluate": {"seeds": [1, 2], "prompts": 8},
        },
    }  # fmt: skip
    return Experiment(root, settings)


class Command:
    """`minirl run`, or another verb, in a session of its own, so that a signal to its process group is what a terminal sends.

    cluster: its RAY_ADDRESS.
    """

    def __init__(self, config: Path, *arguments: str, verb: str = "run", cluster: str = ""):
        self.mark = f"{time.monotonic_ns()}"
        self.output = config.with_name(f"{self.mark}.log")
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                [COMMAND[0], verb, str(config), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, MARK: self.mark, "RAY_ADDRESS": cluster},
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    def wait(self, seconds: float = SECONDS) -> int:
        return self.process.wait(seconds)

    def wait_for(self, ready: Callable[[], bool], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"the command ended early:\n{self.text}"
            assert time.monotonic() < deadline, f"still waiting after {seconds} s:\n{self.text}"
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def left(self, seconds: float = 15) -> list[str]:
        """Command lines of processes that the command started, or their children, and that are still there after `seconds`."""
        deadline = time.monotonic() + seconds
        while (found := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _alive(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
        return found


@pytest.fixture(scope="module")
def start():
    """Start the real command; whatever a failed test leaves is killed."""
    started: list[Command] = []

    def start(config: Path, *arguments: str, **how: str) -> Command:
        started.append(Command(config, *arguments, **how))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                command.signal(signal.SIGKILL)
            command.wait()
