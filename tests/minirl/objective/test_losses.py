"""Each loss: by hand, against the oracles, without effect of masked tokens, for any padding and splitting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minirl.objective.losses import importance_ratios, policy_gradient_loss, pretrain_loss, single_step_loss, soft_target_loss
from minirl.objective.mixture import mixture_logprobs
from tests import oracles

NAN = float("nan")
LENGTHS = (4, 1, 3)


class Grids:
    """Random left-aligned grids [B, T] of one batch with responses of the given lengths."""

    def __init__(self, lengths=LENGTHS, padding=0, fill=0.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.lengths, self.width = lengths, max(lengths) + padding
        self.mask = torch.arange(self.width)[None] < torch.tensor(lengths)[:, None]

        def draw() -> Tensor:
            values = torch.full((len(lengths), self.width), fill, dtype=torch.float64)
            for i, length in enumerate(lengths):
                values[i, :length] = torch.randn(length, dtype=torch.float64, generator=generator)
            return values

        self.student, self.behavior, self.advantages = draw().requires_grad_(), draw(), draw()
        self.kl, self.weights, self.soft = draw().requires_grad_(), draw().exp(), draw().requires_grad_()

    def losses(self, rows=slice(None)) -> dict[str, tuple[Tensor, Tensor]]:
        """Every loss by name, with the leaf tensor that receives its gradient."""
        mask, student, behavior, advantages = self.mask[rows], self.student[rows], self.behavior[rows], self.advantages[rows]
        losses = {
            f"policy_gradient {form} {clip}": policy_gradient_loss(student, behavior, advantages, mask, ratio_clip=clip, clip_form=form)
            for form in ("outside", "ppo")
            for clip in (None, 0.2)
        }
        losses = {name: (loss, self.student) for name, loss in losses.items()}
        losses["single_step"] = single_step_loss(self.kl[rows], mask), self.kl
        losses["single_step weighted"] = single_step_loss(self.kl[rows], mask, self.weights[rows]), self.kl
        losses["pretrain"] = pretrain_loss(student, mask), self.student
        losses["pretrain soft"] = pretrain_loss(student, mask, soft_cross_entropy=self.soft[rows], kd_share=0.5), self.soft
        losses["soft target"] = soft_target_loss(student, self.kl[rows], mask, hard_weight=0.3), self.kl
        losses["soft target, hard part"] = soft_target_loss(student, self.kl[rows], mask, hard_weight=0.3), self.student
        return losses


NAMES = list(Grids().losses())


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


# Properties of every loss


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", [0.0, 50.0, NAN])
def test_masked_tokens_give_exactly_no_gradient_and_no_value(name, fill):
    clean, filled = (Grids(padding=2, fill=f).losses()[name] for f in (0.0, fill))
    mask = Grids(padding=2).mask
    assert filled[0].item() == clean[0].item()
    derivative = gradient(*filled)
    assert (derivative[~mask] == 0).all()
    assert torch.equal(derivative, gradient(*clean))


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name):
    narrow, wide = (Grids(padding=p, fill=3.0).losses()[name] for p in (0, 5))
    assert narrow[0].item() == pytest.approx(wide[0].item(), rel=1e-14)
    assert torch.equal(gradient(*narrow), gradient(*wide)[:, : max(LENGTHS)])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_sum_of_its_parts(name):
    grids = Grids()
    whole, leaf = grids.losses()[name]
    parts = sum(grids.losses(rows)[name][0] for rows in ([0], slice(1, 3)))
    assert whole.item() == pytest.approx(parts.item(), rel=1e-14)
    torch.testing.assert_close(gradient(whole, leaf), gradient(parts, leaf), rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_of_numbers_equals_a_mask_of_bools(name, dtype):
    grids = Grids(padding=1, fill=2.0)
    with_bools = grids.losses()[name][0].item()
    grids.mask = grids.mask.to(dtype)
    assert grids.losses()[name][0].item() == with_bools


# Policy gradient

# (clip form, ratio, advantage) -> (surrogate, its derivative by log q), with ratio_clip 0.2
CLIPPED = [
    ("outside", 1.5, 1.0, 1.2, 0.0),  # the two forms agree for A > 0 ...
    ("ppo", 1.5, 1.0, 1.2, 0.0),
    ("outside", 0.5, 1.0, 0.5, 0.5),
    ("ppo", 0.5, 1.0, 0.5, 0.5),
    ("outside", 1.5, -1.0, -1.2, 0.0),  # ... and differ for A < 0: outside clips only ratios above 1.2,
    ("ppo", 1.5, -1.0, -1.5, -1.5),
    ("outside", 0.5, -1.0, -0.5, -0.5),  # ppo only ratios below 0.8
    ("ppo", 0.5, -1.0, -0.8, 0.0),
    ("outside", 1.1, -2.0, -2.2, -2.2),  # inside the range nothing is clipped
    ("ppo", 1.1, -2.0, -2.2, -2.2),
]


@pytest.mark.parametrize("clip_form, ratio, advantage, surrogate, slope", CLIPPED)
def test_clip_forms_by_hand(clip_form, ratio, advantage, surrogate, slope):
    student = torch.tensor([[math.log(ratio) - 0.7]], dtype=torch.float64, requires_grad=True)
    behavior, mask = torch.full((1, 1), -0.7, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    loss = policy_gradient_loss(student, behavior, advantage * mask, mask, ratio_clip=0.2, clip_form=clip_form)
    assert loss.item() == pytest.approx(-surrogate)
    assert gradient(loss, student).item() == pytest.approx(-slope)


def test_policy_gradient_on_policy_by_hand():
    """With rho = 1 the value is - sum A and the gradient - A."""
    student = torch.tensor([[-0.5, -1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[-3.0, -4.0, 0.0]])
    loss = policy_gradient_loss(student, student.detach(), advantages, torch.ones(1, 3), ratio_clip=0.2)
    assert loss.item() == 7.0
    assert gradient(loss, student).tolist() == [[3.0, 4.0, 0.0]]


def test_advantages_are_constants():
    """Without detaching the rewards, the teacher's part of the gradient would vanish in expectation (k1 as a loss)."""
    student = torch.tensor([[-0.5, -1.0]], requires_grad=True)
    loss = policy_gradient_loss(student, student.detach(), -2.0 * student, torch.ones(1, 2))
    assert gradient(loss, student).tolist() == [[-1.0, -2.0]]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.sampled_from(["outside", "ppo"]))
