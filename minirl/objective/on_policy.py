"""The on-policy objective of one micro-batch: credit and losses put together as the config's switches say.

The presets are points of this space; their definitions stand in `minirl.config.objective.PRESETS` and, term by term, in `credit` and
`losses`.
"""

from dataclasses import dataclass

from torch import Tensor

from minirl.config.objective import ObjectiveConfig
from minirl.objective.credit import exact_returns, returns, rewards, weights_before
from minirl.objective.losses import importance_ratios, policy_gradient_loss, single_step_loss


@dataclass(frozen=True)
class OnPolicyLosses:
    """Sums over the micro-batch's response tokens, coefficients included, gradient attached."""

    policy_gradient: Tensor
    single_step: Tensor


def advantages_of(config: ObjectiveConfig, *, student_logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor) -> Tensor:
    """A_t [B, T] before whitening, from the student's log-probs: the current ones (`live`) or those at collection (`frozen`)."""
    reward = rewards(teacher_logprobs, student_logprobs, mask, scale=config.reward_scale, clip=config.reward_clip)
    return returns(reward, mask, kind=config.returns, discount=config.discount, length_normalization=config.length_normalization)


def on_policy_losses(
    config: ObjectiveConfig,
    *,
    student_logprobs: Tensor,
    behavior_logprobs: Tensor,
    teacher_logprobs: Tensor,
    reverse_kl: Tensor,
    mask: Tensor,
    truncated: Tensor | None = None,
    advantages: Tensor | None = None,
) -> OnPolicyLosses:
    """All grids [B, T]; truncated [B] bool, needed by `truncated: drop`; advantages given for `credit: frozen`, else computed here."""
    mask = loss_mask(config, mask, truncated)
    ratios = importance_ratios(student_logprobs, behavior_logprobs, mask).detach()
    if config.importance == "exact":
        before = weights_before(ratios, mask)
        advantages = before * exact_returns(rewards(teacher_logprobs, student_logprobs, mask), ratios, mask)
        weights = before
    else:
        if advantages is None:
            advantages = advantages_of(config, student_logprobs=student_logprobs, teacher_logprobs=teacher_logprobs, mask=mask)
        weights = ratios if config.single_step_weight == "importance" else None
    policy_gradient = policy_gradient_loss(
        student_logprobs, behavior_logprobs, advantages, mask, ratio_clip=config.ratio_clip, clip_form=config.clip_form
    )
    single_step = single_step_loss(reverse_kl, mask, weights)
    return OnPolicyLosses(config.policy_gradient_coefficient * policy_gradient, config.single_step_coefficient * single_step)


def loss_mask(config: ObjectiveConfig, mask: Tensor, truncated: Tensor | None) -> Tensor:
    """`truncated: drop` takes responses cut at the limit out of the loss, which biases it (`mathematics.md`, section 1)."""
    if config.truncated == "keep":
        return mask
    if truncated is None:
        raise ValueError("truncated: drop needs to know which responses were cut")
    return mask * (~truncated).to(mask.dtype)[:, None]
