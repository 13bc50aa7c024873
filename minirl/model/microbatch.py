"""Padded or packed micro-batches of sequences, and the division of the sequences of one step among workers.

Padding goes to the right. Under causal attention no real token sees it, so no attention mask is needed and the fastest kernels apply.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from minirl.model.device_copy import copy_together
from minirl.types import TokenSequence

T = TypeVar("T")


@dataclass(frozen=True)
class TokenRows:
    """Tokens as a model reads them, and the positions of the states that predict the N targets.

    input_ids: [R, L]. predicting: [N], positions in the flattened input_ids, each one before that of its target.
    boundaries: int64 [S + 1], where the S sequences start in the flattened input_ids, and where the last one ends. longest: the length of
    the longest sequence. In padded rows, a sequence includes its padding.
    position_ids: [1, L] in a packed row, else None. sequence_ids: [1, L], the number of each token's sequence in a packed row that holds
    several sequences, else None.
    """

    input_ids: Tensor
    predicting: Tensor
    boundaries: Tensor
    longest: int
    position_ids: Tensor | None = None
    sequence_ids: Tensor | None = None

    def predicting_rows(self, states: Tensor) -> Tensor:
        """The states that predict the targets: [R, L, d] -> [N, d]."""
        return states.flatten(0, 1).index_select(0, self.predicting)


@dataclass(frozen=True)
class MicroBatch:
    """B sequences with N targets in total. All that depends on lengths alone is known before the copy to the device, so that no
    operation on the device has a size that the host must wait for.

    padded: one row for each sequence, right-padded with token 0. packed: all sequences in one row, one after another.
    targets: [N], the target tokens, sequence after sequence. counts: int64 [B] on the host, the number of targets of each sequence.
    cells: [N], the position of each target in the flattened grid [B, T], with T the largest number of targets of a sequence.
    """

    padded: TokenRows
    packed: TokenRows
    targets: Tensor
    cells: Tensor
    counts: np.ndarray

    @property
    def total_targets(self) -> Tensor:
        """N as a scalar on the host, to be added to other counts."""
        return torch.tensor(len(self.targets))

    def mask(self) -> Tensor:
        """bool [B, T]: True where the left-aligned grid holds a target."""
        return torch.zeros(self._cells, dtype=torch.bool, device=self.cells.device).index_fill_(0, self.cells, True).view(self._grid_shape)

    def grid(self, values: Tensor) -> Tensor:
        """Values of the targets [N] as a left-aligned grid [B, T] with zeros in the padding."""
        return values.new_zeros(self._cells).index_copy(0, self.cells, values).view(self._grid_shape)

    @property
    def _grid_shape(self) -> tuple[int, int]:
        return len(self.counts), int(self.counts.max())

    @property
    def _cells(self) -> int:
        return math.prod(self._grid_shape)


EMPTY_SEQUENCE = TokenSequence(np.zeros(2, np.int64), np.zeros(2, bool))
"""Two tokens and no target: a worker without sequences runs it while the other workers still have some."""


def make_microbatch(sequences: Sequence[TokenSequence], device: torch.device | str = "cpu") -> MicroBatch:
    """The sequences as a micro-batch on the device; without sequences it holds `EMPTY_SEQUENCE`.

    Worked example, tokens [4, 6] with the target 6, and [7, 8, 9] with the targets 8 and 9:

        padded   input_ids [[4, 6, 0], [7, 8, 9]]   predicting [0, 3, 4]   boundaries [0, 3, 6]
        packed   input_ids [[4, 6, 7, 8, 9]]        predicting [0, 2, 3]   boundaries [0, 2, 5]
                 position_ids [[0, 1, 0, 1, 2]]     sequence_ids [[0, 0, 1, 1, 1]]
        targets [6, 8, 9]   counts [1, 2]   cells [0, 2, 3] of the grid [[6, -], [8, 9]]
    """
    sequences = sequences or [EMPTY_SEQUENCE]
    lengths, counts = np.array([len(s.tokens) for s in sequences]), np.array([s.targets for s in sequences])
    rows, width = np.arange(len(sequences)), int(lengths.max())
    tokens, sequence_ids, positions = np.concatenate([s.tokens for s in sequences]), np.repeat(rows, lengths), _count_up(lengths)
    packed_targets = np.flatnonzero(np.concatenate([s.is_target for s in sequences]))
    padded_places = sequence_ids * width + positions
    padded = np.zeros((len(sequences), width), np.int64)
    padded.flat[padded_places] = tokens
    padded_rows = [padded, padded_places[packed_targets] - 1, np.arange(len(sequences) + 1) * width]
    packed_rows = [tokens[None], packed_targets - 1, np.concatenate([[0], lengths.cumsum()])]
    cells = np.repeat(rows * counts.max(), counts) + _count_up(counts)
    arrays = [*padded_rows, *packed_rows, positions[None], sequence_ids[None], tokens[packed_targets], cells]
    *there, position_ids, sequence_ids, targets, cells = copy_together(arrays, device)
    return MicroBatch(
        padded=TokenRows(*there[:3], longest=width),
        packed=TokenRows(*there[3:], width, position_ids, sequence_ids if len(sequences) > 1 else None),
        targets=targets,
        cells=cells,
        counts=counts,
    )


def _count_up(sizes: np.ndarray) -> np.ndarray:
    """0, 1, ... sizes[0] - 1, 0, 1, ... sizes[1] - 1, and so on."""
    return np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)


def split_by_tokens(indices: Sequence[int], lengths: Sequence[int], tokens_per_microbatch: int) -> list[list[int]]:
    """Length-sorted groups of at most `tokens_per_microbatch` tokens, padding included. A longer sequence forms a group alone."""
    groups: list[list[int]] = []
    for index in sorted(indices, key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= tokens_per_microbatch:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def plan_microbatches(lengths: Sequence[int], workers: int, tokens_per_microbatch: int) -> list[list[list[int]]]:
    """[worker][micro-batch] -> indices into `lengths`, balanced by tokens, with the same number of micro-batches for every worker.

    Shorter lists are filled with empty micro-batches: under ZeRO-3 a worker that runs fewer passes hangs the others.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [(0, worker) for worker in range(workers)]  # a heap
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        load, lightest = loads[0]
        shares[lightest].append(index)
        heapreplace(loads, (load + lengths[index], lightest))
    plans = [split_by_tokens(share, lengths, tokens_per_microbatch) for share in shares]
    most = max(map(len, plans))
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]


def restore_order(order: list[int], values: list[T]) -> list[T]:
    """Undo a permutation: values[i] belongs to item order[i], and the result lists the values in the order of the items."""
    value_of = dict(zip(order, values, strict=True))
    return [value_of[index] for index in range(len(order))]
