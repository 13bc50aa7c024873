"""Chunked output heads against whole rows of logits under autograd in float64: every output and gradient."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minirl.config.objective import DivergenceConfig
from minirl.model import row_blocks
from minirl.model.buffers import BufferPool
from minirl.model.chunked_head import head_statistics
from minirl.model.output_head import OutputHead
from minirl.objective.divergence import DIVERGENCES, TokenStatistics, token_statistics
from tests import oracles

TOKENS, WIDTH, VOCABULARY = 7, 5, 11
DIFFERENTIABLE = ("student_logprobs", "reverse_kl", "forward_kl", "soft_cross_entropy")
BLOCK_ROWS = (1, 2, TOKENS)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Heads:
    """Hidden states and output heads of student and teacher. rows: those of the student's weight, at least the shared vocabulary."""

    def __init__(self, tokens: int = TOKENS, bias=False, scale=1.0, soft_cap=None, temperature=1.0, rows=VOCABULARY, chunk_tokens=3):
        self.hidden, weight = random(tokens, WIDTH, seed=1).requires_grad_(), random(rows, WIDTH, seed=2).requires_grad_()
        self.student = OutputHead(weight, random(rows, seed=6).requires_grad_() if bias else None, scale, soft_cap, VOCABULARY)
        self.teacher = OutputHead(random(VOCABULARY + 2, WIDTH + 1, seed=4), None, 1.0, None, VOCABULARY)
        self.teacher_hidden = random(tokens, WIDTH + 1, seed=3)
        self.targets = (torch.arange(tokens) * 3) % VOCABULARY
        self.switches = {"temperature": temperature, "chunk_tokens": chunk_tokens}

    def statistics(self, **switches) -> TokenStatistics:
        teacher = {"teacher": self.teacher, "teacher_hidden": self.teacher_hidden}
        return head_statistics(self.hidden, self.targets, self.student, **(teacher | self.switches | switches))

    def logits(self) -> list[Tensor]:
        """Whole rows of logits of student and teacher at temperature 1, computed here from the formula of a head."""
        logits = []
        for head, hidden in ((self.student, self.hidden), (self.teacher, self.teacher_hidden)):
            rows = hidden @ head.weight[:VOCABULARY].T + (0 if head.bias is None else head.bias[:VOCABULARY])
            rows = rows * head.scale
            logits.append(rows if head.soft_cap is None else head.soft_cap * torch.tanh(rows / head.soft_cap))
        return logits

    def by_definition(self) -> TokenStatistics:
        """The statistics from whole rows of logits, differentiable by autograd."""
        student, teacher = (rows / self.switches["temperature"] for rows in self.logits())
        return token_statistics(student, self.targets, teacher)

    def gradients(self, loss: Tensor, **options) -> tuple[Tensor, ...]:
        parameters = (self.hidden, self.student.weight, self.student.bias)
        return torch.autograd.grad(loss, [p for p in parameters if p is not None], **options)


@pytest.fixture(params=BLOCK_ROWS)
def block_rows(request, monkeypatch):
    monkeypatch.setitem(row_blocks.BLOCK_BYTES, "cpu", request.param * VOCABULARY * 8)


def present(statistics: TokenStatistics) -> dict[str, Tensor]:
    return {name: value for name, value in statistics._asdict().items() if value is not None}


def weighted_sum(statistics: TokenStatistics, names=DIFFERENTIABLE) -> Tensor:
    return sum((random(len(statistics[0]), seed=20 + i) * getattr(statistics, name)).sum() for i, name in enumerate(names))


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "soft-cap": {"soft_cap": 2.0},
    "temperature": {"temperature": 1.7},
    "vocabulary smaller than the weight": {"rows": VOCABULARY + 3},
    "everything": {"bias": True, "scale": 0.3, "soft_cap": 2.0, "temperature": 1.7, "rows": VOCABULARY + 3},
}


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, TOKENS, 100])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_are_those_of_whole_rows(kind, chunk_tokens, block_rows):
    heads = Heads(**HEADS[kind], chunk_tokens=chunk_tokens)
    expected, chunked = heads.by_definition(), heads.statistics()
    for name, value in present(expected).items():
        torch.testing.assert_close(getattr(chunked, name), value, rtol=1e-11, atol=1e-12, msg=name)
    for names in (*((name,) for name in DIFFERENTIABLE), DIFFERENTIABLE):
        expected_gradients = heads.gradients(weighted_sum(expected, names), retain_graph=True)
        gradients = heads.gradients(weighted_sum(chunked, names), retain_graph=True)
        assert expected_gradients[0].abs().max() > 0.01
        for pair in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-12, msg=str(names))


