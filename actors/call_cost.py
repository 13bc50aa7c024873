"""What a call cost the worker that it ran in, told with the call's result."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CallCost:
    """seconds: spent in the call. bytes: of the payloads that it produced."""

    seconds: float
    bytes: int = 0

    def __add__(self, other: "CallCost") -> "CallCost":
        return CallCost(self.seconds + other.seconds, self.bytes + other.bytes)


class BusyMeter:
    """Adds up the seconds of a worker's calls until somebody asks for them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def payload_bytes(payloads: Iterable[Any]) -> int:
    """Bytes of the arrays in dataclasses such as `Rollout` and `TeacherScores`."""
    values = (getattr(payload, field.name) for payload in payloads for field in fields(payload))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))
