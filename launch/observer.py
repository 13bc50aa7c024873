"""Who is told how a run goes."""

from typing import Protocol

from minirl.training.log import Record


class Observer(Protocol):
    """Every record, what is being done, how far a stage is when it begins (`stage_started`,
    in `unit`s) and, where no record says so, later."""

    def record(self, record: Record) -> None: ...
    def doing(self, stage: str, what: str) -> None: ...
    def stage_started(self, stage: str, total: int, done: int, unit: str) -> None: ...
    def progressed(self, done: int) -> None: ...
