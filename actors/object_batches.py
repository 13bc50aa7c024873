"""Object batches: lists of a few values that travel as one Ray object, and references to single values in them.

Ray's cost per object does not depend on what the object holds, so a few values share one object.

Worked example, a call that needs three of the eight items in the batches p and q:

    items that the driver holds   BatchedRef(p, 0), BatchedRef(q, 3), BatchedRef(p, 1)
    the call's arguments          [BatchedArgument(0, 0), BatchedArgument(1, 3), BatchedArgument(0, 1)], p, q
    what the worker receives      p and q as lists (Ray fetches them before the call starts), from which it picks its three items
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

VALUES_PER_BATCH = 4  # at most; with larger batches the learner's ranks would fetch many values that they do not need


@dataclass(frozen=True, slots=True)
class BatchedRef:
    """A reference to one value of a batch. batch: the Ray object that holds the list. index: the value's position in it."""

    batch: ray.ObjectRef
    index: int


@dataclass(frozen=True, slots=True)
class BatchedArgument:
    """A `BatchedRef` inside a call's arguments. batch: the batch's number among those passed with the call. advantages: of an
    `OnPolicyItem`, None for other values.
    """

    batch: int
    index: int
    advantages: np.ndarray | None = None


class CallArguments:
    """Collects the batches that one call needs, and replaces each `BatchedRef` by a `BatchedArgument`."""

    def __init__(self) -> None:
        self._batch_numbers: dict[ray.ObjectRef, int] = {}

    @property
    def batches(self) -> list[ray.ObjectRef]:
        return list(self._batch_numbers)

    def argument(self, value: Any) -> Any:
        """Replaces a `BatchedRef`, or an item whose `scores` are one. Other values pass through.

        A teacher returns each item together with its scores, so a reference to the scores is a reference to the whole item.
        """
        ref = value if isinstance(value, BatchedRef) else getattr(value, "scores", None)
        if not isinstance(ref, BatchedRef):
            return value
        number = self._batch_numbers.setdefault(ref.batch, len(self._batch_numbers))
        return BatchedArgument(number, ref.index, getattr(value, "advantages", None))


def resolve(value: Any, batches: Sequence[list[Any]]) -> Any:
    """The inverse of `CallArguments.argument`, on the worker. batches: those passed with the call, fetched by Ray."""
    if not isinstance(value, BatchedArgument):
        return value
    item = batches[value.batch][value.index]
    return item if value.advantages is None else replace(item, advantages=value.advantages)


def fetch(refs: Sequence[BatchedRef], timeout_s: float) -> list[Any]:
    """The values behind these references; fetches each batch once."""
    batches = list({ref.batch for ref in refs})
    values = dict(zip(batches, ray.get(batches, timeout=timeout_s), strict=True))
    return [values[ref.batch][ref.index] for ref in refs]


def split_into_batches(values: list[Any], max_size: int = VALUES_PER_BATCH) -> list[list[Any]]:
    return [values[start : start + max_size] for start in range(0, len(values), max_size)]


def batched_refs(batches: Iterable[ray.ObjectRef], count: int, max_size: int = VALUES_PER_BATCH) -> list[BatchedRef]:
    """References to `count` values that `split_into_batches` put into these batches."""
    return [BatchedRef(batch, index) for batch in batches for index in range(max_size)][:count]
