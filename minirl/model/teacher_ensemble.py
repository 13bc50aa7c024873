"""Teacher ensembles: the exact average, in probability, of the teachers that score a sequence.

    log p(v|s) = logsumexp_k (log w_k + log p_k(v|s)),  w_k the weights of the teachers that score it, normalised to sum to 1

Every p_k comes from its own output head, at the run's temperature, so the temperature softens each teacher before the average is taken. If
only one teacher scores a sequence (each record names its teacher), p is its distribution. Each teacher has its own checksum, because an
average hides which teacher is wrong.

Worked example, three targets; teacher 0 (weight 1) scores the first two, teacher 1 (weight 3) scores the last two:

    active    [[1, 0], [1, 1], [0, 1]]         hidden  ([2, d_0], [2, d_1])
    shares    [[1, 0], [1/4, 3/4], [0, 1]]     p(.|s_1) = p_0 / 4 + 3 p_1 / 4
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minirl.model.buffers import BufferPool
from minirl.model.device_copy import copy_concatenated, copy_together
from minirl.model.output_head import OutputHead, read_head
from minirl.model.row_blocks import RowBlocks
from minirl.types import EnsembleScores


class MemberStatistics(NamedTuple):
    """Log-probs and log-normalisers of each of K teachers for N targets, in nats, both [N, K]; NaN for a target it does not score."""

    logprobs: Tensor
    log_normalizers: Tensor


@dataclass(frozen=True)
class EnsembleStates:
    """Hidden states of K teachers for N targets.

    hidden: for teacher k, [N_k, d_k], the states of the targets that it scores. rows: for teacher k, int64 [N_k], which targets these are.
    active: bool [N, K] on the host, which teacher scores which target.
    """

    hidden: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    active: np.ndarray

    @classmethod
    def of(cls, hidden: Sequence[Tensor], active: np.ndarray) -> "EnsembleStates":
        """hidden, active: as in the class, on one device."""
        rows = copy_together([np.flatnonzero(scored) for scored in active.T], hidden[0].device)
        return cls(tuple(hidden), tuple(rows), active)

    @classmethod
    def from_scores(cls, scores: list[EnsembleScores], device: str) -> "EnsembleStates":
        """The states of several sequences, one after the other. scores: one entry for each sequence."""
        hidden = []
        for member in zip(*(s.scores for s in scores), strict=True):
            scored = [s.hidden for s in member if s is not None]
            hidden.append(copy_concatenated(scored, device) if scored else torch.empty(0, 0, device=device))
        return cls.of(hidden, active_teachers(scores))

    def __getitem__(self, chunk: slice) -> "EnsembleStates":
        before, within = self.active[: chunk.start].sum(0), self.active[chunk].sum(0)
        parts = [slice(b, b + w) for b, w in zip(before, within, strict=True)]
        hidden = tuple(h[part] for h, part in zip(self.hidden, parts, strict=True))
        return EnsembleStates(hidden, tuple(r[part] - chunk.start for r, part in zip(self.rows, parts, strict=True)), self.active[chunk])


def active_teachers(scores: list[EnsembleScores]) -> np.ndarray:
    """bool [N, K]: which teacher scores which target of the sequences. Raises ValueError if no teacher scores a sequence."""
    active = np.array([[member is not None for member in s.scores] for s in scores])
    if not active.any(1).all():
        raise ValueError("no teacher scores one of the sequences; pass the scores of at least one teacher for each sequence")
    return np.repeat(active, [next(len(member.logprobs) for member in s.scores if member is not None) for s in scores], axis=0)


@dataclass(frozen=True)
class TeacherEnsemble:
    """The output heads of K teachers and their weights, which need not sum to 1."""

    heads: tuple[OutputHead, ...]
    weights: tuple[float, ...]

    def logprobs_into(
        self, out: Tensor, states: EnsembleStates, targets: Tensor, temperature: float, buffer_pool: BufferPool
    ) -> MemberStatistics:
        """Write the log-probs of the average into `out` [n, V]; return log-probs and log-normalisers of each teacher for the targets [n].

        Without gradient.
        """
        shares = torch.zeros(states.active.shape, dtype=torch.float64, device=out.device)
        for rows, share, weight in zip(states.rows, shares.unbind(1), self.weights, strict=True):
            share.index_fill_(0, rows, weight)
        log_shares = (shares / shares.sum(1, keepdim=True)).log().to(out.dtype)
        members = MemberStatistics(*(torch.full_like(log_shares, torch.nan) for _ in MemberStatistics._fields))
        out.fill_(-torch.inf)
        blocks, scratch = RowBlocks(out), buffer_pool.borrow("member logits", out.numel(), out.dtype, out.device)
        for k, (head, rows) in enumerate(zip(self.heads, states.rows, strict=True)):
            if not len(rows):
                continue
            logits = scratch[: len(rows) * out.shape[1]].view(len(rows), -1)
            head.logits_into(logits, states.hidden[k], temperature)
            normalizers = torch.cat([blocks.log_normalizers(logits[block]) for block in blocks.slices(len(rows))])
            logprobs = logits.gather(-1, targets.index_select(0, rows)[:, None]).squeeze(-1) - normalizers
            members.log_normalizers[:, k].index_copy_(0, rows, normalizers)
            members.logprobs[:, k].index_copy_(0, rows, logprobs)
            shift = log_shares[:, k].index_select(0, rows) - normalizers
            for block in blocks.slices(len(rows)):
                weighted_logprobs, places = logits[block].add_(shift[block, None]), rows[block]
                out.index_copy_(0, places, torch.logaddexp(out.index_select(0, places), weighted_logprobs))
        buffer_pool.give_back("member logits", scratch)
        return members


def teacher_logits_into(
    out: Tensor,
    teacher: OutputHead | TeacherEnsemble,
    states: Tensor | EnsembleStates,
    targets: Tensor,
    *,
    temperature: float,
    buffer_pool: BufferPool,
) -> MemberStatistics | None:
    """Write the teacher's logits into `out` [n, V]; return None.

    With several teachers: write the log-probs of their average; return log-probs and log-normalisers of each teacher.
    """
    if isinstance(teacher, TeacherEnsemble):
        return teacher.logprobs_into(out, states, targets, temperature, buffer_pool)
    return teacher.logits_into(out, states, temperature)


def concatenate_members(members: list[MemberStatistics | None]) -> MemberStatistics | tuple[None, None]:
    """The statistics of all rows from those of each chunk; two None for a single teacher."""
    return (None, None) if members[0] is None else MemberStatistics(*map(torch.cat, zip(*members, strict=True)))


def read_teacher(models: str | tuple[str, ...], weights: tuple[float, ...], vocabulary: int, device: str) -> OutputHead | TeacherEnsemble:
    """Read the output head of one teacher, or of all teachers of an ensemble, from model directories, for many products on `device`.

    models: one directory, or a tuple of them with as many weights, else raises ValueError.
    """
    if isinstance(models, str):
        return read_head(models, vocabulary).prepared_for(device)
    if len(models) != len(weights):
        raise ValueError(f"{len(models)} teachers have {len(weights)} weights; pass one weight for each teacher")
    return TeacherEnsemble(tuple(read_head(model, vocabulary).prepared_for(device) for model in models), weights)
