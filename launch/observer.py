"""The protocol Observer: progress callbacks through which stages report what they do."""

from typing import Protocol

from minirl.training.log import Record


class Observer(Protocol):
    """Progress callbacks of a stage.

    record: every record of the metrics log. doing: what the stage does now. stage_started: a stage starts or resumes with `done` of its
    `total` units finished. progressed: units finished since then, for stages that write no records. warn: one sentence that a person
    should read.
    """

    def record(self, record: Record) -> None: ...
    def doing(self, stage: str, activity: str) -> None: ...
    def stage_started(self, stage: str, total: int, done: int, unit: str) -> None: ...
    def progressed(self, done: int) -> None: ...
    def warn(self, stage: str, message: str) -> None: ...
