"""Fixtures: a cluster of two nodes that requires a token, and the `minirl` command as a client of it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deadlines import deadline
from tests.launch.conftest import COMMAND
from tests.nodes import Nodes


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """Neither node has room for all three groups of the tiny experiment."""
    with Nodes(cpus=3) as nodes:
        nodes.add("b", cpus=3)
        yield nodes


@pytest.fixture
def client(nodes) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a verb such as `client("jobs")` against the cluster. environment: replaces that of a client with the right token."""

    def run(verb: str, *arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        options = ["--python", sys.executable] if verb == "submit" else []
        return subprocess.run(
            [COMMAND[0], verb, *map(str, arguments), "--address", nodes.dashboard, *options],
            env=environment or nodes.environment, capture_output=True, text=True, timeout=deadline(60),
        )  # fmt: skip

    return run
