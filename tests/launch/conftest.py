"""Fixtures: a tiny experiment on disk, and the real `minirl` command that runs it."""

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

from minirl.training import checkpoint
from tests.deadlines import deadline, wait_until
from tests.tiny import tiny_model

VOCABULARY = 192
COMMAND = [str(Path(sys.executable).with_name("minirl")), "run"]
MARK = "MINIRL_TEST_RUN"  # environment variable by which a command's processes are recognised
NO_CLUSTER = "127.0.0.1:1"  # an address without a Ray cluster: a command that uses no cluster does not notice


@dataclass(frozen=True)
class Experiment:
    """Models and data of a tiny experiment. settings: the config that every test starts from."""

    root: Path
    settings: dict

    def config(self, name: str, **changes) -> Path:
        """Writes the settings, with top-level keys replaced by `changes`, to `<name>.yaml`. The run's directory is `<name>`."""
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self.settings | {"directory": str(self.root / name)} | changes))
        return file


@pytest.fixture(scope="session")
def experiment(tmp_path_factory) -> Experiment:
    """A Llama teacher, a GPT-2 student (it has dropout, so its fine-tuning draws random numbers), records and a corpus."""
    root = tmp_path_factory.mktemp("experiment")
    generator = np.random.default_rng(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"t{token}" for token in generator.integers(6, VOCABULARY, generator.integers(low, high)))

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


def newest(directory: Path) -> int:
    """The number of the newest complete checkpoint of the distillation, 0 if there is none."""
    checkpoints = checkpoint.complete(directory / "distill" / "checkpoints")
    return int(checkpoints[-1].name) if checkpoints else 0


class Command:
    """A running `minirl run`, or another verb. It has its own session, so that `signal` reaches its process group as from a terminal.

    cluster: its RAY_ADDRESS; empty starts a cluster.
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

    def wait(self) -> int:
        return self.process.wait(deadline(60))

    def wait_for(self, ready: Callable[[], bool]) -> None:
        def ready_or_ended() -> bool:
            if answer := ready():
                return answer
            assert self.process.poll() is None, f"the command ended early:\n{self.text}"
            return False

        assert wait_until(ready_or_ended, 60), f"the command has not come so far:\n{self.text}"

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def leftover_processes(self) -> list[str]:
        """Command lines of the command's processes, and of their children, that still run after a deadline."""
        wait_until(lambda: not self._running_processes(), 3)
        return self._running_processes()

    def _running_processes(self) -> list[str]:
        command_lines = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark:
                    command_lines.append(" ".join(process.cmdline()))
        return command_lines


@pytest.fixture(scope="module")
def start():
    """Starts the real command. Kills what a failed test leaves running."""
    started: list[Command] = []

    def start(config: Path, *arguments: str, **options: str) -> Command:
        started.append(Command(config, *arguments, **options))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                command.signal(signal.SIGKILL)
            command.wait()
