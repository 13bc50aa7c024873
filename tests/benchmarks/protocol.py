"""The protocol between the coordinator and a contestant, which takes one update for each request.

All contestants run at the same time, and the requests make them compute one after the other. Messages are lines of JSON. The coordinator
writes {"do": "update"} or {"do": "export", "to": directory}, and closes the pipe to end. The contestant writes {} when it is ready, and one
line in answer to each request. This module needs only the standard library, because a contestant may run in another environment.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESPONSES_PER_PASS = 8  # of one forward and backward pass of TRL and of the plain loop


@dataclass(frozen=True)
class Job:
    """The work of a contestant; all contestants get the same job.

    student, teacher: model directories. dtype: "bfloat16" or "float32". updates: the prompts of each update, in token ids. texts: the same
    prompts as text. held_out: prompts that no contestant trains on. end_tokens: ids that end a response. config: a YAML file with the same
    settings for minillm-ray. directory: contestants may write here.
    """

    student: str
    teacher: str
    dtype: str
    updates: list[list[list[int]]]
    texts: list[list[str]]
    held_out: list[list[int]]
    end_tokens: list[int]
    max_response_tokens: int
    learning_rate: float
    policy_gradient_weight: float
    seed: int
    config: str
    directory: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: str) -> "Job":
        return cls(**json.loads(Path(path).read_text()))


@dataclass(frozen=True)
class UpdateCounts:
    """Counts of one update, without padding."""

    samples: int
    prompt_tokens: int
    response_tokens: int


class UpdateServer:
    """The contestant's end of the protocol. Reserves the standard output for answers: prints of libraries go to the standard error."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.ready = False

    def serve(self, update: Callable[[], UpdateCounts], export: Callable[[str], Any]) -> None:
        """Answer requests until the coordinator closes the pipe."""
        while self.wait_for_update(export):
            self.finish_update(update())

    def wait_for_update(self, export: Callable[[str], Any]) -> bool:
        """Wait for the next update request, and serve export requests before it. False: the coordinator has closed the pipe."""
        if not self.ready:
            self._answer({})
        self.ready = True
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "update":
                return True
            export(request["to"])
            self._answer({})
        return False

    def finish_update(self, counts: UpdateCounts) -> None:
        self._answer(asdict(counts))

    def _answer(self, values: dict[str, Any]) -> None:
        self.answers.write(json.dumps(values) + "\n")