def test_policy_gradient_agrees_with_the_oracle(seed, lengths, form):
    grids = Grids(lengths, padding=1, fill=NAN, seed=seed)
    clipped = {"outside": oracles.clipped_outside, "ppo": oracles.clipped_ppo}[form]
    terms = [
        clipped(float(grids.advantages[i, t]), (grids.student[i, t] - grids.behavior[i, t]).exp(), 0.2)
        for i, length in enumerate(lengths)
        for t in range(length)
    ]
    loss, oracle = grids.losses()[f"policy_gradient {form} 0.2"][0], 0.0 * grids.student[grids.mask].sum() - torch.stack(terms).sum()
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient(loss, grids.student), gradient(oracle, grids.student) * grids.mask, rtol=1e-12, atol=1e-12)


# Importance ratios


def test_ratios_are_bounded_by_the_mixture():
    """q = p gives 1; q much larger than p gives 1 / (1 - a) = 1.25; p = 2.25 q gives 0.8, where ppo starts to clip."""
    student = torch.log(torch.tensor([[0.3, 0.9, 0.2]], dtype=torch.float64))
    teacher = torch.log(torch.tensor([[0.3, 1e-30, 0.45]], dtype=torch.float64))
    ratios = importance_ratios(student, mixture_logprobs(student, teacher, 0.2), torch.ones(1, 3))
    assert ratios[0].tolist() == pytest.approx([1.0, 1.25, 0.8], rel=1e-12)