SWITCHES = {kind: {"temperature": 2.5} if kind != "logit_mse" else {} for kind in DIVERGENCES} | {"jsd": {"beta": 0.3}}


@pytest.mark.parametrize("chunk_tokens", [2, 100])
@pytest.mark.parametrize("kind", ["plain", "everything"])
@pytest.mark.parametrize("divergence", SWITCHES)
def test_any_divergence_is_that_of_whole_rows(divergence, kind, chunk_tokens, block_rows):
    """Value and gradient. The log-probs have the temperature of the pass, the divergence has its own temperature."""
    heads, switches = Heads(**HEADS[kind], chunk_tokens=chunk_tokens), SWITCHES[divergence]
    chunked, plain = heads.statistics(divergence=DivergenceConfig(kind=divergence, **switches)), heads.by_definition()
    expected = torch.stack([oracles.divergence(divergence, *rows, **switches) for rows in zip(*heads.logits(), strict=True)])
    assert chunked.reverse_kl is None and chunked.forward_kl is None and chunked.soft_cross_entropy is None
    torch.testing.assert_close(chunked.divergence, expected, rtol=1e-9, atol=1e-12)
    for name in ("student_logprobs", "teacher_logprobs", "teacher_log_normalizers"):
        torch.testing.assert_close(getattr(chunked, name), getattr(plain, name), rtol=1e-11, atol=1e-12)
    by_logprobs, by_divergence = random(TOKENS, seed=20), random(TOKENS, seed=21)
    for weights in ((0, by_divergence), (by_logprobs, by_divergence)):
        expected_gradients = heads.gradients((weights[0] * plain.student_logprobs + weights[1] * expected).sum(), retain_graph=True)
        gradients = heads.gradients((weights[0] * chunked.student_logprobs + weights[1] * chunked.divergence).sum(), retain_graph=True)
        for pair in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-11)
    by_logprobs_alone = heads.gradients((by_logprobs * chunked.student_logprobs).sum())
    torch.testing.assert_close(by_logprobs_alone[0], heads.gradients((by_logprobs * plain.student_logprobs).sum())[0])


def assert_token_has_exactly_no_effect(token: int, loss_of) -> None:
    """On value and gradient of `loss_of(heads)`, for any states of that token, in a chunk alone and with other tokens."""
    for chunk_tokens in (1, 3):
        results = []
        for scale in (1.0, 1e3):
            heads = Heads(chunk_tokens=chunk_tokens)
            with torch.no_grad():
                heads.hidden[token] *= scale
                heads.teacher_hidden[token] *= scale
            loss = loss_of(heads)
            results.append((loss, *heads.gradients(loss)))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
        assert (results[0][1][token] == 0).all()


@pytest.mark.parametrize("divergence", SWITCHES)
def test_a_token_without_weight_has_exactly_no_effect_on_any_divergence(divergence):
    def loss_of(heads: Heads) -> torch.Tensor:
        values = heads.statistics(divergence=DivergenceConfig(kind=divergence, **SWITCHES[divergence])).divergence
        return values.masked_fill(torch.arange(TOKENS) == 4, 0.0).sum()

    assert_token_has_exactly_no_effect(4, loss_of)


