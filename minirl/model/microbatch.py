"""Padded or packed micro-batches of sequences, and the division of the sequences of one step among workers.

Padding goes to the right. Under causal attention no real token sees it, so no attention mask is needed and the fastest kernels apply.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from minirl.types import TokenSequence

T = TypeVar("T")


@dataclass(frozen=True)
class MicroBatch:
    """B sequences with N targets in total.

    input_ids, is_target: [B, L], right-padded with token 0. lengths, counts: [B], the number of tokens and of targets of each sequence.
    position_ids: [1, L] if the sequences are packed, one after another in a single row; else None.
    """

    input_ids: Tensor
    is_target: Tensor
    lengths: Tensor
    counts: Tensor
    position_ids: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """The target tokens [N], sequence after sequence."""
        return self.input_ids[self.is_target]

    def predicting_rows(self, hidden: Tensor) -> Tensor:
        """The states that predict the targets, each one position before its target: [B, L, d] -> [N, d]."""
        return hidden[:, :-1][self.is_target[:, 1:]]

    def mask(self) -> Tensor:
        """bool [B, T], with T the largest number of targets of a sequence: True where the left-aligned grid holds a target."""
        width = int(self.counts.max()) if len(self.counts) else 0
        return torch.arange(width, device=self.counts.device)[None, :] < self.counts[:, None]

    def grid(self, values: Tensor) -> Tensor:
        """Values of the targets [N] as a left-aligned grid [B, T] with zeros in the padding."""
        mask = self.mask()
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)

    def packed(self) -> "MicroBatch":
        """The same sequences in one row without padding. `targets` and `predicting_rows` keep their order.

        input_ids [[7, 8, 9], [4, 6, 0]], lengths [3, 2]   ->   input_ids [[7, 8, 9, 4, 6]], position_ids [[0, 1, 2, 0, 1]]
        """
        positions = torch.arange(self.input_ids.shape[1], device=self.lengths.device).expand_as(self.input_ids)
        real = positions < self.lengths[:, None]
        return replace(self, input_ids=self.input_ids[real][None], is_target=self.is_target[real][None], position_ids=positions[real][None])

    def to(self, device: torch.device | str) -> "MicroBatch":
        return MicroBatch(*(None if tensor is None else tensor.to(device) for tensor in vars(self).values()))


EMPTY_SEQUENCE = TokenSequence(np.zeros(2, np.int64), np.zeros(2, bool))
"""Two tokens and no target: a worker without sequences runs it while the other workers still have some."""


def make_microbatch(sequences: Sequence[TokenSequence]) -> MicroBatch:
    """The sequences as a padded micro-batch; without sequences it holds `EMPTY_SEQUENCE`."""
    sequences = sequences or [EMPTY_SEQUENCE]
    width = max(len(s.tokens) for s in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    is_target = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.tokens)] = torch.from_numpy(sequence.tokens.astype(np.int64))
        is_target[row, : len(sequence.tokens)] = torch.from_numpy(sequence.is_target.copy())
    return MicroBatch(input_ids, is_target, torch.tensor([len(s.tokens) for s in sequences]), is_target.sum(1))


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
