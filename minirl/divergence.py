"""What student and teacher say of each target token, over the whole vocabulary and without ever holding [tokens, vocabulary].

`token_statistics` turns two rows of logits into a few numbers a token; `in_chunks` runs it over chunks of tokens and recomputes each
chunk's logits in the backward pass, so that memory is chunk x vocabulary whatever the number of tokens. Float32 inside.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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


def in_chunks(function: Callable[..., TokenStatistics], chunk_tokens: int, *per_token: Tensor | None) -> TokenStatistics:
    """Apply a function of [n, ...] tensors to chunks of at most `chunk_tokens` rows and join its fields; None arguments stay None.

    At least one chunk is run, an empty one if need be: under ZeRO-3 every rank must touch the output head equally often.
    """
    rows = next(t for t in per_token if t is not None).shape[0]
    pieces = []
    for start in range(0, max(rows, 1), chunk_tokens):
        chunk = [t if t is None else t[start : start + chunk_tokens] for t in per_token]
        if torch.is_grad_enabled():
            pieces.append(checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(function(*chunk))
    return TokenStatistics(*(None if field[0] is None else torch.cat(field) for field in zip(*pieces, strict=True)))


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.gather(-1, columns[:, None]).squeeze(-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
