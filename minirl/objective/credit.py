"""Credit: the reward of each response token, its return, and the whitening of returns into advantages.

All grids are [B, T], responses x tokens, left-aligned; mask is 1 on response tokens. Notation: q student, p teacher,
r_t = log p(y_t|s_t) - log q(y_t|s_t), M the mask, T the number of tokens of a response, its end token included.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def rewards(teacher_logprobs: Tensor, student_logprobs: Tensor, mask: Tensor, *, scale: float = 1.0, clip: float | None = None) -> Tensor:
    """r_t = (log p - log q) / scale, clipped to +-clip, detached, 0 where masked (paper, section 2.2)."""
    reward = ((teacher_logprobs - student_logprobs) / scale).detach()
    if clip is not None:
        reward = reward.clamp(-clip, clip)
    return reward.masked_fill(mask == 0, 0.0)


def returns(rewards: Tensor, mask: Tensor, *, kind: str, discount: float = 1.0, length_normalization: bool = True) -> Tensor:
    """The return of each token: its advantage A_t before whitening.

    future        sum_{s>t} discount^(s-t-1) r_s     the paper's R_{t+1}: r_t itself belongs to the single-step term (Eq. 3)
    reward_to_go  sum_{s>=t} discount^(s-t) r_s      the reference code's R_t, which counts r_t twice
    immediate     r_t                                on-policy distillation without a future

    length_normalization divides by the number of summed tokens, undiscounted; a return without summed tokens is 0 (Eq. 6).
    Differs from the printed paper: its divisor, T - t - 1, is one less than the number of terms, and is 0 or -1 at the end.
    """
    rewards = rewards.masked_fill(mask == 0, 0.0)
    if kind == "immediate":
        return rewards
    to_go = _backward_sums(torch.full_like(rewards, discount), rewards)
    counts = (mask.sum(1, keepdim=True) - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0)
    if kind == "future":
        to_go, counts = _shift_left(to_go), _shift_left(counts)
    if length_normalization:
        to_go = to_go / counts.clamp(min=1)
    return to_go.masked_fill((mask == 0) | (counts == 0), 0.0)


def whitening_statistics(advantages: Sequence[np.ndarray], max_response_tokens: int) -> tuple[float, float]:
    """Mean and population variance for `whiten`, from the advantages [T_i] of every response of one optimizer step."""
    grid_size = len(advantages) * max_response_tokens
    mean = sum(float(a.sum(dtype=np.float64)) for a in advantages) / grid_size
    return mean, sum(float(np.square(a, dtype=np.float64).sum()) for a in advantages) / grid_size - mean**2


def whiten(advantages: Tensor, mask: Tensor, *, mean: float, variance: float) -> Tensor:
    """(A - mean) / sqrt(variance + 1e-8), 0 where masked.

    mean and variance (population) are taken over the fixed grid [responses of the optimizer step, max_response_tokens], including the
    zeros in the padding. Differs from the reference: its grid is one micro-batch, so its results depend on how a step is split.
    """
    return ((advantages - mean) * (variance + 1e-8) ** -0.5).masked_fill(mask == 0, 0.0)


def exact_returns(rewards: Tensor, ratios: Tensor, mask: Tensor) -> Tensor:
    """G_T = 0, G_t = rho_{t+1} (r_{t+1} + G_{t+1}): each future reward times the ratios up to its token (docs/mathematics.md, 1)."""
    weighted = (ratios.detach() * (mask != 0)).to(rewards.dtype)
    return _backward_sums(_shift_left(weighted), _shift_left(weighted * rewards)).masked_fill(mask == 0, 0.0)


def weights_before(ratios: Tensor, mask: Tensor) -> Tensor:
    """W_{t-1} = prod_{i<t} rho_i, detached, 1 at the first token: the exact weight of both loss terms at t."""
    masked_ratios = ratios.detach().masked_fill(mask == 0, 1.0)
    weights, stretch = torch.cat([torch.ones_like(masked_ratios[:, :1]), masked_ratios[:, :-1]], dim=1), 1
    while stretch < weights.shape[1]:  # each weight is the product of `stretch` ratios before its token, or of all of them
        weights = torch.cat([weights[:, :stretch], weights[:, stretch:] * weights[:, :-stretch]], dim=1)
        stretch *= 2
    return weights


def _backward_sums(factors: Tensor, terms: Tensor) -> Tensor:
    """G [B, T] with G_t = terms_t + factors_t G_{t+1} and G_{T+1} = 0, without a loop over tokens.

    The number of operations grows with log2 T: each step joins every stretch of tokens with the one behind it. torch has no such scan for
    CUDA, and its cumsum and cumprod of floats are not deterministic there.
    """
    stretch, factors = 1, factors[:, :-1]
    while stretch < terms.shape[1]:  # terms_t is the sum over `stretch` tokens from t on, factors_t the product of their factors
        terms = torch.cat([terms[:, :-stretch] + factors * terms[:, stretch:], terms[:, -stretch:]], dim=1)
        factors = factors[:, :-stretch] * factors[:, stretch:]
        stretch *= 2
    return terms


def _shift_left(grid: Tensor) -> Tensor:
    """Column t of the result is column t + 1 of the grid; the last column is 0."""
    return torch.cat([grid[:, 1:], torch.zeros_like(grid[:, :1])], dim=1)
