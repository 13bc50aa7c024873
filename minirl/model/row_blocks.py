"""What a block of rows of logits says, and its gradient, in few passes over memory that the block shares with nothing bigger.

With z, t the logits of student and teacher [rows, V], q, p their distributions and u = z - t:

    reverse KL = sum q u - lse(z) + lse(t)        forward KL = lse(z) - lse(t) - sum p u        soft cross-entropy = lse(z) - sum p z
    d loss / dz = q (b (u - lse(z) + lse(t) - reverse KL) - a + c) + a [v = target] - c p

a, b, c [rows]: the loss's derivatives by log q(target), by the reverse KL, and by the forward KL and soft cross-entropy together, which
differ by the teacher's entropy alone. `minirl.objective.divergence.token_statistics` is the same, plainly written. Where another
divergence is asked for, it takes the place of all three, and autograd works out its gradient within the block.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Of one block of logits. On a CPU four of them lie in its caches at once; an accelerator needs no more than enough rows to be busy.
BLOCK_BYTES = {"cpu": 3 * 2**20}
ACCELERATOR_BLOCK_BYTES = 64 * 2**20


class RowStatistics(NamedTuple):
    """One number a row, or with several teachers one of each [rows, K]; the teacher's are None without a teacher, the expectations under
    it where they were not asked for.
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
    """Of the loss by a row's statistics, one number a row: a, b, c above, and that by another divergence; None where it is 0."""

    logprobs: Tensor
    reverse_kl: Tensor
    teacher_expectations: Tensor | None = None
    divergence: Tensor | None = None


class RowBlocks:
    """Blocks of rows of [n, V] and two buffers of a block's size. divergence: (student, teacher) [rows, V] -> [rows]."""

    def __init__(self, logits: Tensor, divergence: Callable[[Tensor, Tensor], Tensor] | None = None):
        self._divergence = divergence
        rows, width = logits.shape
        size = BLOCK_BYTES.get(logits.device.type, ACCELERATOR_BLOCK_BYTES)
        self.rows = max(1, min(rows, size // (width * logits.element_size())))
        self._spare = torch.empty(2, self.rows, width, dtype=logits.dtype, device=logits.device)

    def slices(self, rows: int) -> Iterator[slice]:
        """At least one, which is empty where there are no rows."""
        for start in range(0, max(rows, 1), self.rows):
            yield slice(start, min(start + self.rows, rows))

    def log_normalizers(self, logits: Tensor) -> Tensor:
        return _exponentials(logits, self._spare[0][: len(logits)])[2]

    def statistics(self, student: Tensor, teacher: Tensor | None, targets: Tensor, *, teacher_expectations: bool) -> RowStatistics:
        first, second = (spare[: len(student)] for spare in self._spare)
        mass, total, normalizers = _exponentials(student, first)
        logprobs = _pick(student, targets) - normalizers
        if teacher is None:
            return RowStatistics(logprobs, normalizers)
        if self._divergence is not None:
            teacher_normalizers = _exponentials(teacher, first)[2]
            of_teacher = (_pick(teacher, targets) - teacher_normalizers, teacher_normalizers)
            return RowStatistics(logprobs, normalizers, *of_teacher, divergence=self._divergence(student, teacher))
        difference = torch.sub(student, teacher, out=second)
        expected = mass.mul_(difference).sum(-1) / total
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
            reverse_kl=expected - gap,
            forward_kl=forward_kl,
            soft_cross_entropy=soft_cross_entropy,
        )

    def gradient(self, student: Tensor, teacher: Tensor | None, targets: Tensor, of: RowStatistics, by: Derivatives) -> Tensor:
        """d loss / dz in a workspace, good until the next call. of: the rows' statistics."""
        first, second = (spare[: len(student)] for spare in self._spare)
        a, b, c = by[:3]
        mass = torch.sub(student, of.student_log_normalizers[:, None], out=first).exp_()
        if of.reverse_kl is None:
            gradient = mass.mul_(-a[:, None])
            if by.divergence is not None:
                gradient += self._divergence_gradient(student, teacher, by.divergence)
        else:
            constant = a + b * (of.student_log_normalizers - of.teacher_log_normalizers + of.reverse_kl)
            constant = constant if c is None else constant - c
            gradient = torch.sub(student, teacher, out=second).mul_(b[:, None]).sub_(constant[:, None]).mul_(mass)
            if c is not None:
                gradient -= torch.sub(teacher, of.teacher_log_normalizers[:, None], out=first).exp_().mul_(c[:, None])
        return gradient.scatter_(1, targets[:, None], (_pick(gradient, targets) + a)[:, None])

    def _divergence_gradient(self, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            rows = student.detach().requires_grad_()
            return torch.autograd.grad(self._divergence(rows, teacher), rows, weights)[0]


def _exponentials(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - their maximum) [n, V] in `out`, its sum and the log-normaliser [n]."""
    highest = logits.amax(-1)
    mass = torch.sub(logits, highest[:, None], out=out).exp_()
    total = mass.sum(-1)
    return mass, total, highest + total.log()


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.gather(-1, columns[:, None]).squeeze(-1)
