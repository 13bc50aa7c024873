"""Full-vocabulary divergences: values by hand, and agreement with the oracle that loops over the vocabulary."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minirl.config.objective import DivergenceConfig, SoftTargetsConfig
from minirl.config.reader import validate_config
from minirl.errors import InputError
from minirl.objective.divergence import DIVERGENCES, TokenStatistics, divergence_of, token_statistics
from tests import oracles

TOKENS, WIDTH, VOCABULARY = 7, 5, 11


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return divergence_of(student, teacher, DivergenceConfig(kind="forward_kl"))


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return divergence_of(student, teacher, DivergenceConfig(kind="reverse_kl"))


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


def test_reverse_kl_is_mode_seeking():
    """A student that omits a mode of the teacher has a small reverse KL; one with mass where the teacher has none has a large one."""
    teacher, one_mode, everywhere = logs(0.4995, 0.001, 0.4995), logs(0.998, 0.001, 0.001), logs(0.34, 0.32, 0.34)
    assert reverse_kl(one_mode, teacher) < reverse_kl(everywhere, teacher)
    assert forward_kl(one_mode, teacher) > forward_kl(everywhere, teacher)


# q = (1/2, 1/2), p = (1/4, 3/4)
BY_HAND = [
    ({"kind": "jsd"}, 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)) + 0.5 * (0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5))),
    (
        {"kind": "jsd", "beta": 0.2},  # middle (0.45, 0.55)
        0.2 * (0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55))
        + 0.8 * (0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)),
    ),
    ({"kind": "skew_forward_kl", "skew": 0.2}, 0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55)),
    ({"kind": "skew_reverse_kl", "skew": 0.2}, 0.5 * math.log(0.5 / 0.3) + 0.5 * math.log(0.5 / 0.7)),
    ({"kind": "total_variation"}, 0.25),
]


@pytest.mark.parametrize(("switches", "expected"), BY_HAND)
def test_divergences_by_hand(switches, expected):
    student, teacher = logs(0.5, 0.5), logs(0.25, 0.75)
    assert divergence_of(student, teacher, DivergenceConfig(**switches)).item() == pytest.approx(expected)


def test_logit_mse_by_hand():
    """(1, 2, 6) centred is (-2, -1, 3), (0, 4, 2) is (-2, 2, 0): squares 0, 9, 9."""
    student, teacher = (torch.tensor([row], dtype=torch.float64) for row in ((1, 2, 6), (0, 4, 2)))
    assert divergence_of(student, teacher, DivergenceConfig(kind="logit_mse")).item() == pytest.approx(6)


def test_a_temperature_divides_both_logits_and_the_loss_keeps_its_size():
    """At temperature 2, the logits 2 log q describe q: 4 times the KL of q, twice its total variation. The logits 4 log q are 2 log q that
    are already divided by 0.5, and give the same.
    """
    student, teacher = logs(0.5, 0.5), logs(0.25, 0.75)
    for kind, factor in (("reverse_kl", 4), ("jsd", 4), ("total_variation", 2)):
        plain = divergence_of(student, teacher, DivergenceConfig(kind=kind))
        softer = DivergenceConfig(kind=kind, temperature=2.0)
        torch.testing.assert_close(divergence_of(2 * student, 2 * teacher, softer), factor * plain)
        torch.testing.assert_close(divergence_of(4 * student, 4 * teacher, softer, divided_by=0.5), factor * plain)


def test_every_kind_of_the_config_is_defined():
    assert set(DIVERGENCES) == set(get_args(DivergenceConfig.model_fields["kind"].annotation))


# Every kind, with its defaults and with other switches
SWITCHES = [
    *({"kind": kind} for kind in DIVERGENCES),
    *({"kind": kind, "temperature": 2.5} for kind in DIVERGENCES if kind != "logit_mse"),
    *({"kind": "jsd", "beta": beta} for beta in (0.1, 0.9)),
    *({"kind": f"skew_{way}_kl", "skew": 0.7} for way in ("forward", "reverse")),
]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 8))
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_rows_agree_with_the_oracle(switches, seed, spread):
    student, teacher = (spread * random(2, 6, seed=seed + i) for i in (0, 20_000))
    student.requires_grad_()
    value = divergence_of(student, teacher, DivergenceConfig(**switches))
    expected = torch.stack([oracles.divergence(student_row=q, teacher_row=p, **switches) for q, p in zip(student, teacher, strict=True)])
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in (value, expected)), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_properties_of_every_divergence(switches):
    """Positive where the distributions differ; zero, with zero gradient, where they are equal; unchanged by a constant added to the logits
    of either. The gradient of a row's value touches only that row, and sums to zero.
    """
    student, teacher, config = 2 * random(3, 6, seed=1), 2 * random(3, 6, seed=2), DivergenceConfig(**switches)
    student[2] = teacher[2]
    student.requires_grad_()
    values = divergence_of(student, teacher, config)
    assert (values[:2] > 1e-3).all() and abs(values[2].item()) < 1e-14
    torch.testing.assert_close(divergence_of(student + 3, teacher - 2, config), values)
    first = torch.autograd.grad(values[0], student, retain_graph=True)[0]
    assert (first[1:] == 0).all() and abs(first[0].sum()) < 1e-12 < first[0].abs().max()
    assert torch.autograd.grad(values[2], student)[0].abs().max() < 1e-14


def test_jsd_lies_between_the_two_kls():
    """Unchanged if student and teacher swap and beta becomes 1 - beta; at most ln 2 at beta = 1/2; divided by beta it tends to one KL as
    beta goes to 0, divided by 1 - beta to the other as beta goes to 1.
    """
    student, teacher = 3 * random(4, 6, seed=1), 3 * random(4, 6, seed=2)

    def jsd(q: Tensor, p: Tensor, beta: float) -> Tensor:
        return divergence_of(q, p, DivergenceConfig(kind="jsd", beta=beta))

    torch.testing.assert_close(jsd(student, teacher, 0.5), jsd(teacher, student, 0.5))
    torch.testing.assert_close(jsd(student, teacher, 0.2), jsd(teacher, student, 0.8))
    assert (jsd(student, teacher, 0.5) < math.log(2)).all()
    torch.testing.assert_close(jsd(student, teacher, 1e-7) / 1e-7, forward_kl(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(student, teacher, 1 - 1e-7) / 1e-7, reverse_kl(student, teacher), rtol=1e-4, atol=0)


def test_without_skew_the_skew_kls_are_the_plain_ones():
    student, teacher = 3 * random(4, 6, seed=1), 3 * random(4, 6, seed=2)
    for kind, plain in (("forward_kl", forward_kl), ("reverse_kl", reverse_kl)):
        for skew, tolerance in ((1e-3, 0.2), (1e-7, 1e-4)):
            value = divergence_of(student, teacher, DivergenceConfig(kind=f"skew_{kind}", skew=skew))
            torch.testing.assert_close(value, plain(student, teacher), rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("switches", "factor"),
    [
        ({"kind": "forward_kl"}, 1 / 2),
        ({"kind": "reverse_kl"}, 1 / 2),
        ({"kind": "jsd", "beta": 0.3}, 0.3 * 0.7 / 2),
        ({"kind": "skew_forward_kl", "skew": 0.2}, 0.8**2 / 2),
        ({"kind": "skew_reverse_kl", "skew": 0.2}, 0.8**2 / 2),
    ],
    ids=str,
)
def test_a_high_temperature_leaves_the_mean_squared_difference_of_centred_logits(switches, factor):
    """Value and gradient: tau^2 KL(p_tau || q_tau) tends to half of it, the others to a part of that half (docs/mathematics.md, 6)."""
    student, teacher = random(4, 6, seed=1).requires_grad_(), random(4, 6, seed=2)
    hot = divergence_of(student, teacher, DivergenceConfig(**switches, temperature=1e4))
    limit = factor * divergence_of(student, teacher, DivergenceConfig(kind="logit_mse"))
    torch.testing.assert_close(hot, limit, rtol=1e-3, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), student)[0] for v in (hot, limit)), rtol=1e-3, atol=1e-4)


def test_a_high_temperature_leaves_half_the_mean_absolute_difference_of_centred_logits():
    student, teacher = random(4, 6, seed=1), random(4, 6, seed=2)
    hot = divergence_of(student, teacher, DivergenceConfig(kind="total_variation", temperature=1e4))
    centred = student - student.mean(-1, keepdim=True) - teacher + teacher.mean(-1, keepdim=True)
    torch.testing.assert_close(hot, centred.abs().mean(-1) / 2, rtol=1e-3, atol=0)


def test_the_gradient_runs_through_both_occurrences_of_the_student():
    """d KL / d logit_v = q_v (log q_v - log p_v - KL): its sum over v is zero, and it is zero if the distributions are equal."""
    student, teacher = random(1, 6, seed=1).requires_grad_(), random(1, 6, seed=2)
    kl = reverse_kl(student, teacher)
    q = student.softmax(-1)
    expected = q * (student.log_softmax(-1) - teacher.log_softmax(-1) - kl)
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), student, retain_graph=True)[0], expected)
    gradient_at_equality = torch.autograd.grad(reverse_kl(student, student.detach()).sum(), student)[0]
    assert gradient_at_equality.abs().max() < 1e-15


def test_top_k_is_no_substitute():
    """p = (.6, .39, .01), q = (.5, .3, .2): the sum over the teacher's top 2 is negative and its gradient raises the bad token."""
    teacher, student = logs(0.6, 0.39, 0.01), logs(0.5, 0.3, 0.2).requires_grad_()
    full = reverse_kl(student, teacher)
    terms = student.log_softmax(-1).exp() * (student.log_softmax(-1) - teacher)
    partial = terms[:, :2].sum()
    assert full.item() == pytest.approx(0.429, abs=5e-4)
    assert partial.item() == pytest.approx(-0.170, abs=5e-4)
    by_full, by_partial = (torch.autograd.grad(loss.sum(), student, retain_graph=True)[0][0, 2].item() for loss in (full, partial))
    assert by_full > 0 > by_partial  # gradient descent lowers the bad token's logit with the full sum and raises it with the partial one


