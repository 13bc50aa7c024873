"""Who is told how a run goes."""

from typing import Protocol

from minirl.metrics import Record


class Watcher(Protocol):
    """Every record, what is being done, and how far a stage is when it begins."""

    def record(self, record: Record) -> None: ...
    def doing(self, stage: str, what: str) -> None: ...
    def total_of(self, stage: str, total: int, done: int) -> None: ...
