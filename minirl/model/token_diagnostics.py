"""Diagnostics of target tokens for evaluation: exact KLs, confidence, accuracy and overlap with the teacher.

They come from one forward pass. As in training, at most one chunk of logits exists at once (`minirl.model.chunked_head`). Nothing here
carries gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minirl.model.buffers import BufferPool
from minirl.model.chunked_head import widened_head
from minirl.model.output_head import OutputHead
from minirl.model.row_blocks import RowBlocks
from minirl.model.teacher_ensemble import EnsembleStates, TeacherEnsemble, concatenate_members, teacher_logits_into


@dataclass(frozen=True)
class SequenceDiagnostics:
    """Diagnostics of one sequence with N targets, in nats; all float32 [N] except `correct`, bool [N].

    reverse_kl, forward_kl: KL(student || teacher), KL(teacher || student), over the whole shared vocabulary. confidence: the student's
    highest probability; correct: the token with that probability is the target. overlap: the fraction of the student's k likeliest tokens
    that are among the teacher's k likeliest.
    """

    student_logprobs: np.ndarray
    reverse_kl: np.ndarray
    forward_kl: np.ndarray
    confidence: np.ndarray
    overlap: np.ndarray
    correct: np.ndarray


class TokenDiagnostics(NamedTuple):
    """The same diagnostics for all N targets of a micro-batch, as tensors.

    Also the log-probs and log-normalisers of the teacher [N], and those of each of K teachers of an ensemble (`member_*` [N, K]), which
    `minirl.training.teacher_checksum.teacher_gap` checks.
    """

    student_logprobs: Tensor
    teacher_logprobs: Tensor
    teacher_log_normalizers: Tensor
    reverse_kl: Tensor
    forward_kl: Tensor
    confidence: Tensor
    overlap: Tensor
    correct: Tensor
    member_logprobs: Tensor | None = None
    member_log_normalizers: Tensor | None = None

    def split(self, counts: list[int]) -> list[SequenceDiagnostics]:
        """The diagnostics of each sequence, by one copy from the device. counts: the number of targets of each."""
        names = list(SequenceDiagnostics.__dataclass_fields__)
        fetched = torch.stack([getattr(self, name).to(self.student_logprobs.dtype) for name in names]).cpu()
        sequences = [dict(zip(names, part.numpy(), strict=True)) for part in fetched.split(counts, dim=1)]
        return [SequenceDiagnostics(**fields | {"correct": fields["correct"] > 0}) for fields in sequences]


@torch.no_grad()
def token_diagnostics(
    hidden: Tensor,
    targets: Tensor,
    student: OutputHead,
    *,
    teacher: OutputHead | TeacherEnsemble,
    teacher_hidden: Tensor | EnsembleStates,
    top_k: int,
    chunk_tokens: int,
    temperature: float = 1.0,
    buffer_pool: BufferPool | None = None,
) -> TokenDiagnostics:
    """The diagnostics of N targets. hidden: [N, d]; teacher_hidden: [N, d_teacher], or the states of several teachers; targets: [N].

    top_k: the k of `overlap`. temperature: of both models. At most `chunk_tokens` rows of logits exist at once.
    """
    buffer_pool, block_diagnostics, members = buffer_pool or BufferPool(), [], []
    names, width = ("student logits", "teacher logits"), student.vocabulary
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    buffers = [buffer_pool.borrow(name, min(chunk_tokens, len(hidden)) * width, dtype, hidden.device) for name in names]
    with widened_head(student, hidden, buffer_pool) as head:
        for start in range(0, max(len(hidden), 1), chunk_tokens):
            chunk = slice(start, min(start + chunk_tokens, len(hidden)))
            logits = [buffer[: (chunk.stop - start) * width].view(-1, width) for buffer in buffers]
            head.logits_into(logits[0], hidden[chunk], temperature)
            members.append(
                teacher_logits_into(
                    logits[1], teacher, teacher_hidden[chunk], targets[chunk], temperature=temperature, buffer_pool=buffer_pool
                )
            )
            block_diagnostics += _diagnose_chunk(*logits, targets[chunk], top_k)
    for name, buffer in zip(names, buffers, strict=True):
        buffer_pool.give_back(name, buffer)
    member_logprobs, member_log_normalizers = concatenate_members(members)
    fields = [torch.cat(field) for field in zip(*block_diagnostics, strict=True) if field[0] is not None]
    return TokenDiagnostics(*fields, member_logprobs, member_log_normalizers)


def _diagnose_chunk(student: Tensor, teacher: Tensor, targets: Tensor, top_k: int) -> list[TokenDiagnostics]:
    blocks = RowBlocks(student)
    return [_diagnose_block(blocks, student[rows], teacher[rows], targets[rows], top_k) for rows in blocks.slices(len(student))]


def _diagnose_block(blocks: RowBlocks, student: Tensor, teacher: Tensor, targets: Tensor, top_k: int) -> TokenDiagnostics:
    statistics = blocks.statistics(student, teacher, targets, teacher_expectations=True)
    highest, likeliest = student.topk(top_k)
    shared = (likeliest[:, :, None] == teacher.topk(top_k).indices[:, None, :]).any(-1)
    return TokenDiagnostics(
        student_logprobs=statistics.student_logprobs,
        teacher_logprobs=statistics.teacher_logprobs,
        teacher_log_normalizers=statistics.teacher_log_normalizers,
        reverse_kl=statistics.reverse_kl,
        forward_kl=statistics.forward_kl,
        confidence=(highest[:, 0] - statistics.student_log_normalizers).exp(),
        overlap=shared.float().mean(-1),
        correct=likeliest[:, 0] == targets,
    )
