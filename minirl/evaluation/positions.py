"""Values of tokens by their place in the response: grids that keep samples and prompts apart, and means over what is alive at a place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TokenGrid(NamedTuple):
    """One value for each sampled token. values: float64 [samples, prompts, T], 0 after a response's end; lengths: int [samples, prompts].

    Place t counts from 1: the state that has read the prompt alone and predicts the first token.
    """

    values: np.ndarray
    lengths: np.ndarray

    @property
    def alive(self) -> np.ndarray:
        """bool [samples, prompts, T]: t <= T(y), the end token's place included."""
        return np.arange(self.values.shape[-1]) < self.lengths[..., None]


def token_grid(rows: Sequence[Sequence[np.ndarray]]) -> TokenGrid:
    """rows: [samples][prompts] of one value a token."""
    lengths = np.array([[len(row) for row in sample] for sample in rows])
    values = np.zeros((*lengths.shape, lengths.max(initial=0)))
    for sample, prompts in enumerate(rows):
        for prompt, row in enumerate(prompts):
            values[sample, prompt, : len(row)] = row
    return TokenGrid(values, lengths)


def means_by_position(grid: TokenGrid) -> tuple[list[float], list[int]]:
    """The mean over the responses that are alive at each place, and how many they are."""
    alive = grid.alive.sum((0, 1))
    return (grid.values.sum((0, 1)) / alive).tolist(), alive.tolist()
