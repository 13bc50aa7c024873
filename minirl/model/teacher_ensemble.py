"""Several teachers as one: their average in probability, exact, over those that speak for a sequence.

    log p(v|s) = logsumexp_k (log w_k + log p_k(v|s)),  w_k the weights of the speaking ones, made to sum to 1

Every p_k comes from its own output head, at the run's temperature, so a temperature softens each teacher before they are averaged. Where
one alone speaks (each record has its teacher) p is that one's. Each teacher's checksum is kept apart: an average hides who is wrong.

Worked example, three targets, teacher 0 speaking for the first two (weight 1), teacher 1 for the last two (weight 3):

    active    [[1, 0], [1, 1], [0, 1]]         hidden  ([2, d_0], [2, d_1])
    shares    [[1, 0], [1/4, 3/4], [0, 1]]     p(.|s_1) = p_0 / 4 + 3 p_1 / 4
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minirl.model.buffers import BufferPool
from minirl.model.loading import read_head
from minirl.model.output_head import OutputHead
from minirl.model.row_blocks import RowBlocks
from minirl.types import EnsembleScores, tensor_from_numpy


class MemberStatistics(NamedTuple):
    """What each of K teachers says of N targets by itself, nats; not a number where it does not speak. Both [N, K]."""

    logprobs: Tensor
    log_normalizers: Tensor


@dataclass(frozen=True)
class EnsembleStates:
    """The teachers' hidden states for N targets. hidden: of teacher k the [N_k, d_k] for which it speaks; active: bool [N, K]."""

    hidden: tuple[Tensor, ...]
    active: np.ndarray

    @classmethod
    def from_scores(cls, scores: list[EnsembleScores], device: str) -> "EnsembleStates":
        """Of several sequences, one after the other."""
        hidden = []
        for member in zip(*(s.scores for s in scores), strict=True):
            spoken = [tensor_from_numpy(s.hidden) for s in member if s is not None]
            hidden.append(torch.cat(spoken).to(device) if spoken else torch.empty(0, 0, device=device))
        return cls(tuple(hidden), active_teachers(scores))

    def __getitem__(self, rows: slice) -> "EnsembleStates":
        before, within = self.active[: rows.start].sum(0), self.active[rows].sum(0)
        hidden = tuple(h[b : b + w] for h, b, w in zip(self.hidden, before, within, strict=True))
        return EnsembleStates(hidden, self.active[rows])


def active_teachers(scores: list[EnsembleScores]) -> np.ndarray:
    """bool [N, K]: which teacher speaks for which of the sequences' targets. Raises ValueError where nobody does."""
    active = np.array([[member is not None for member in s.scores] for s in scores])
    if not active.any(1).all():
        raise ValueError("no teacher speaks for a sequence, so there is nothing to learn from it")
    return np.repeat(active, [next(len(member.logprobs) for member in s.scores if member is not None) for s in scores], axis=0)


@dataclass(frozen=True)
class TeacherEnsemble:
    """The output heads of K teachers and their weights, which need not sum to 1."""

    heads: tuple[OutputHead, ...]
    weights: tuple[float, ...]

    def logprobs_into(
        self, out: Tensor, states: EnsembleStates, targets: Tensor, temperature: float, buffer_pool: BufferPool
    ) -> MemberStatistics:
        """Write the average's log-probs into `out` [n, V] and return what each teacher says of the targets [n]; without gradient."""
        shares = states.active * np.array(self.weights)
        with np.errstate(divide="ignore"):
            log_shares = torch.from_numpy(np.log(shares / shares.sum(1, keepdims=True))).to(out)
        found = MemberStatistics(*(torch.full_like(log_shares, torch.nan) for _ in MemberStatistics._fields))
        out.fill_(-torch.inf)
        blocks, scratch = RowBlocks(out), buffer_pool.borrow("member logits", out.numel(), out.dtype, out.device)
        for k, head in enumerate(self.heads):
            rows = torch.from_numpy(np.flatnonzero(states.active[:, k])).to(out.device)
            if not len(rows):
                continue
            logits = scratch[: len(rows) * out.shape[1]].view(len(rows), -1)
            head.logits_into(logits, states.hidden[k], temperature)
            found.log_normalizers[rows, k] = normalizers = torch.cat([blocks.log_normalizers(logits[b]) for b in blocks.slices(len(rows))])
            found.logprobs[rows, k] = logits.gather(-1, targets[rows, None]).squeeze(-1) - normalizers
            shift = log_shares[rows, k] - normalizers
            for block in blocks.slices(len(rows)):
                own = logits[block].add_(shift[block, None])
                out[rows[block]] = torch.logaddexp(out[rows[block]], own)
        buffer_pool.give_back("member logits", scratch)
        return found


def teacher_logits_into(
    out: Tensor,
    teacher: OutputHead | TeacherEnsemble,
    states: Tensor | EnsembleStates,
    targets: Tensor,
    *,
    temperature: float,
    buffer_pool: BufferPool,
) -> MemberStatistics | None:
    """One teacher's logits into `out` [n, V], or the log-probs of the average of several and what each of them says by itself."""
    if isinstance(teacher, TeacherEnsemble):
        return teacher.logprobs_into(out, states, targets, temperature, buffer_pool)
    return teacher.logits_into(out, states, temperature)


def concatenate_members(members: list[MemberStatistics | None]) -> MemberStatistics | tuple[None, None]:
    """Of all rows, from that of chunks."""
    return (None, None) if members[0] is None else MemberStatistics(*map(torch.cat, zip(*members, strict=True)))


def read_teacher(models: str | tuple[str, ...], weights: tuple[float, ...], vocabulary: int, device: str) -> OutputHead | TeacherEnsemble:
    """The head of the one teacher, or of all, from their model directories, for many products on this device."""
    if isinstance(models, str):
        return read_head(models, vocabulary).prepared_for(device)
    if len(models) != len(weights):
        raise ValueError(f"{len(models)} teachers need as many weights and not {len(weights)}")
    return TeacherEnsemble(tuple(read_head(model, vocabulary).prepared_for(device) for model in models), weights)
