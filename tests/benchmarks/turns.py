"""A contestant takes one update each time it is told to, so that contestants that stand side by side compute one after the other.

Lines of JSON: the coordinator writes {"do": "update"}, {"do": "export", "to": directory} or, by closing the pipe, the end; the contestant
answers each with one line, and says {} once it is ready. Only the standard library: a contestant may live in another environment.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What every contestant is told.

    student, teacher: model directories. dtype: "bfloat16" or "float32". updates: of every update its prompts, in token ids; texts: the
    same as text. held_out: prompts that none trains on. end_tokens: ids that end a response. config: for minillm-ray, the YAML that says
    the same. directory: where a contestant may write.
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
    seed: int
    config: str
    directory: str

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: str) -> "Job":
        return cls(**json.loads(Path(path).read_text()))


@dataclass(frozen=True)
class Worked:
    """What one update was made of; padding counts nowhere."""

    samples: int
    prompt_tokens: int
    response_tokens: int


class Turns:
    """The contestant's end. Takes the standard output for itself: what libraries print goes to the standard error."""

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.ready = False

    def serve(self, update: Callable[[], Worked], export: Callable[[str], Any]) -> None:
        while self.next(export):
            self.done(update())

    def next(self, export: Callable[[str], Any]) -> bool:
        """Wait until an update is due; exports meanwhile. False: the end."""
        if not self.ready:
            self._answer({})
        self.ready = True
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "update":
                return True
            export(order["to"])
            self._answer({})
        return False

    def done(self, worked: Worked) -> None:
        self._answer(asdict(worked))

    def _answer(self, values: dict[str, Any]) -> None:
        self.answers.write(json.dumps(values) + "\n")