@given(st.floats(-60, 0), st.floats(-60, 0), st.floats(0, 0.95))
def test_no_ratio_to_the_current_mixture_exceeds_the_bound(student, teacher, teacher_share):
    student, teacher = (torch.tensor([[value]], dtype=torch.float64) for value in (student, teacher))
    ratio = float(importance_ratios(student, mixture_logprobs(student, teacher, teacher_share), torch.ones(1, 1)))
    assert 0 < ratio <= (1 + 1e-12) / (1 - teacher_share)


# Single step


def test_single_step_by_hand():
    kl = torch.tensor([[0.5, 2.0, 9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0]])
    weights = torch.tensor([[0.8, 1.25, 9.0]], requires_grad=True)
    assert single_step_loss(kl, mask).item() == 2.5
    loss = single_step_loss(kl, mask, weights)
    assert loss.item() == pytest.approx(0.4 + 2.5)
    assert gradient(loss, kl)[0].tolist() == pytest.approx([0.8, 1.25, 0.0])


def test_single_step_weights_are_constants():
    kl, weights = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    assert torch.autograd.grad(single_step_loss(kl, torch.ones(1, 2), weights), weights, allow_unused=True) == (None,)


@pytest.mark.parametrize("weighted", [False, True])
def test_single_step_agrees_with_the_oracle(weighted):
    grids = Grids(padding=2, fill=NAN)
    oracle = sum(float(grids.weights[i, t]) ** weighted * grids.kl[i, t].item() for i, length in enumerate(LENGTHS) for t in range(length))
    assert grids.losses()["single_step weighted" if weighted else "single_step"][0].item() == pytest.approx(oracle, rel=1e-13)


# Pre-training


def test_pretrain_by_hand():
    """-log q sums to 1 + 3 = 4, the soft cross-entropy to 2 + 5 = 7; with a quarter of it, 3 + 1.75."""
    logprobs, soft = torch.tensor([[-1.0, -3.0, -9.0]]), torch.tensor([[2.0, 5.0, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    assert float(pretrain_loss(logprobs, mask)) == 4.0
    assert float(pretrain_loss(logprobs, mask, soft_cross_entropy=soft, kd_share=0.25)) == 4.75
    with pytest.raises(ValueError, match="needs the soft cross-entropy"):
        pretrain_loss(logprobs, mask, kd_share=0.25)


@pytest.mark.parametrize("kd_share", [0.0, 0.5, 1.0])
def test_pretrain_agrees_with_the_oracle(kd_share):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    teacher, tokens = torch.randn(5, 6, dtype=torch.float64, generator=generator), [3, 0, 5, 5, 1]
    log_q, p = student.log_softmax(-1), teacher.softmax(-1)
    logprobs, soft = log_q[range(5), tokens], -(p * log_q).sum(-1)
    loss = pretrain_loss(logprobs[None], torch.ones(1, 5), soft_cross_entropy=soft[None], kd_share=kd_share)
    oracle = oracles.pretrain_loss(student, tokens, teacher, kd_share)
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-12)
    torch.testing.assert_close(gradient(loss, student), gradient(oracle, student), rtol=1e-12, atol=1e-12)


# Soft targets


def test_soft_targets_by_hand():
    """-log q sums to 1 + 3 = 4, the divergences to 2 + 5 = 7; with hard_weight 1/4, 1 + 5.25."""
    logprobs, divergence = torch.tensor([[-1.0, -3.0, -9.0]]), torch.tensor([[2.0, 5.0, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    for hard_weight, expected in ((0.25, 6.25), (0.0, 7.0), (1.0, 4.0)):
        assert float(soft_target_loss(logprobs, divergence, mask, hard_weight=hard_weight)) == expected
