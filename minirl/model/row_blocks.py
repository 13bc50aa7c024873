"""RowBlocks: statistics and gradients of a few rows of logits at a time, small enough to stay in the CPU cache.

With z, t the logits of student and teacher [rows, V], q, p their distributions and u = z - t:

    reverse KL = sum q u - lse(z) + lse(t)        forward KL = lse(z) - lse(t) - sum p u        soft cross-entropy = lse(z) - sum p z
    d loss / dz = q (b (u - lse(z) + lse(t) - reverse KL) - a + c) + a [v = target] - c p

a, b, c [rows] are the derivatives of the loss by log q(target), by the reverse KL, and by the sum of forward KL and soft cross-entropy,
which differ only by the teacher's entropy. `minirl.objective.divergence.token_statistics` is the readable definition of the same values.
If a configured divergence is requested, it replaces all three, and autograd computes its gradient within the block.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Bytes of one block of logits. A CPU holds four such blocks in its caches at once; an accelerator only needs enough rows to be busy.
BLOCK_BYTES = {"cpu": 3 * 2**20}
ACCELERATOR_BLOCK_BYTES = 64 * 2**20


class RowStatistics(NamedTuple):
    """One number for each row; `member_*` hold one for each of K teachers, [rows, K].

    Teacher values are None without a teacher. Expectations under the teacher are None if they were not requested.
    """

    student_logprobs: Tensor
    student_log_normalizers: Tensor
    teacher_logprobs: Tensor | None = None
    teacher_log_normalizers: Tensor | None = None
    reverse_kl: Tensor | None = None
    forward_kl: Tensor | None = None
    soft_cross_entropy: Tensor | None = None
    divergence: Tensor | None = None
    member_logprobs: Tensor | None = None
    member_log_normalizers: Tensor | None = None


class Derivatives(NamedTuple):
    """Derivatives of the loss by a row's statistics, one number for each row: a, b, c of the module docstring, and the derivative by a
    configured divergence. None means 0.
    """

    logprobs: Tensor
    reverse_kl: Tensor
    teacher_expectations: Tensor | None = None
    divergence: Tensor | None = None


class RowBlocks:
    """Splits logits [n, V] into blocks of rows, and holds two buffers of a block's size.

    divergence: the configured one, (student, teacher) [rows, V] -> [rows].
    """

    def __init__(self, logits: Tensor, divergence: Callable[[Tensor, Tensor], Tensor] | None = None):
        self._divergence = divergence
        rows, width = logits.shape
        size = BLOCK_BYTES.get(logits.device.type, ACCELERATOR_BLOCK_BYTES)
        self.rows = max(1, min(rows, size // (width * logits.element_size())))
        self._spare = torch.empty(2, self.rows, width, dtype=logits.dtype, device=logits.device)

    def slices(self, rows: int) -> Iterator[slice]:
        """The blocks as slices of `rows` rows: at least one, which is empty if there are no rows."""
        for start in range(0, max(rows, 1), self.rows):
            yield slice(start, min(start + self.rows, rows))

    def log_normalizers(self, logits: Tensor) -> Tensor:
        return _exponentials(logits, self._spare[0][: len(logits)])[2]

    def statistics(self, student: Tensor, teacher: Tensor | None, targets: Tensor, *, teacher_expectations: bool) -> RowStatistics:
        """The statistics of one block. student, teacher: logits [rows, V]; targets: [rows]."""
        first, second = (spare[: len(student)] for spare in self._spare)
        mass, total, normalizers = _exponentials(student, first)
        logprobs = _pick(student, targets) - normalizers
        if teacher is None:
            return RowStatistics(logprobs, normalizers)
        if self._divergence is not None:
            teacher_normalizers = _exponentials(teacher, first)[2]
            teacher_logprobs = _pick(teacher, targets) - teacher_normalizers
            return RowStatistics(
                logprobs, normalizers, teacher_logprobs, teacher_normalizers, divergence=self._divergence(student, teacher)
            )
        difference = torch.sub(student, teacher, out=second)
        mean_difference = mass.mul_(difference).sum(-1) / total  # under the student
        mass, total, teacher_normalizers = _exponentials(teacher, first)
        gap = normalizers - teacher_normalizers
        forward_kl = soft_cross_entropy = None
        if teacher_expectations:
            forward_kl = gap - difference.mul_(mass).sum(-1) / total
            soft_cross_entropy = normalizers - mass.mul_(student).sum(-1) / total
        return RowStatistics(
            student_logprobs=logprobs,
            student_log_normalizers=normalizers,
            teacher_logprobs=_pick(teacher, targets) - teacher_normalizers,
            teacher_log_normalizers=teacher_normalizers,
            reverse_kl=mean_difference - gap,
            forward_kl=forward_kl,
            soft_cross_entropy=soft_cross_entropy,
        )

    def gradient(
        self, student: Tensor, teacher: Tensor | None, targets: Tensor, statistics: RowStatistics, derivatives: Derivatives
    ) -> Tensor:
        """d loss / dz [rows, V] in one of the buffers, valid until the next call. statistics: those of the same rows."""
        first, second = (spare[: len(student)] for spare in self._spare)
        a, b, c = derivatives[:3]
        mass = torch.sub(student, statistics.student_log_normalizers[:, None], out=first).exp_()
        if statistics.reverse_kl is None:
            gradient = mass.mul_(-a[:, None])
            if derivatives.divergence is not None:
                gradient += self._divergence_gradient(student, teacher, derivatives.divergence)
        else:
            constant = a + b * (statistics.student_log_normalizers - statistics.teacher_log_normalizers + statistics.reverse_kl)
            constant = constant if c is None else constant - c
            gradient = torch.sub(student, teacher, out=second).mul_(b[:, None]).sub_(constant[:, None]).mul_(mass)
            if c is not None:
                gradient -= torch.sub(teacher, statistics.teacher_log_normalizers[:, None], out=first).exp_().mul_(c[:, None])
        return gradient.scatter_(1, targets[:, None], (_pick(gradient, targets) + a)[:, None])

    def _divergence_gradient(self, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            rows = student.detach().requires_grad_()
            return torch.autograd.grad(self._divergence(rows, teacher), rows, weights)[0]


def _exponentials(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - maximum of the row) [n, V] in `out`; its sum [n]; the log-normaliser [n]."""
    highest = logits.amax(-1)
    mass = torch.sub(logits, highest[:, None], out=out).exp_()
    total = mass.sum(-1)
    return mass, total, highest + total.log()


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.gather(-1, columns[:, None]).squeeze(-1)
