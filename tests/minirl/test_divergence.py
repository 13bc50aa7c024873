"""Full-vocabulary divergences: by hand, and against the loop over the vocabulary."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minirl.divergence import TokenStatistics, forward_kl, reverse_kl, token_statistics
from tests import oracles

TOKENS, WIDTH, VOCABULARY = 7, 5, 11


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Rows of logits


def test_reverse_kl_is_of_the_student_against_the_teacher():
    """q = (1/2, 1/2), p = (1/4, 3/4): KL(q||p) = 1/2 ln 2 + 1/2 ln 2/3, KL(p||q) = 1/4 ln 1/2 + 3/4 ln 3/2."""
    student, teacher = logs(0.5, 0.5), logs(0.25, 0.75)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert forward_kl(student, teacher).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_reverse_kl_flees_what_the_teacher_rules_out():
    """Mode seeking: a student that leaves out a mode is cheap, one that puts mass where the teacher has none is dear."""
    teacher, one_mode, everywhere = logs(0.4995, 0.001, 0.4995), logs(0.998, 0.001, 0.001), logs(0.34, 0.32, 0.34)
    assert reverse_kl(one_mode, teacher) < reverse_kl(everywhere, teacher)
    assert forward_kl(one_mode, teacher) > forward_kl(everywhere, teacher)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.1, 8))
def test_rows_agree_with_the_oracle(seed, spread):
    student, teacher = (spread * random(2, 6, seed=seed + i) for i in (0, 20_000))
    student.requires_grad_()
    for function, oracle in ((reverse_kl, oracles.reverse_kl), (forward_kl, oracles.forward_kl)):
        value = function(student, teacher)
        expected = torch.stack([oracle(q, p) for q, p in zip(student, teacher, strict=True)])
        torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in (value, expected)), rtol=1e-9, atol=1e-11)


def test_the_gradient_runs_through_both_occurrences_of_the_student():
    """d KL / d logit_v = q_v (log q_v - log p_v - KL): nought where the two agree, else of sum nought."""
    student, teacher = random(1, 6, seed=1).requires_grad_(), random(1, 6, seed=2)
    kl = reverse_kl(student, teacher)
    q = student.softmax(-1)
    expected = q * (student.log_softmax(-1) - teacher.log_softmax(-1) - kl)
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), student, retain_graph=True)[0], expected)
    alike = torch.autograd.grad(reverse_kl(student, student.detach()).sum(), student)[0]
    assert alike.abs().max() < 1e-15


def test_top_k_is_no_substitute():
    """p = (.6, .39, .01), q = (.5, .3, .2): the sum over the teacher's top 2 is negative and its gradient raises the bad token."""
    teacher, student = logs(0.6, 0.39, 0.01), logs(0.5, 0.3, 0.2).requires_grad_()
    full = reverse_kl(student, teacher)
    terms = student.log_softmax(-1).exp() * (student.log_softmax(-1) - teacher)
    partial = terms[:, :2].sum()
    assert full.item() == pytest.approx(0.429, abs=5e-4)
    assert partial.item() == pytest.approx(-0.170, abs=5e-4)
    by_full, by_partial = (torch.autograd.grad(loss.sum(), student, retain_graph=True)[0][0, 2].item() for loss in (full, partial))
    assert by_full > 0 > by_partial  # descent lowers the bad token's logit by the first, raises it by the second


def test_a_vocabulary_padded_head_is_the_sliced_one():
    """The teacher's head has 3 rows of padding with high logits: cut off, what is left is as if renormalised (spec 7.2, 10)."""
    head, hidden, student = random(VOCABULARY + 3, WIDTH, seed=1), random(TOKENS, WIDTH, seed=2), random(TOKENS, VOCABULARY, seed=3)
    head[VOCABULARY:] *= 5
    targets = torch.arange(TOKENS)
    sliced = token_statistics(student, targets, hidden @ head[:VOCABULARY].T)
    padded = (hidden @ head.T).softmax(-1)[:, :VOCABULARY]
    renormalised = padded / padded.sum(-1, keepdim=True)
    assert (padded.sum(-1) < 0.9).any(), "the padding must have had some mass, or there is nothing to see"
    from_padded = token_statistics(student, targets, renormalised.log())
    for name in ("reverse_kl", "forward_kl", "soft_cross_entropy", "teacher_logprobs"):
        torch.testing.assert_close(getattr(sliced, name), getattr(from_padded, name))


# Statistics of tokens


def test_token_statistics_agree_with_the_oracle():
    student, teacher = 2 * random(TOKENS, VOCABULARY, seed=1), 2 * random(TOKENS, VOCABULARY, seed=2)
    targets = [3, 0, 10, 5, 5, 1, 7]
    statistics = token_statistics(student, torch.tensor(targets), teacher)
    for t, target in enumerate(targets):
        log_q, log_p = oracles.log_softmax(student[t]), oracles.log_softmax(teacher[t])
        expected = TokenStatistics(
            student_logprobs=log_q[target],
            reverse_kl=oracles.reverse_kl(student[t], teacher[t]),
            forward_kl=oracles.forward_kl(student[t], teacher[t]),
            soft_cross_entropy=-sum(p.exp() * q for p, q in zip(log_p, log_q, strict=True)),
            teacher_logprobs=log_p[target],
            teacher_log_normalizers=teacher[t, 0] - log_p[0],
        )
        for name, value in expected._asdict().items():
            assert getattr(statistics, name)[t].item() == pytest.approx(value.item(), rel=1e-11), name


def test_statistics_without_a_teacher():
    statistics = token_statistics(random(3, VOCABULARY, seed=1), torch.tensor([1, 2, 3]))
    assert statistics.student_logprobs.shape == (3,)
    assert all(value is None for value in statistics[1:])


def test_bfloat16_logits_are_widened_before_the_softmax():
    student, teacher = (4 * random(TOKENS, 1000, seed=s).to(torch.bfloat16) for s in (1, 2))
    targets = torch.arange(TOKENS)
    narrow, wide = token_statistics(student, targets, teacher), token_statistics(student.double(), targets, teacher.double())
    for name, value in narrow._asdict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(wide, name), rtol=1e-5, atol=1e-5)


def test_teacher_values_carry_no_gradient():
    student, teacher = random(2, VOCABULARY, seed=1).requires_grad_(), random(2, VOCABULARY, seed=2).requires_grad_()
    statistics = token_statistics(student, torch.tensor([0, 1]), teacher)
    assert torch.autograd.grad(sum(statistics[:4]).sum(), teacher, allow_unused=True) == (None,)
    assert not statistics.teacher_logprobs.requires_grad and not statistics.teacher_log_normalizers.requires_grad
