"""The output of a run inside a job: progress as JSON lines, which `minirl logs` turns into the panel again.

A line of progress is `{"minirl": NAME, "at": SECONDS, "arguments": [...]}`. NAME is a method of `Observer`. SECONDS are counted from 1970.
Every other line is text for a person.
"""

import json
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO

from launch.observer import Observer
from minirl.training.log import Record

EVENT = '{"minirl": '
RECORD = f'{EVENT}"record"'  # how a line with a record of the metrics log begins
METHODS = ("record", "doing", "stage_started", "progressed", "warn")


class ProgressLines:
    """An `Observer` that writes what it receives as lines of progress. Use it as a context manager, like `ProgressPanel`."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.flush()

    def record(self, record: Record) -> None:
        self._write("record", record)

    def doing(self, stage: str, activity: str) -> None:
        self._write("doing", stage, activity)

    def stage_started(self, stage: str, total: int, done: int, unit: str) -> None:
        self._write("stage_started", stage, total, done, unit)

    def progressed(self, done: int) -> None:
        self._write("progressed", done)

    def warn(self, stage: str, message: str) -> None:
        self._write("warn", stage, message)

    def _write(self, method: str, *arguments: Any) -> None:
        print(json.dumps({"minirl": method, "at": time.time(), "arguments": arguments}), file=self._stream, flush=True)


class EventClock:
    """The clock of a panel that replays a job: the time of the event that is replayed, and now between events. In seconds since 1970."""

    def __init__(self) -> None:
        self.event_time: float | None = None

    def __call__(self) -> float:
        return time.time() if self.event_time is None else self.event_time


def replay(line: str, observer: Observer, clock: EventClock) -> str | None:
    """Passes a line of progress to the observer, at the time at which it was written. Returns any other line as it is."""
    if not line.startswith(EVENT):
        return line
    try:
        event = json.loads(line)
        method, clock.event_time, arguments = event["minirl"], float(event["at"]), event["arguments"]
        if method not in METHODS:
            return line
        getattr(observer, method)(*arguments)
    except (ValueError, KeyError, TypeError):  # a line that another program wrote
        return line
    finally:
        clock.event_time = None
    return None


class LineBuffer:
    """Whole lines of a text that arrives in pieces."""

    def __init__(self) -> None:
        self._rest = ""

    def lines(self, piece: str) -> Iterator[str]:
        """The lines that `piece` completes, without their ends."""
        *whole, self._rest = (self._rest + piece).split("\n")
        yield from whole

    def rest(self) -> Iterator[str]:
        """The last line, if it has no end."""
        rest, self._rest = self._rest, ""
        if rest:
            yield rest
