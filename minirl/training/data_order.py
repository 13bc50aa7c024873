"""An endless, seeded, resumable walk over n items."""

from typing import Any

import numpy as np

from minirl.errors import InputError
from minirl.seeds import derive_seed


class DataOrder:
    """Yields indices below `size` in epochs; each epoch visits every index once, in an order of its own.

    The order follows from (seed, epoch) alone, so the whole state is four integers.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("a cursor needs at least one item")
        self.size, self.seed, self.epoch, self.position = size, seed, 0, 0
        self._order = self._permutation()

    def next(self, count: int) -> list[int]:
        """The next `count` indices; crosses epoch boundaries without skipping or repeating within an epoch."""
        taken: list[int] = []
        while len(taken) < count:
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
            part = self._order[self.position : self.position + count - len(taken)]
            taken += part.tolist()
            self.position += len(part)
        return taken

    def state_dict(self) -> dict[str, int]:
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises InputError where the data or the seed is another."""
        for name, here in (("size", self.size), ("seed", self.seed)):
            if state[name] != here:
                raise InputError(
                    f"the checkpoint was written with a data {name} of {state[name]}, this run has {here}; "
                    "go on with the same data and seed, or start in a new directory"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "epoch", self.epoch)).permutation(self.size)
