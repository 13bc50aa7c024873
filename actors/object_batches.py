"""Parcels: lists of a few values that travel as one object, because an object costs Ray the same whatever is in it.

Worked example, a call that needs three of the eight items in the batches p and q:

    items in the driver's hands   BatchedRef(p, 0), BatchedRef(q, 3), BatchedRef(p, 1)
    the call's arguments          [BatchedArgument(0, 0), BatchedArgument(1, 3), BatchedArgument(0, 1)], p, q
    what the worker sees          p and q as lists, which Ray brought there before the call, and from them its three items
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

VALUES_PER_BATCH = 4  # values, at most: more would make the learner's ranks fetch many that they do not ask for


@dataclass(frozen=True, slots=True)
class BatchedRef:
    """One value of a batch, by reference."""

    batch: ray.ObjectRef
    index: int


@dataclass(frozen=True, slots=True)
class BatchedArgument:
    """The same within a call; batch: its number among the batches that the call is handed. advantages: of `OnPolicyItem`."""

    batch: int
    index: int
    advantages: np.ndarray | None = None


class CallArguments:
    """Collects the batches of one call. `entry` puts a value's place in the place of it, and leaves alone what has none."""

    def __init__(self) -> None:
        self._numbers: dict[ray.ObjectRef, int] = {}

    @property
    def batches(self) -> list[ray.ObjectRef]:
        return list(self._numbers)

    def argument(self, value: Any) -> Any:
        """An item whose scores are at a place is at that place altogether: a teacher returns what it scored beside its scores."""
        place = value if isinstance(value, BatchedRef) else getattr(value, "scores", None)
        if not isinstance(place, BatchedRef):
            return value
        number = self._numbers.setdefault(place.batch, len(self._numbers))
        return BatchedArgument(number, place.index, getattr(value, "advantages", None))


def resolve(value: Any, batches: Sequence[list[Any]]) -> Any:
    """The inverse of `CallArguments.entry`, where the call is carried out."""
    if not isinstance(value, BatchedArgument):
        return value
    item = batches[value.batch][value.index]
    return item if value.advantages is None else replace(item, advantages=value.advantages)


def fetch(places: Sequence[BatchedRef], timeout_s: float) -> list[Any]:
    """The values at these places."""
    batches = list({place.batch for place in places})
    values = dict(zip(batches, ray.get(batches, timeout=timeout_s), strict=True))
    return [values[place.batch][place.index] for place in places]


def split_into_batches(values: list[Any], most: int = VALUES_PER_BATCH) -> list[list[Any]]:
    return [values[start : start + most] for start in range(0, len(values), most)]


def batched_refs(batches: Iterable[ray.ObjectRef], count: int, most: int = VALUES_PER_BATCH) -> list[BatchedRef]:
    """Of `count` values that were `split`."""
    return [BatchedRef(batch, index) for batch in batches for index in range(most)][:count]
