"""Losses of one micro-batch of an optimizer step, and the sums that are logged.

Every loss is a sum over tokens, divided by a count of the whole step over all ranks and micro-batches: see `LossDivisors`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minirl.config.objective import DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.model.token_diagnostics import SequenceDiagnostics, TokenDiagnostics
from minirl.objective.credit import whiten
from minirl.objective.divergence import TokenStatistics
from minirl.objective.losses import pretrain_loss, soft_target_loss
from minirl.objective.mixture import mixture_logprobs
from minirl.objective.on_policy import advantages_of, loss_mask, on_policy_losses
from minirl.training.inputs import Inputs, OnPolicyItem, SupervisedItem


@dataclass(frozen=True)
class LossDivisors:
    """Counts of one optimizer step that divide its losses.

    on_policy: response tokens or responses. supervised: target tokens. whitening: mean and variance of the advantages.
    """

    on_policy: float = 1.0
    supervised: float = 1.0
    whitening: tuple[float, float] | None = None


@dataclass(frozen=True)
class UpdateStep:
    """The driver's settings for one optimizer step: its iteration and update numbers, learning rate and divisors.

    check_behavior: the student has not changed since it sampled, so that its mixture must reproduce the behavior log-probs.
    teacher_share: of the mixture that sampled the on-policy items.
    """

    iteration: int
    update: int
    learning_rate: float
    divisors: LossDivisors
    check_behavior: bool = False
    teacher_share: float = 0.0


# A forward pass of the student module: (micro-batch, teacher_hidden, temperature, teacher_expectations, divergence, top_k).
Student = Callable[..., TokenStatistics | TokenDiagnostics]
Sums = dict[str, Tensor]


def forward(
    student: Student,
    items: Sequence[OnPolicyItem | SupervisedItem],
    device: str,
    temperature: float,
    *,
    teacher_expectations: bool = True,
    divergence: DivergenceConfig | None = None,
) -> tuple[Inputs, TokenStatistics]:
    """The student's forward pass over one micro-batch: the micro-batch on the device, and the statistics of its target tokens."""
    inputs = Inputs.of(items, device)
    return inputs, student(inputs.batch, inputs.teacher_hidden, temperature, teacher_expectations, divergence)


def diagnose(
    student: Student, items: Sequence[OnPolicyItem | SupervisedItem], device: str, top_k: int, temperature: float = 1.0
) -> tuple[list[SequenceDiagnostics], Sums]:
    """Diagnostics of each sequence's targets, and the teacher's checksum. Every item needs scores. No gradient.

    temperature: of the diagnostics and of the scores.
    """
    inputs = Inputs.of(items, device)
    if not items:
        student(inputs.batch)
        return [], {}
    tokens = student(inputs.batch, inputs.teacher_hidden, temperature, top_k=top_k)
    return tokens.split(inputs.batch.counts.tolist()), inputs.gap(tokens)


def on_policy_loss(
    student: Student,
    items: list[OnPolicyItem],
    config: ObjectiveConfig,
    divisors: LossDivisors,
    *,
    device: str,
    temperature: float,
    teacher_share: float,
) -> tuple[Tensor, Sums]:
    """The two on-policy losses of one micro-batch, added up and divided by the step's count, and the sums to log."""
    inputs, tokens = forward(student, items, device, temperature, teacher_expectations=False)
    if not items:
        return tokens.student_logprobs.sum(), {}
    batch, mask, advantages = inputs.batch, inputs.batch.mask(), None
    if divisors.whitening is not None or inputs.advantages is not None:
        advantages = batch.grid(inputs.advantages)
        if divisors.whitening is not None:
            advantages = whiten(advantages, mask, mean=divisors.whitening[0], variance=divisors.whitening[1])
    losses = on_policy_losses(
        config,
        student_logprobs=batch.grid(tokens.student_logprobs),
        behavior_logprobs=batch.grid(inputs.behavior_logprobs),
        teacher_logprobs=batch.grid(tokens.teacher_logprobs),
        reverse_kl=batch.grid(tokens.reverse_kl),
        mask=mask,
        truncated=inputs.truncated > 0,
        advantages=advantages,
    )
    with torch.no_grad():
        ratios = (tokens.student_logprobs - inputs.behavior_logprobs).exp()
        mixture = mixture_logprobs(tokens.student_logprobs, tokens.teacher_logprobs, teacher_share)
        clip = config.ratio_clip or float("inf")
        sums = {
            "policy_gradient": losses.policy_gradient.detach() / divisors.on_policy,
            "single_step": losses.single_step.detach() / divisors.on_policy,
            "reverse_kl": tokens.reverse_kl.sum(),
            "reward": (tokens.teacher_logprobs - tokens.student_logprobs).sum(),
            "importance_ratio": ratios.sum(),
            "clipped": ((ratios - 1).abs() > clip).sum(),
            "behavior_gap": (mixture - inputs.behavior_logprobs).abs().sum(),
            "response_tokens": batch.total_targets,
        }
    return (losses.policy_gradient + losses.single_step) / divisors.on_policy, sums | inputs.gap(tokens)


