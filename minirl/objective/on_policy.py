"""The on-policy objective of one micro-batch: credit and losses combined by the switches of the config.

A preset is one setting of these switches. `minirl.config.objective.PRESETS` defines the presets; `credit` and `losses` define the terms.
"""

from dataclasses import dataclass

from torch import Tensor

from minirl.config.objective import ObjectiveConfig
from minirl.objective.credit import exact_returns, returns, rewards, weights_before
from minirl.objective.losses import importance_ratios, policy_gradient_loss, single_step_loss


@dataclass(frozen=True)
class OnPolicyLosses:
    """Sums over the response tokens of the micro-batch, multiplied by their coefficients; they carry gradient."""

    policy_gradient: Tensor
    single_step: Tensor


def advantages_of(config: ObjectiveConfig, *, student_logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor) -> Tensor:
    """A_t [B, T] before whitening. student_logprobs: current ones for `credit: live`, those at collection for `credit: frozen`."""
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
    """Both losses from grids [B, T]. truncated: bool [B], required by `truncated: drop`. advantages: [B, T], given for `credit: frozen`;
    None: computed here.
    """
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
    """The mask [B, T] of the tokens in the loss. `truncated: drop` removes responses that were cut at the limit, which biases the
    loss (`docs/mathematics.md`, section 1). Raises ValueError if it is set and `truncated` is missing.
    """
    if config.truncated == "keep":
        return mask
    if truncated is None:
        raise ValueError("truncated: drop needs to know which responses were cut: pass truncated, bool [B]")
    return mask * (~truncated).to(mask.dtype)[:, None]