def test_a_divergence_without_a_teacher_is_none_and_without_tokens_has_zero_gradient():
    """Under ZeRO-3 a worker without targets must run the head like the others."""
    config = DivergenceConfig(kind="jsd")
    assert Heads().statistics(teacher_hidden=None, divergence=config).divergence is None
    heads = Heads(tokens=0)
    gradients = heads.gradients(heads.statistics(divergence=config).divergence.sum())
    assert gradients[0].shape == (0, WIDTH) and (gradients[1] == 0).all()


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_without_a_teacher_and_without_expectations_under_it(chunk_tokens):
    heads = Heads(chunk_tokens=chunk_tokens)
    expected = heads.by_definition()
    without_teacher = heads.statistics(teacher_hidden=None)
    assert all(value is None for value in without_teacher[1:])
    without_expectations = heads.statistics(teacher_expectations=False)
    assert without_expectations.forward_kl is None and without_expectations.soft_cross_entropy is None
    for statistics, names in ((without_teacher, DIFFERENTIABLE[:1]), (without_expectations, DIFFERENTIABLE[:2])):
        for name in names:
            torch.testing.assert_close(getattr(statistics, name), getattr(expected, name))
        pairs = zip(
            heads.gradients(weighted_sum(statistics, names)),
            heads.gradients(weighted_sum(expected, names), retain_graph=True),
            strict=True,
        )
        for pair in pairs:
            torch.testing.assert_close(*pair)


def test_the_hand_written_gradient_passes_gradcheck():
    heads = Heads(bias=True, soft_cap=3.0, chunk_tokens=2)

    def statistics(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        heads.hidden, heads.student = hidden, replace(heads.student, weight=weight, bias=bias)
        return heads.statistics()[: len(DIFFERENTIABLE)]

    assert torch.autograd.gradcheck(statistics, (heads.hidden, heads.student.weight, heads.student.bias))


def test_bfloat16_hidden_states_give_float32_statistics():
    """Against float64 on the same rounded inputs: values to the precision of float32, gradients to that of bfloat16."""
    heads = Heads(chunk_tokens=4)
    narrow, wide = Heads(chunk_tokens=4), Heads(chunk_tokens=4)
    for other, dtype in ((narrow, torch.bfloat16), (wide, torch.float64)):
        for name in ("hidden", "teacher_hidden"):
            setattr(other, name, getattr(heads, name).detach().bfloat16().to(dtype))
        other.hidden.requires_grad_()
        student, teacher = (head.weight.detach().bfloat16().to(dtype) for head in (heads.student, heads.teacher))
        other.student, other.teacher = (
            replace(heads.student, weight=student.requires_grad_()),
            replace(heads.teacher, weight=teacher),
        )
    statistics, expected = narrow.statistics(), wide.by_definition()
    for name, value in present(expected).items():
        assert getattr(statistics, name).dtype == torch.float32
        torch.testing.assert_close(getattr(statistics, name).double(), value, rtol=1e-5, atol=1e-5, msg=name)
    gradients, expected_gradients = narrow.gradients(weighted_sum(statistics)), wide.gradients(weighted_sum(expected))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - expected_gradient).norm() < 1e-2 * expected_gradient.norm()


def test_a_frozen_head_saves_its_product_and_changes_no_other_gradient():
    trained, frozen = Heads(bias=True), Heads(bias=True)
    for parameter in (frozen.student.weight, frozen.student.bias):
        parameter.requires_grad_(False)
    flops = []
    for heads in (trained, frozen):
        loss = heads.statistics(chunk_tokens=TOKENS).reverse_kl.sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        flops.append(counter.get_total_flops())
    assert torch.equal(frozen.hidden.grad, trained.hidden.grad) and trained.student.weight.grad is not None
    assert frozen.student.weight.grad is None and frozen.student.bias.grad is None
    assert flops == [2 * 2 * TOKENS * WIDTH * VOCABULARY, 2 * TOKENS * WIDTH * VOCABULARY]