def supervised_loss(
    student: Student, items: list[SupervisedItem], divisors: LossDivisors, *, device: str, coefficient: float = 1.0, kd_share: float = 0.0
) -> tuple[Tensor, Sums]:
    """The language-model loss of one micro-batch (SFT, or the pre-training loss), divided by the step's count, and the sums to log.

    Items with scores add the undivided sums of the KLs between student and teacher over the targets: `supervised_reverse_kl` and
    `supervised_forward_kl`. Items without scores have the cross-entropy of their tokens alone.
    """
    inputs, tokens = forward(student, items, device, 1.0)
    mask = torch.ones_like(tokens.student_logprobs)
    kd_share = kd_share if items and items[0].scores is not None else 0.0
    loss = pretrain_loss(tokens.student_logprobs, mask, soft_cross_entropy=tokens.soft_cross_entropy, kd_share=kd_share)
    sums = {"supervised": loss.detach() / divisors.supervised, "supervised_tokens": inputs.batch.total_targets}
    if items and items[0].scores is not None:
        kls = {"supervised_reverse_kl": tokens.reverse_kl, "supervised_forward_kl": tokens.forward_kl}
        sums |= {name: values.detach().sum() for name, values in kls.items()}
        sums |= inputs.gap(tokens)
    return coefficient * loss / divisors.supervised, sums


def soft_update_loss(
    student: Student,
    items: Sequence[OnPolicyItem | SupervisedItem],
    config: SoftTargetsConfig,
    divisor: float,
    *,
    device: str,
    temperature: float = 1.0,
) -> tuple[Tensor, Sums]:
    """The soft-target loss of one micro-batch of gold or sampled responses, divided by the step's count, and the sums to log.

    Items without scores have the cross-entropy of their tokens alone. temperature: of the scores and of the cross-entropy; the divergence
    has its own. The sums: `supervised`, the divided loss; `divergence` and `hard`, the two terms undivided and unweighted;
    `supervised_tokens`.
    """
    inputs, tokens = forward(student, items, device, temperature, divergence=config.divergence)
    mask = torch.ones_like(tokens.student_logprobs)
    hard = pretrain_loss(tokens.student_logprobs, mask)
    sums = {"hard": hard.detach(), "supervised_tokens": inputs.batch.total_targets}
    loss = hard
    if tokens.divergence is not None:
        loss = soft_target_loss(tokens.student_logprobs, tokens.divergence, mask, hard_weight=config.hard_weight)
        sums |= {"divergence": tokens.divergence.detach().sum()} | inputs.gap(tokens)
    return loss / divisor, sums | {"supervised": loss.detach() / divisor}


@torch.no_grad()
def frozen_advantages(
    student: Student, items: list[OnPolicyItem], config: ObjectiveConfig, *, device: str, temperature: float
) -> tuple[list[np.ndarray], Sums]:
    """`credit: frozen`: each rollout's advantages [T] before whitening, from the student as it is before the iteration's updates."""
    inputs, tokens = forward(student, items, device, temperature, teacher_expectations=False)
    if not items:
        return [], {}
    batch, sums = inputs.batch, inputs.gap(tokens)
    mask = loss_mask(config, batch.mask().to(torch.float32), inputs.truncated > 0)
    grid = advantages_of(
        config, student_logprobs=batch.grid(tokens.student_logprobs), teacher_logprobs=batch.grid(tokens.teacher_logprobs), mask=mask
    )
    return [row[:count] for row, count in zip(grid.cpu().numpy(), batch.counts, strict=True)], sums


def add_sums(total: Sums, sums: Sums) -> None:
    """Add `sums` to `total` in place. Names that end in `_max` keep the larger value."""
    for name, value in sums.items():
        if name not in total:
            total[name] = value
        else:
            total[name] = torch.maximum(total[name], value) if name.endswith("_max") else total[name] + value
