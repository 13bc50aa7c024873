"""Oracles: the equations as loops over single tokens, one response at a time, to check the production losses.

Nothing here is shared with `minirl`: no padding, no masks, no batches, no log-softmax from a library. Each function names the equation or
code that it transcribes: "Eq." and "Algorithm" are those of the paper (arXiv 2306.08543); "LMOps" is its reference code, microsoft/LMOps
`minillm/` at 4f2a9de. In formulas t counts from 1, as in the sources; lists count from 0.

Notation: q the current student, p the teacher, mu the behavior distribution; rho_t = q(y_t|s_t) / mu(y_t|s_t); W_t = rho_1 ... rho_t,
W_0 = 1; r_t = log p(y_t|s_t) - log q(y_t|s_t).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """One sampled response of T tokens over a vocabulary of V.

    student_logits: [T, V], carries gradient. teacher_logits: [T, V]. tokens: T ids. behavior: T log-probs of the tokens under the
    distribution that sampled them. collected: T log-probs of the tokens under the student at collection (LMOps only).
    """

    student_logits: Tensor
    teacher_logits: Tensor
    tokens: Sequence[int]
    behavior: Sequence[float]
    collected: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def student(self, t: int) -> Tensor:
        """log q(y_t|s_t), with gradient."""
        return log_softmax(self.student_logits[t])[self.tokens[t]]

    def teacher(self, t: int) -> Tensor:
        """log p(y_t|s_t)."""
        return log_softmax(self.teacher_logits[t])[self.tokens[t]]

    def ratio(self, t: int) -> Tensor:
        """rho_t, with gradient."""
        return (self.student(t) - self.behavior[t]).exp()

    def reward(self, t: int) -> float:
        """r_t from the current student."""
        return float(self.teacher(t).detach() - self.student(t).detach())

    def reverse_kl(self, t: int) -> Tensor:
        return reverse_kl(self.student_logits[t], self.teacher_logits[t])


def log_softmax(row: Tensor) -> list[Tensor]:
    top = max(float(logit.detach()) for logit in row)
    normalizer = torch.stack([(logit - top).exp() for logit in row]).sum().log() + top
    return [logit - normalizer for logit in row]


def reverse_kl(student_row: Tensor, teacher_row: Tensor) -> Tensor:
    """sum_v q(v) [log q(v) - log p(v)], the vocabulary sum of Eq. 7 with the opposite sign."""
    log_q, log_p = log_softmax(student_row), log_softmax(teacher_row)
    return torch.stack([q.exp() * (q - p) for q, p in zip(log_q, log_p, strict=True)]).sum()


def forward_kl(student_row: Tensor, teacher_row: Tensor) -> Tensor:
    """sum_v p(v) [log p(v) - log q(v)]."""
    return reverse_kl(teacher_row, student_row)


def divergence(kind: str, student_row: Tensor, teacher_row: Tensor, *, temperature=1.0, beta=0.5, skew=0.1) -> Tensor:
    """Mathematics, section 6, one vocabulary entry at a time; times the temperature squared, or the temperature for total variation."""
    if kind == "logit_mse":
        size = len(student_row)
        student_mean, teacher_mean = sum(student_row) / size, sum(teacher_row) / size
        return sum(((q - student_mean) - (p - teacher_mean)) ** 2 for q, p in zip(student_row, teacher_row, strict=True)) / size
    log_q, log_p = (log_softmax(row / temperature) for row in (student_row, teacher_row))
    q, p = [x.exp() for x in log_q], [x.exp() for x in log_p]
    if kind == "total_variation":
        return temperature * sum((a - b) if float(a.detach()) > float(b.detach()) else (b - a) for a, b in zip(q, p, strict=True)) / 2

    def kl(first: list[Tensor], second: list[Tensor]) -> Tensor:
        return sum(a * (a / b).log() for a, b in zip(first, second, strict=True))

    def mixed(share: float, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]

    value = {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, mixed(beta, p, q)) + (1 - beta) * kl(q, mixed(beta, p, q)),
        "skew_forward_kl": lambda: kl(p, mixed(skew, p, q)),
        "skew_reverse_kl": lambda: kl(q, mixed(skew, q, p)),
    }[kind]()
    return temperature**2 * value


# Returns


def paper_returns(rewards: Sequence[float]) -> list[float]:
    """Eq. 6 divided by the number of its terms: the mean of the rewards strictly after t; 0 if there are none."""
    total = len(rewards)
    return [sum(rewards[t + 1 :]) / (total - t - 1) if t + 1 < total else 0.0 for t in range(total)]


def lmops_returns(rewards: Sequence[float], discount: float = 0.95) -> list[float]:
    """LMOps `losses._get_advantages_and_returns` before whitening: R_t = r_t + discount R_{t+1}, divided by the tokens from t on."""
    values, following = [0.0] * len(rewards), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        following = rewards[t] + discount * following
        values[t] = following / (len(rewards) - t)
    return values


def lmops_whitened(returns: Sequence[Sequence[float]], max_response_tokens: int) -> list[list[float]]:
    """LMOps `utils.whiten` on a fixed grid: one row of `max_response_tokens` for each response of the optimizer step, zeros after its end.

    Differs from the reference, which whitens over each padded micro-batch; the fixed grid is this project's choice.
    """
    grid = [list(row) + [0.0] * (max_response_tokens - len(row)) for row in returns]
    values = [value for row in grid for value in row]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [[(value - mean) / math.sqrt(variance + 1e-8) for value in row] for row in returns]


def lmops_reward(reward: float, scale: float = 0.5, limit: float = 100.0) -> float:
    """LMOps `sampler.run_sample`: divided by the scale, then clipped per token."""
    return min(max(reward / scale, -limit), limit)


# The two clip forms, as the surrogate to maximise; the loss is minus the surrogate


def clipped_outside(advantage: float, ratio: Tensor, clip: float) -> Tensor:
    """Algorithm 1: A min[rho, clip(rho, 1 - eps, 1 + eps)]."""
    return advantage * _smaller(ratio, _clamped(ratio, clip))


def clipped_ppo(advantage: float, ratio: Tensor, clip: float) -> Tensor:
    """LMOps `losses._pg_loss`: min[A rho, A clip(rho, 1 - eps, 1 + eps)]."""
    return _smaller(advantage * ratio, advantage * _clamped(ratio, clip))


def _clamped(ratio: Tensor, clip: float) -> Tensor:
    if float(ratio.detach()) > 1 + clip:
        return torch.tensor(1 + clip, dtype=ratio.dtype)
    if float(ratio.detach()) < 1 - clip:
        return torch.tensor(1 - clip, dtype=ratio.dtype)
    return ratio


def _smaller(left: Tensor, right: Tensor) -> Tensor:
    return left if float(left.detach()) <= float(right.detach()) else right


# The losses of one response: (policy gradient, single step)

Losses = tuple[Tensor, Tensor]


def paper_losses(response: Response, clip: float | None = 0.2, length_normalization: bool = True) -> Losses:
    """Eq. 7 and Algorithm 1 for one response: per-token weights on both terms."""
    rewards = [response.reward(t) for t in range(len(response))]
    returns = paper_returns(rewards) if length_normalization else [sum(rewards[t + 1 :]) for t in range(len(rewards))]
    policy_gradient, single_step = _zero(response), _zero(response)
    for t in range(len(response)):
        ratio = response.ratio(t)
        policy_gradient = policy_gradient - (returns[t] * ratio if clip is None else clipped_outside(returns[t], ratio, clip))
        single_step = single_step + float(ratio.detach()) * response.reverse_kl(t)
    return policy_gradient, single_step


def lmops_losses(batch: Sequence[Response], max_response_tokens: int) -> list[Losses]:
    """LMOps `losses.Loss` for the responses of one optimizer step: rewards from collection, whitened, no weight on the single step."""
    rewards = [[lmops_reward(float(r.teacher(t).detach()) - r.collected[t]) for t in range(len(r))] for r in batch]
    advantages = lmops_whitened([lmops_returns(row) for row in rewards], max_response_tokens)
    losses = []
    for response, row in zip(batch, advantages, strict=True):
        policy_gradient, single_step = _zero(response), _zero(response)
        for t in range(len(response)):
            policy_gradient = policy_gradient - clipped_ppo(row[t], response.ratio(t), 0.2)
            single_step = single_step + response.reverse_kl(t)
        losses.append((policy_gradient, single_step))
    return losses


def opd_losses(response: Response) -> Losses:
    """On-policy distillation on sampled tokens (mathematics, section 2): - sum_t sg[r_t] rho_t, no future, no single step."""
    policy_gradient = _zero(response)
    for t in range(len(response)):
        policy_gradient = policy_gradient - response.reward(t) * response.ratio(t)
    return policy_gradient, _zero(response)


def gkd_losses(response: Response) -> Losses:
    """Generalised knowledge distillation with reverse KL (mathematics, section 2): only the single-step term, without weights."""
    single_step = _zero(response)
    for t in range(len(response)):
        single_step = single_step + response.reverse_kl(t)
    return _zero(response), single_step


def exact_losses(response: Response) -> Losses:
    """The weights that make both terms together the gradient of KL(q||p) for any behavior distribution (mathematics, section 1).

    The single step at t is multiplied by W_{t-1}. The coefficient of grad log q(y_t) is - sum_{s>t} W_s r_s: each reward r_s is multiplied
    by the product of the ratios up to s.
    """
    weights = _products(response)
    policy_gradient, single_step = _zero(response), _zero(response)
    for t in range(len(response)):
        future = sum(weights[s + 1] * response.reward(s) for s in range(t + 1, len(response)))
        ratio = response.ratio(t)
        policy_gradient = policy_gradient - future * ratio / ratio.detach()
        single_step = single_step + weights[t] * response.reverse_kl(t)
    return policy_gradient, single_step


def product_losses(response: Response) -> Losses:
    """Eq. 5 as printed: both terms at t times W_t, future rewards not weighted. Not exact; it shows that the tests detect this."""
    weights = _products(response)
    policy_gradient, single_step = _zero(response), _zero(response)
    for t in range(len(response)):
        future = sum(response.reward(s) for s in range(t + 1, len(response)))
        ratio = response.ratio(t)
        policy_gradient = policy_gradient - weights[t + 1] * future * ratio / ratio.detach()
        single_step = single_step + weights[t + 1] * response.reverse_kl(t)
    return policy_gradient, single_step


def _products(response: Response) -> list[float]:
    """W_0 ... W_T."""
    weights = [1.0]
    for t in range(len(response)):
        weights.append(weights[-1] * float(response.ratio(t).detach()))
    return weights


def _zero(response: Response) -> Tensor:
    return 0.0 * response.student_logits.sum()


def reference_ratio(new: float, old: float, teacher: float, teacher_share: float) -> float:
    """LMOps: exp(new - old) w (`losses._pg_loss`) with w = exp(old - log[(1-a) exp(old) + a exp(teacher)]) (`sampler.run_sample`)."""
    w = math.exp(old) / ((1 - teacher_share) * math.exp(old) + teacher_share * math.exp(teacher))
    return math.exp(new - old) * w


# Pre-training and the whole loss


def pretrain_loss(student_logits: Tensor, tokens: Sequence[int], teacher_logits: Tensor | None = None, kd_share: float = 0.0) -> Tensor:
    """L_PT of Algorithm 1 as a sum over tokens; with `kd_share`, LMOps `losses.pt_loss`: (1 - k) cross-entropy + k soft cross-entropy."""
    total = 0.0 * student_logits.sum()
    for t, token in enumerate(tokens):
        log_q = log_softmax(student_logits[t])
        total = total - (1 - kd_share) * log_q[token]
        if kd_share:
            log_p = log_softmax(teacher_logits[t])
            total = total - kd_share * torch.stack([p.exp() * q for p, q in zip(log_p, log_q, strict=True)]).sum()
    return total


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, tokens: Sequence[int], kind: str, hard_weight: float, **switches
) -> Tensor:
    """Mathematics, section 6: h CE + (1 - h) soft, as a sum over tokens. switches: those of `divergence`."""
    total = 0.0 * student_logits.sum()
    for t, token in enumerate(tokens):
        soft = divergence(kind, student_logits[t], teacher_logits[t], **switches)
        total = total - hard_weight * log_softmax(student_logits[t])[token] + (1 - hard_weight) * soft
    return total


def total_loss(losses: Sequence[Losses], lengths: Sequence[int], pretrain: Tensor, pretrain_tokens: int, reduction: str) -> Tensor:
    """The loss of one optimizer step (mathematics, section 2): three sums, two divisors, all coefficients 1.

    The reduction `token` divides the on-policy sums by the number of response tokens; `response` (Eq. 7 as printed) by the number of
    responses.
    """
    divisor = {"token": sum(lengths), "response": len(lengths)}[reduction]
    on_policy = sum(policy_gradient + single_step for policy_gradient, single_step in losses)
    return on_policy / divisor + pretrain / pretrain_tokens
