"""The losses to be minimised, as sums over tokens: policy gradient, single step, pre-training and soft targets.

The learner divides each sum once, by counts of the whole optimizer step. All grids are [B, T], responses x tokens, left-aligned; mask is 1
on response tokens. Masked entries reach neither value nor gradient.
"""

import torch
from torch import Tensor


def importance_ratios(student_logprobs: Tensor, behavior_logprobs: Tensor, mask: Tensor) -> Tensor:
    """rho_t = q(y_t|s_t) / mu(y_t|s_t), with mu the behavior distribution; carries the student's gradient; 1 where masked."""
    return (student_logprobs - behavior_logprobs).masked_fill(mask == 0, 0.0).exp()


def policy_gradient_loss(
    student_logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio_clip: float | None = None,
    clip_form: str = "outside",
) -> Tensor:
    """- sum_t of the clipped surrogate. Advantages are constants; the gradient runs through rho (paper, Eq. 7 and Algorithm 1).

    clip_form `outside`: A min(rho, clip rho), as the paper prints it. `ppo`: min(A rho, A clip rho), as the reference computes it.
    The two differ for A < 0, the usual case.
    """
    ratios = importance_ratios(student_logprobs, behavior_logprobs, mask)
    advantages = advantages.detach()
    clipped = ratios if ratio_clip is None else ratios.clamp(1 - ratio_clip, 1 + ratio_clip)
    if clip_form == "outside":
        surrogate = advantages * torch.minimum(ratios, clipped)
    else:
        surrogate = torch.minimum(advantages * ratios, advantages * clipped)
    return -surrogate.masked_fill(mask == 0, 0.0).sum()


def single_step_loss(reverse_kl: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """+ sum_t w_t KL(q(.|s_t) || p(.|s_t)), the exact full-vocabulary term (paper, Eq. 3 and 7); weights are constants, None is 1."""
    masked_kl = reverse_kl.masked_fill(mask == 0, 0.0)
    return masked_kl.sum() if weights is None else (masked_kl * weights.detach().masked_fill(mask == 0, 0.0)).sum()


def pretrain_loss(logprobs: Tensor, mask: Tensor, *, soft_cross_entropy: Tensor | None = None, kd_share: float = 0.0) -> Tensor:
    """(1 - k) sum_t -log q(d_t) + k sum_t -sum_v p(v) log q(v): the language-model loss on plain text, with k the `kd_share`.

    The paper has k = 0, the reference code k > 0. Raises ValueError if k > 0 and `soft_cross_entropy` is missing.
    """
    hard = -logprobs.masked_fill(mask == 0, 0.0).sum()
    if kd_share == 0.0:
        return hard
    if soft_cross_entropy is None:
        raise ValueError("kd_share > 0 needs the soft cross-entropy against the teacher: pass soft_cross_entropy")
    return (1 - kd_share) * hard + kd_share * soft_cross_entropy.masked_fill(mask == 0, 0.0).sum()


def soft_target_loss(logprobs: Tensor, divergence: Tensor, mask: Tensor, *, hard_weight: float) -> Tensor:
    """h sum_t -log q(y_t) + (1 - h) sum_t D(p, q at s_t), for y from any source (`docs/mathematics.md`, section 6)."""
    hard, soft = -logprobs.masked_fill(mask == 0, 0.0).sum(), divergence.masked_fill(mask == 0, 0.0).sum()
    return hard_weight * hard + (1 - hard_weight) * soft