def test_teacher_values_carry_no_gradient():
    heads = Heads()
    heads.teacher_hidden.requires_grad_()
    statistics = heads.statistics()
    assert not statistics.teacher_logprobs.requires_grad and not statistics.teacher_log_normalizers.requires_grad
    assert torch.autograd.grad(weighted_sum(statistics), heads.teacher_hidden, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_divergences_of_equal_distributions_are_zero(name):
    heads = Heads()
    heads.teacher, heads.teacher_hidden = heads.student, heads.hidden
    statistics = heads.statistics()
    assert (getattr(statistics, name) == 0).all()
    assert heads.gradients(getattr(statistics, name).sum())[0].abs().max() < 1e-14


def test_a_token_without_weight_has_exactly_no_effect():
    def loss_of(heads: Heads) -> torch.Tensor:
        statistics, masked = heads.statistics(), torch.arange(TOKENS) == 4
        return statistics.reverse_kl.masked_fill(masked, 0.0).sum() - statistics.student_logprobs.masked_fill(masked, 0.0).sum()

    assert_token_has_exactly_no_effect(4, loss_of)


def test_a_pass_without_tokens_still_uses_the_head():
    """Under ZeRO-3 a worker without targets must run the head like the others; its gradient exists and is zero."""
    heads = Heads(tokens=0)
    statistics = heads.statistics()
    assert all(len(value) == 0 for value in present(statistics).values())
    hidden, head = heads.gradients(statistics.reverse_kl.sum())
    assert hidden.shape == (0, WIDTH) and head.shape == (VOCABULARY, WIDTH) and (head == 0).all()


def test_passes_that_overlap_do_not_share_buffers():
    """Two forward passes run before their backward passes, and one backward pass runs twice: no pass overwrites another's logits."""
    buffer_pool = BufferPool()
    heads, others = Heads(), Heads(scale=2.0)
    expected = heads.gradients(weighted_sum(heads.by_definition()))
    heads.gradients(weighted_sum(heads.statistics(buffer_pool=buffer_pool)))  # leaves its buffers in the pool
    first, second = (h.statistics(buffer_pool=buffer_pool) for h in (heads, others))
    others.gradients(weighted_sum(second))
    for _ in range(2):
        for pair in zip(heads.gradients(weighted_sum(first), retain_graph=True), expected, strict=True):
            torch.testing.assert_close(*pair)


def test_only_chunks_before_the_last_are_computed_again(monkeypatch):
    product_rows = []
    logits_into = OutputHead.logits_into
    monkeypatch.setattr(OutputHead, "logits_into", lambda head, out, *rest: product_rows.append(len(out)) or logits_into(head, out, *rest))
    heads = Heads()
    statistics = heads.statistics(teacher_hidden=None)
    assert product_rows == [3, 3, 1]
    heads.gradients(statistics.student_logprobs.sum())
    assert product_rows == [3, 3, 1, 3, 3]
    product_rows.clear()
    heads.gradients(heads.statistics(chunk_tokens=TOKENS).student_logprobs.sum())
    assert product_rows == [TOKENS, TOKENS]  # student and teacher


@pytest.mark.parametrize("divergence", [None, DivergenceConfig(kind="jsd")], ids=["reverse KL", "jsd"])
def test_peak_memory_does_not_grow_with_tokens_times_vocabulary(divergence):
    """Peak of forward and backward together, as the allocator reports it, for two numbers of tokens. Without chunks it does grow."""
    vocabulary = 5000
    student, teacher = (OutputHead(random(vocabulary, WIDTH, seed=s).requires_grad_(s == 1), None, 1.0, None, vocabulary) for s in (1, 2))

    def peak(tokens: int, chunk_tokens: int) -> int:
        hidden, targets = random(tokens, WIDTH, seed=3).requires_grad_(), torch.zeros(tokens, dtype=torch.int64)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            states = {"teacher": teacher, "teacher_hidden": hidden}
            statistics = head_statistics(hidden, targets, student, chunk_tokens=chunk_tokens, **states, divergence=divergence)
            torch.autograd.grad((statistics.reverse_kl if divergence is None else statistics.divergence).sum(), (hidden, student.weight))
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))

    logits_bytes = 64 * vocabulary * 8  # of [tokens, V] in float64, for the 64 additional tokens
    assert peak(96, chunk_tokens=8) - peak(32, chunk_tokens=8) < 0.1 * logits_bytes
    assert peak(96, chunk_tokens=96) - peak(32, chunk_tokens=32) > 1.5 * logits_bytes
