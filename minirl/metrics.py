"""What a run reports while it goes: one JSON line an iteration, and the same dictionary to whoever watches."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minirl import json_lines

Record = dict[str, float | int | str]
Listener = Callable[[Record], None]


class MetricsLog:
    """`metrics.jsonl`. Records of one stage are numbered by `counter` (iteration or update); a resume drops those after its checkpoint."""

    def __init__(self, path: Path, stage: str, counter: str, *, listener: Listener | None = None):
        self.path, self.stage, self.counter, self.listener = path, stage, counter, listener

    def resume_at(self, number: int) -> None:
        """Forget records of this stage that the resumed run will write again: those numbered `number` or higher."""
        if not self.path.is_file():
            return
        json_lines.drop_half_line(self.path)
        kept = [r for r in json_lines.read(self.path) if r["stage"] != self.stage or r[self.counter] < number]
        staging = self.path.with_name(self.path.name + ".partial")
        staging.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(staging, self.path)

    def write(self, number: int, values: Record) -> None:
        record: Record = {"stage": self.stage, self.counter: number, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.listener:
            self.listener(record)


class Stopwatch:
    """Seconds spent under each name, from one `reset` to the next. `listener` is told each name as it begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.listener: Callable[[str], None] = lambda name: None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.listener(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def reset(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds
