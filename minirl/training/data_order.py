"""DataOrder: an endless, seeded, resumable order in which training visits the items of a data set."""

from typing import Any

import numpy as np

from minirl.errors import InputError
from minirl.seeds import derive_seed


class DataOrder:
    """Yields indices below `size` in epochs. Each epoch visits every index once, in a new random order.

    The order depends on (seed, epoch) alone, so the whole state is four integers. Raises ValueError if `size` is below 1.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("a data order needs at least one item; give a data set that is not empty")
        self.size, self.seed, self.epoch, self.position = size, seed, 0, 0
        self._order = self._permutation()

    def next(self, count: int) -> list[int]:
        """The next `count` indices. Continues into the next epoch where one ends, so no epoch skips or repeats an index."""
        indices: list[int] = []
        while len(indices) < count:
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
            part = self._order[self.position : self.position + count - len(indices)]
            indices += part.tolist()
            self.position += len(part)
        return indices

    def state_dict(self) -> dict[str, int]:
        return {"size": self.size, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Raises InputError if the size of the data or the seed differs."""
        for name, current in (("size", self.size), ("seed", self.seed)):
            if state[name] != current:
                raise InputError(
                    f"the checkpoint was written with a data {name} of {state[name]}, this run has {current}; "
                    "resume with the same data and seed, or start in a new directory"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "epoch", self.epoch)).permutation(self.size)
