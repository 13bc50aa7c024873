"""Token values by position: grids [samples, prompts, positions], and means over the responses alive at each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TokenGrid(NamedTuple):
    """One value for each sampled token. values: float64 [samples, prompts, T], 0 after a response's end; lengths: int [samples, prompts].

    Position t counts from 1: the state that has read only the prompt and predicts the first token.
    """

    values: np.ndarray
    lengths: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """bool [samples, prompts, T]: t <= T(y), which includes the position of the end token."""
        return np.arange(self.values.shape[-1]) < self.lengths[..., None]


def token_grid(rows: Sequence[Sequence[np.ndarray]]) -> TokenGrid:
    """rows: [samples][prompts], each an array of one value a token."""
    lengths = np.array([[len(row) for row in sample] for sample in rows])
    values = np.zeros((*lengths.shape, lengths.max(initial=0)))
    for sample, prompts in enumerate(rows):
        for prompt, row in enumerate(prompts):
            values[sample, prompt, : len(row)] = row
    return TokenGrid(values, lengths)


def means_by_position(grid: TokenGrid) -> tuple[list[float], list[int]]:
    """At each position, the mean over the responses alive there, and their number."""
    alive = grid.alive.sum((0, 1))
    return (grid.values.sum((0, 1)) / alive).tolist(), alive.tolist()
