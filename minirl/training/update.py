"""Losses of one micro-batch of an optimizer step, the items that go into it, and the sums that are logged.

Every loss is a sum over tokens, divided by a count of the whole step over all ranks and micro-batches: see `LossDivisors`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minirl.config.objective import DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.model.microbatch import MicroBatch, make_microbatch
from minirl.model.teacher_ensemble import EnsembleStates, active_teachers
from minirl.model.token_diagnostics import SequenceDiagnostics, TokenDiagnostics
from minirl.objective.credit import whiten
from minirl.objective.divergence import TokenStatistics
from minirl.objective.losses import importance_ratios, pretrain_loss, soft_target_loss
from minirl.objective.mixture import mixture_logprobs
from minirl.objective.on_policy import advantages_of, loss_mask, on_policy_losses
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence, tensor_from_numpy


@dataclass(frozen=True)
class OnPolicyItem:
    """A rollout, the teacher's scores and, with `credit: frozen`, its advantages before whitening, float32 [T]."""

    rollout: Rollout
    scores: TeacherScores | EnsembleScores
    advantages: np.ndarray | None = None

    @property
    def sequence(self) -> TokenSequence:
        return self.rollout.sequence


@dataclass(frozen=True)
class SupervisedItem:
    """A sequence with fixed targets: a gold response or plain text. scores: only where the loss needs the teacher's distribution."""

    sequence: TokenSequence
    scores: TeacherScores | EnsembleScores | None = None


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
) -> tuple[MicroBatch, TokenStatistics]:
    """The student's forward pass over one micro-batch: the micro-batch, and the statistics of its target tokens."""
    batch, hidden = _inputs(items, device)
    return batch, student(batch, hidden, temperature, teacher_expectations, divergence)


def diagnose(
    student: Student, items: Sequence[OnPolicyItem | SupervisedItem], device: str, top_k: int, temperature: float = 1.0
) -> tuple[list[SequenceDiagnostics], Sums]:
    """Diagnostics of each sequence's targets, and the teacher's checksum. Every item needs scores. No gradient.

    temperature: of the diagnostics and of the scores.
    """
    batch, hidden = _inputs(items, device)
    if not items:
        student(batch)
        return [], {}
    tokens = student(batch, hidden, temperature, top_k=top_k)
    return tokens.split(batch.counts.tolist()), teacher_gap(tokens, [item.scores for item in items], device)


def _inputs(items: Sequence[OnPolicyItem | SupervisedItem], device: str) -> tuple[MicroBatch, Tensor | EnsembleStates | None]:
    """The micro-batch and the teacher's hidden states, None where the items have no scores."""
    hidden = None
    if items and isinstance(items[0].scores, EnsembleScores):
        hidden = EnsembleStates.from_scores([item.scores for item in items], device)
    elif items and items[0].scores is not None:
        hidden = torch.cat([tensor_from_numpy(item.scores.hidden) for item in items]).to(device)
    return make_microbatch([item.sequence for item in items]).to(device), hidden


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
    batch, tokens = forward(student, items, device, temperature, teacher_expectations=False)
    if not items:
        return tokens.student_logprobs.sum(), {}
    mask = batch.mask()
    behavior = batch.grid(_concatenated([i.rollout.behavior_logprobs for i in items], device))
    truncated = torch.tensor([i.rollout.truncated for i in items], device=device)
    advantages = None
    if divisors.whitening is not None or items[0].advantages is not None:
        advantages = batch.grid(_concatenated([i.advantages for i in items], device))
        if divisors.whitening is not None:
            advantages = whiten(advantages, mask, mean=divisors.whitening[0], variance=divisors.whitening[1])
    student_logprobs, teacher_logprobs = batch.grid(tokens.student_logprobs), batch.grid(tokens.teacher_logprobs)
    losses = on_policy_losses(
        config,
        student_logprobs=student_logprobs,
        behavior_logprobs=behavior,
        teacher_logprobs=teacher_logprobs,
        reverse_kl=batch.grid(tokens.reverse_kl),
        mask=mask,
        truncated=truncated,
        advantages=advantages,
    )
    with torch.no_grad():
        ratios = importance_ratios(student_logprobs, behavior, mask)[mask]
        mixture = mixture_logprobs(student_logprobs, teacher_logprobs, teacher_share)
        clip = config.ratio_clip or float("inf")
        sums = {
            "policy_gradient": losses.policy_gradient.detach() / divisors.on_policy,
            "single_step": losses.single_step.detach() / divisors.on_policy,
            "reverse_kl": tokens.reverse_kl.sum(),
            "reward": (teacher_logprobs - student_logprobs)[mask].sum(),
            "importance_ratio": ratios.sum(),
            "clipped": ((ratios - 1).abs() > clip).sum(),
            "behavior_gap": (mixture - behavior)[mask].abs().sum(),
            "response_tokens": mask.sum(),
        }
        sums |= teacher_gap(tokens, [i.scores for i in items], device)
    return (losses.policy_gradient + losses.single_step) / divisors.on_policy, sums


