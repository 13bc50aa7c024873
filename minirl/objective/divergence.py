"""Divergences between student and teacher over the whole vocabulary, and the registry DIVERGENCES.

`token_statistics` computes every statistic of a target token from rows of logits, in float32 or wider. It is the readable definition:
training never holds the logits of all tokens, so `minirl.model.chunked_head` computes the same from hidden states.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minirl.config.objective import DivergenceConfig
from minirl.objective.mixture import mixture_logprobs


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of each row of log-probs, in nats: [N, V], [N, V] -> [N]."""
    return (first.exp() * (first - second)).sum(-1)


# Each function below: log q (student), log p (teacher) [N, V] -> divergence of each row [N]; `docs/mathematics.md`, section 6.


def _forward_kl(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(teacher, student)


def _reverse_kl(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(student, teacher)


def _jsd(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q."""
    middle = mixture_logprobs(student, teacher, config.beta)
    return config.beta * kl(teacher, middle) + (1 - config.beta) * kl(student, middle)


def _skew_forward_kl(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    """KL(p || skew p + (1 - skew) q)."""
    return kl(teacher, mixture_logprobs(student, teacher, config.skew))


def _skew_reverse_kl(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    """KL(q || skew q + (1 - skew) p)."""
    return kl(student, mixture_logprobs(teacher, student, config.skew))


def _logit_mse(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    """Mean over the vocabulary of the squared difference of centred logits; centring also removes the normaliser of the softmax."""
    difference = student - teacher
    return (difference - difference.mean(-1, keepdim=True)).square().mean(-1)


def _total_variation(student: Tensor, teacher: Tensor, config: DivergenceConfig) -> Tensor:
    """Half the sum of |p - q|."""
    return (student.exp() - teacher.exp()).abs().sum(-1) / 2


class DivergenceKind(NamedTuple):
    """compute: (log q, log p, config) -> [N], differentiable in the student.

    order: the divergence of a small difference of logits grows with this power of it. Dividing the logits by a temperature shrinks the
    divergence by the temperature to this power, so multiplying with that factor keeps the size of the loss.
    """

    compute: Callable[[Tensor, Tensor, DivergenceConfig], Tensor]
    order: int = 2


DIVERGENCES = {
    "forward_kl": DivergenceKind(_forward_kl),
    "reverse_kl": DivergenceKind(_reverse_kl),
    "jsd": DivergenceKind(_jsd),
    "skew_forward_kl": DivergenceKind(_skew_forward_kl),
    "skew_reverse_kl": DivergenceKind(_skew_reverse_kl),
    "logit_mse": DivergenceKind(_logit_mse),
    "total_variation": DivergenceKind(_total_variation, order=1),
}


def divergence_of(student_logits: Tensor, teacher_logits: Tensor, config: DivergenceConfig, *, divided_by: float = 1.0) -> Tensor:
    """The configured divergence of each row: [N, V], [N, V] -> [N].

    The temperature tau divides the logits of both networks: tau^2 KL(p_tau || q_tau) and so on. `divided_by` is the temperature by which
    the given logits are divided already; it is undone first. As tau grows, the value tends to half of `logit_mse` for the KLs, to
    beta (1 - beta) times that for jsd, and to (1 - skew)^2 times that for the skew kinds; total variation (times tau) tends to half the
    mean absolute difference of centred logits.
    """
    kind, factor = DIVERGENCES[config.kind], divided_by / config.temperature
    student, teacher = ((logits if factor == 1.0 else logits * factor).log_softmax(-1) for logits in (student_logits, teacher_logits))
    return config.temperature**kind.order * kind.compute(student, teacher, config)


class TokenStatistics(NamedTuple):
    """One number for each of N target tokens, float32, nats. Without a teacher, all but `student_logprobs` are None.

    With K teachers, `teacher_*` and all expectations refer to their average. `member_*` [N, K] hold the values of each teacher, NaN where
    it does not score the token.
    """

    student_logprobs: Tensor
    reverse_kl: Tensor | None = None
    forward_kl: Tensor | None = None
    soft_cross_entropy: Tensor | None = None  # - sum_v p(v) log q(v)
    teacher_logprobs: Tensor | None = None
    teacher_log_normalizers: Tensor | None = None
    divergence: Tensor | None = None  # the configured divergence, if requested; the KLs and the soft cross-entropy are then None
    member_logprobs: Tensor | None = None
    member_log_normalizers: Tensor | None = None


def token_statistics(
    student_logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    temperature: float = 1.0,
    teacher_expectations: bool = True,
    divergence: DivergenceConfig | None = None,
) -> TokenStatistics:
    """The statistics of N targets [N], from logits [N, V] that are already divided by the temperature. Teacher values carry no gradient.

    teacher_expectations False omits the expectations under the teacher (forward KL, soft cross-entropy), which would double the cost. With
    a `divergence`, the result holds that divergence and no other expectation.
    """
    student = _at_least_float32(student_logits).log_softmax(-1)
    student_logprobs = _pick(student, targets)
    if teacher_logits is None:
        return TokenStatistics(student_logprobs)
    teacher_logits = _at_least_float32(teacher_logits).detach()
    log_normalizers = teacher_logits.logsumexp(-1)
    teacher = teacher_logits - log_normalizers[:, None]
    teacher_values = {"teacher_logprobs": _pick(teacher, targets), "teacher_log_normalizers": log_normalizers}
    if divergence is not None:
        divergences = divergence_of(_at_least_float32(student_logits), teacher_logits, divergence, divided_by=temperature)
        return TokenStatistics(student_logprobs, divergence=divergences, **teacher_values)
    forward_kl = soft_cross_entropy = None
    if teacher_expectations:
        probabilities = teacher.exp()
        soft_cross_entropy = -(probabilities * student).sum(-1)
        forward_kl = soft_cross_entropy + (probabilities * teacher).sum(-1)
    return TokenStatistics(
        student_logprobs,
        reverse_kl=kl(student, teacher),
        forward_kl=forward_kl,
        soft_cross_entropy=soft_cross_entropy,
        **teacher_values,
    )


def _pick(rows: Tensor, columns: Tensor) -> Tensor:
    return rows.gather(-1, columns[:, None]).squeeze(-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
