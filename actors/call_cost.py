"""Seconds and bytes of a remote call, which the worker returns with the call's result."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CallCost:
    """seconds: time the worker spent in the call. bytes: size of the payloads that the call produced."""

    seconds: float
    bytes: int = 0

    def __add__(self, other: "CallCost") -> "CallCost":
        return CallCost(self.seconds + other.seconds, self.bytes + other.bytes)


class BusyMeter:
    """Adds up the seconds that a worker spends inside `with meter():` blocks."""

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
        """Returns the seconds since the last `take` and starts again from 0."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def payload_bytes(payloads: Iterable[Any]) -> int:
    """Bytes of the arrays in dataclasses such as `Rollout` and `TeacherScores`, and in the dataclasses inside them."""
    values = [getattr(payload, field.name) for payload in payloads for field in fields(payload)]
    nested = payload_bytes(value for value in values if is_dataclass(value)) if values else 0
    return nested + sum(value.nbytes for value in values if isinstance(value, np.ndarray))