def test_a_vocabulary_padded_head_is_the_sliced_one():
    """The teacher's head has 3 rows of padding with high logits. Without them, the rest equals the renormalised one."""
    head, hidden, student = random(VOCABULARY + 3, WIDTH, seed=1), random(TOKENS, WIDTH, seed=2), random(TOKENS, VOCABULARY, seed=3)
    head[VOCABULARY:] *= 5
    targets = torch.arange(TOKENS)
    sliced = token_statistics(student, targets, hidden @ head[:VOCABULARY].T)
    padded = (hidden @ head.T).softmax(-1)[:, :VOCABULARY]
    renormalised = padded / padded.sum(-1, keepdim=True)
    assert (padded.sum(-1) < 0.9).any(), "the padding must have some mass, or the test shows nothing"
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
        for name in (name for name, value in expected._asdict().items() if value is not None):
            value = getattr(expected, name)
            assert getattr(statistics, name)[t].item() == pytest.approx(value.item(), rel=1e-11), name


def test_statistics_without_a_teacher():
    statistics = token_statistics(random(3, VOCABULARY, seed=1), torch.tensor([1, 2, 3]))
    assert statistics.student_logprobs.shape == (3,)
    assert all(value is None for value in statistics[1:])


def test_a_divergence_replaces_the_other_expectations():
    student, teacher = random(3, VOCABULARY, seed=1), random(3, VOCABULARY, seed=2)
    targets, config = torch.tensor([1, 2, 3]), DivergenceConfig(kind="jsd", temperature=2.0)
    with_divergence, plain = (token_statistics(student, targets, teacher, divergence=d) for d in (config, None))
    torch.testing.assert_close(with_divergence.divergence, divergence_of(student, teacher, config))
    assert with_divergence.reverse_kl is with_divergence.forward_kl is with_divergence.soft_cross_entropy is plain.divergence is None
    for name in ("student_logprobs", "teacher_logprobs", "teacher_log_normalizers"):
        assert torch.equal(getattr(with_divergence, name), getattr(plain, name))


