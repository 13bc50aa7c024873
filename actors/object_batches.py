"""Parcels: lists of a few values that travel as one object, because an object costs Ray the same whatever is in it.

Worked example, a call that needs three of the eight items in the parcels p and q:

    items in the driver's hands   Place(p, 0), Place(q, 3), Place(p, 1)
    the call's arguments          [Entry(0, 0), Entry(1, 3), Entry(0, 1)], p, q
    what the worker sees          p and q as lists, which Ray brought there before the call, and from them its three items
"""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

PARCEL = 4  # values, at most: more would make the learner's ranks fetch many that they do not ask for


@dataclass(frozen=True, slots=True)
class Place:
    """One value of a parcel, by reference."""

    parcel: ray.ObjectRef
    index: int


@dataclass(frozen=True, slots=True)
class Entry:
    """The same within a call; parcel: its number among the parcels that the call is handed. advantages: of `OnPolicyItem`."""

    parcel: int
    index: int
    advantages: np.ndarray | None = None


class Manifest:
    """Collects the parcels of one call. `entry` puts a value's place in the place of it, and leaves alone what has none."""

    def __init__(self) -> None:
        self._numbers: dict[ray.ObjectRef, int] = {}

    @property
    def parcels(self) -> list[ray.ObjectRef]:
        return list(self._numbers)

    def entry(self, value: Any) -> Any:
        """An item whose scores are at a place is at that place altogether: a teacher returns what it scored beside its scores."""
        place = value if isinstance(value, Place) else getattr(value, "scores", None)
        if not isinstance(place, Place):
            return value
        number = self._numbers.setdefault(place.parcel, len(self._numbers))
        return Entry(number, place.index, getattr(value, "advantages", None))


def unpack(value: Any, parcels: Items[list[Any]]) -> Any:
    """The inverse of `Manifest.entry`, where the call is carried out."""
    if not isinstance(value, Entry):
        return value
    item = parcels[value.parcel][value.index]
    return item if value.advantages is None else replace(item, advantages=value.advantages)


def fetch(places: Items[Place], timeout_s: float) -> list[Any]:
    """The values at these places."""
    parcels = list({place.parcel for place in places})
    values = dict(zip(parcels, ray.get(parcels, timeout=timeout_s), strict=True))
    return [values[place.parcel][place.index] for place in places]


def split(values: list[Any], most: int = PARCEL) -> list[list[Any]]:
    return [values[start : start + most] for start in range(0, len(values), most)]


def places(parcels: Iterable[ray.ObjectRef], count: int, most: int = PARCEL) -> list[Place]:
    """Of `count` values that were `split`."""
    return [Place(parcel, index) for parcel in parcels for index in range(most)][:count]
