"""What student and teacher say of a target token, over the whole vocabulary: the definitions, on rows of logits, float32 inside.

Training never holds the logits of all tokens; `minirl.chunked_head` computes the same from hidden states.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student || teacher) of each row, nats: [N, V], [N, V] -> [N]; gradient through both occurrences of the student."""
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    return (student.exp() * (student - teacher)).sum(-1)


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of each row, nats: [N, V], [N, V] -> [N]."""
    return reverse_kl(teacher_logits, student_logits)


class TokenStatistics(NamedTuple):
    """One number for each of N target tokens, float32, nats; the teacher's are None where there is no teacher."""

    student_logprobs: Tensor
    reverse_kl: Tensor | None = None
    forward_kl: Tensor | None = None
    soft_cross_entropy: Tensor | None = None  # - sum_v p(v) log q(v)
    teacher_logprobs: Tensor | None = None
    teacher_log_normalizers: Tensor | None = None


def token_statistics(
    student_logits: Tensor, targets: Tensor, teacher_logits: Tensor | None = None, *, under_teacher: bool = True
) -> TokenStatistics:
    """Logits [N, V] already divided by the temperature, targets [N]. Teacher values carry no gradient.

    under_teacher False leaves out the expectations under the teacher (forward KL, soft cross-entropy), which cost as much again.
    """
    student = _at_least_float32(student_logits).log_softmax(-1)
    student_logprobs = _pick(student, targets)
    if teacher_logits is None:
        return TokenStatistics(student_logprobs)
    teacher_logits = _at_least_float32(teacher_logits).detach()
    log_normalizers = teacher_logits.logsumexp(-1)
    teacher = teacher_logits - log_normalizers[:, None]
    forward_kl = soft_cross_entropy = None
    if under_teacher:
        probabilities = teacher.exp()
        soft_cross_entropy = -(probabilities * student).sum(-1)
        forward_kl = soft_cross_entropy + (probabilities * teacher).sum(-1)
    return TokenStatistics(
        student_logprobs,
        reverse_kl=(student.exp() * (student - teacher)).sum(-1),
        forward_kl=forward_kl,
        soft_cross_entropy=soft_cross_entropy,
        teacher_logprobs=_pick(teacher, targets),
        teacher_log_normalizers=log_normalizers,
    )


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.gather(-1, columns[:, None]).squeeze(-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