def supervised_loss(
    student: Student, items: list[SupervisedItem], divisors: LossDivisors, *, device: str, coefficient: float = 1.0, kd_share: float = 0.0
) -> tuple[Tensor, Sums]:
    """The language-model loss of one micro-batch (SFT, or the pre-training loss), divided by the step's count, and the sums to log.

    Items with scores add the undivided sums of the KLs between student and teacher over the targets: `supervised_reverse_kl` and
    `supervised_forward_kl`. Items without scores have the cross-entropy of their tokens alone.
    """
    batch, tokens = forward(student, items, device, 1.0)
    mask = torch.ones_like(tokens.student_logprobs)
    kd_share = kd_share if items and items[0].scores is not None else 0.0
    loss = pretrain_loss(tokens.student_logprobs, mask, soft_cross_entropy=tokens.soft_cross_entropy, kd_share=kd_share)
    sums = {"supervised": loss.detach() / divisors.supervised, "supervised_tokens": batch.counts.sum()}
    if items and items[0].scores is not None:
        kls = {"supervised_reverse_kl": tokens.reverse_kl, "supervised_forward_kl": tokens.forward_kl}
        sums |= {name: values.detach().sum() for name, values in kls.items()}
        sums |= teacher_gap(tokens, [item.scores for item in items], device)
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
    batch, tokens = forward(student, items, device, temperature, divergence=config.divergence)
    mask = torch.ones_like(tokens.student_logprobs)
    hard = pretrain_loss(tokens.student_logprobs, mask)
    sums = {"hard": hard.detach(), "supervised_tokens": batch.counts.sum()}
    loss = hard
    if tokens.divergence is not None:
        loss = soft_target_loss(tokens.student_logprobs, tokens.divergence, mask, hard_weight=config.hard_weight)
        sums |= {"divergence": tokens.divergence.detach().sum()} | teacher_gap(tokens, [item.scores for item in items], device)
    return loss / divisor, sums | {"supervised": loss.detach() / divisor}


@torch.no_grad()
def frozen_advantages(
    student: Student, items: list[OnPolicyItem], config: ObjectiveConfig, *, device: str, temperature: float
) -> tuple[list[np.ndarray], Sums]:
    """`credit: frozen`: each rollout's advantages [T] before whitening, from the student as it is before the iteration's updates."""
    batch, tokens = forward(student, items, device, temperature, teacher_expectations=False)
    if not items:
        return [], {}
    truncated = torch.tensor([i.rollout.truncated for i in items], device=device)
    mask = loss_mask(config, batch.mask().to(torch.float32), truncated)
    grid = advantages_of(
        config, student_logprobs=batch.grid(tokens.student_logprobs), teacher_logprobs=batch.grid(tokens.teacher_logprobs), mask=mask
    )
    advantages = [row[:count].cpu().numpy() for row, count in zip(grid, batch.counts.tolist(), strict=True)]
    return advantages, teacher_gap(tokens, [i.scores for i in items], device)


def teacher_gap(tokens: TokenStatistics | TokenDiagnostics, scores: Sequence[TeacherScores | EnsembleScores], device: str) -> Sums:
    """The checksum of the teacher that is rebuilt from hidden states.

    It is the largest difference from the values that the teacher computed, relative to their size. With several teachers it is the largest
    over all teachers.
    """
    if not isinstance(scores[0], EnsembleScores):
        return {"teacher_gap_max": _gap(tokens.teacher_logprobs, tokens.teacher_log_normalizers, scores, device)}
    gaps, active = [], torch.from_numpy(active_teachers(scores)).to(device)
    for k, member in enumerate(zip(*(s.scores for s in scores), strict=True)):
        member_scores, rows = [s for s in member if s is not None], active[:, k]
        if member_scores:
            gaps.append(_gap(tokens.member_logprobs[rows, k], tokens.member_log_normalizers[rows, k], member_scores, device))
    return {"teacher_gap_max": torch.stack(gaps).max()}


def _gap(logprobs: Tensor, log_normalizers: Tensor, scores: Sequence[TeacherScores], device: str) -> Tensor:
    """The gap of one teacher. Tokens for which it sent no log-normalizer (NaN) do not count.

    The log-normalizer alone would not show permuted rows of the head, so the log-prob of the sampled token is compared too.
    """
    sent = _concatenated([s.log_normalizers for s in scores], device)
    size = sent.abs().clamp(min=1.0)
    normalizer = (log_normalizers - sent).abs() / size
    logprob = (logprobs - _concatenated([s.logprobs for s in scores], device)).abs() / size
    return torch.maximum(normalizer, logprob).masked_fill(sent.isnan(), 0.0).max()


def add_sums(total: Sums, sums: Sums) -> None:
    """Add `sums` to `total` in place. Names that end in `_max` keep the larger value."""
    for name, value in sums.items():
        if name not in total:
            total[name] = value
        else:
            total[name] = torch.maximum(total[name], value) if name.endswith("_max") else total[name] + value


def _concatenated(arrays: list[np.ndarray], device: str) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)