def test_bfloat16_logits_are_widened_before_the_softmax():
    student, teacher = (4 * random(TOKENS, 1000, seed=s).to(torch.bfloat16) for s in (1, 2))
    targets = torch.arange(TOKENS)
    narrow, wide = token_statistics(student, targets, teacher), token_statistics(student.double(), targets, teacher.double())
    for name in ("student_logprobs", "reverse_kl", "forward_kl", "soft_cross_entropy", "teacher_logprobs", "teacher_log_normalizers"):
        value = getattr(narrow, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), getattr(wide, name), rtol=1e-5, atol=1e-5)


def test_teacher_values_carry_no_gradient():
    student, teacher = random(2, VOCABULARY, seed=1).requires_grad_(), random(2, VOCABULARY, seed=2).requires_grad_()
    statistics = token_statistics(student, torch.tensor([0, 1]), teacher)
    assert torch.autograd.grad(sum(statistics[:4]).sum(), teacher, allow_unused=True) == (None,)
    assert not statistics.teacher_logprobs.requires_grad and not statistics.teacher_log_normalizers.requires_grad


# Settings


@pytest.mark.parametrize(
    ("values", "beta", "skew"),
    [
        ({}, None, None),
        ({"kind": "jsd"}, 0.5, None),
        ({"kind": "jsd", "beta": 0.9}, 0.9, None),
        ({"kind": "skew_forward_kl"}, None, 0.1),
        ({"kind": "skew_reverse_kl", "skew": 0.3}, None, 0.3),
    ],
)
def test_each_divergence_has_defaults_and_survives_a_dump(values, beta, skew):
    config = validate_config(DivergenceConfig, values)
    assert (config.beta, config.skew) == (beta, skew)
    assert validate_config(DivergenceConfig, config.model_dump()) == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"beta": 0.5}, "beta belongs to kind: jsd, and forward_kl has none"),
        ({"kind": "jsd", "skew": 0.1}, "skew belongs to the skew kinds, and jsd has none"),
        ({"kind": "jsd", "beta": 0.0}, "use kind: forward_kl for beta near 0"),
        ({"kind": "jsd", "beta": 1.0}, "reverse_kl for beta near 1"),
        ({"kind": "skew_reverse_kl", "skew": 0.0}, "use kind: reverse_kl for none"),
        ({"kind": "skew_forward_kl", "skew": 1.0}, "skew must lie between 0 and 1"),
        ({"kind": "logit_mse", "temperature": 2.0}, "the temperature cancels"),
        ({"temperature": 0.0}, "temperature"),
        ({"kind": "kl"}, "kind"),
    ],
)
def test_a_divergence_refuses_what_it_does_not_use(values, sentence):
    with pytest.raises(InputError, match=sentence):
        validate_config(SoftTargetsConfig, {"divergence": values})


@pytest.mark.parametrize("hard_weight", [-0.1, 1.1])
def test_the_hard_weight_is_a_share(hard_weight):
    with pytest.raises(InputError, match="hard_weight"):
        validate_config(SoftTargetsConfig, {"hard_weight": hard_weight})
