"""The plain loop computes the paper's objective (against `tests/oracles.py`); the held-out evaluation."""

import pytest
import torch

from tests.benchmarks.held_out import HeldOutEvaluator
from tests.benchmarks.plain import PlainLoop, left_padded, position_ids, response_mask
from tests.benchmarks.protocol import Job
from tests.oracles import Response, paper_losses, reverse_kl
from tests.tiny import END_TOKEN, tiny_model

PROMPTS = [[4, 9, 11, 5], [4, 7, 5]]
POLICY_GRADIENT_WEIGHT = 0.125


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    root = tmp_path_factory.mktemp("plain")
    teacher, student = (tiny_model(root / name, vocab=24, seed=seed) for seed, name in enumerate(("teacher", "student")))
    return Job(
        student=student, teacher=teacher, dtype="float32", updates=[PROMPTS, PROMPTS], texts=[], held_out=PROMPTS, end_tokens=[END_TOKEN],
        max_response_tokens=6, learning_rate=1e-3, policy_gradient_weight=POLICY_GRADIENT_WEIGHT, seed=3, config="", directory=str(root),
    )  # fmt: skip


def response_of(loop: PlainLoop, prompt: list[int], tokens: list[int]) -> Response:
    """Logits of both models for one response alone, without padding."""
    whole = torch.tensor([prompt + tokens])
    rows = slice(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    student, teacher = (model(whole).logits[0, rows] for model in (loop.student, loop.teacher))
    response = Response(student, teacher.detach(), tokens, behavior=[0.0] * len(tokens))
    on_policy = [float(response.student(t).detach()) for t in range(len(tokens))]
    return Response(student, teacher.detach(), tokens, on_policy)


def test_the_gradient_is_the_papers_with_a_weighted_policy_gradient(job):
    loop, responses = PlainLoop(job), [[8, 3, 12, END_TOKEN], [6, 15, 15, 20, 9, 7]]
    prompts, starts = left_padded(PROMPTS)
    tail = torch.tensor([responses[0] + [17, 18], responses[1]])  # tokens behind an end token do not count
    mask = response_mask(tail, [END_TOKEN])
    tokens, attention = torch.cat([prompts, tail], 1), torch.cat([starts, mask], 1)
    loop.loss(tokens, attention, mask).backward()
    computed = {name: parameter.grad.clone() for name, parameter in loop.student.named_parameters()}
    loop.student.zero_grad()
    for prompt, response in zip(PROMPTS, responses, strict=True):
        policy_gradient, single_step = paper_losses(response_of(loop, prompt, response))
        (POLICY_GRADIENT_WEIGHT * policy_gradient + single_step).backward()
    for name, parameter in loop.student.named_parameters():
        torch.testing.assert_close(computed[name], parameter.grad, atol=2e-4, rtol=2e-3, msg=name)


def test_a_response_counts_up_to_its_end_token():
    tokens = torch.tensor([[5, END_TOKEN, 5, END_TOKEN], [END_TOKEN, 3, 3, 3], [5, 6, 7, 8]])
    assert response_mask(tokens, [END_TOKEN]).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_padding_goes_in_front_and_takes_no_position():
    tokens, starts = left_padded(PROMPTS)
    assert tokens.tolist() == [[4, 9, 11, 5], [0, 4, 7, 5]]
    assert position_ids(starts).tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


def test_an_update_returns_its_counts_and_changes_the_student(job):
    loop = PlainLoop(job)
    before = [parameter.detach().clone() for parameter in loop.student.parameters()]
    counts = loop.update()
    assert (counts.samples, counts.prompt_tokens) == (2, 7)
    assert 2 <= counts.response_tokens <= 2 * job.max_response_tokens
    assert any(not torch.equal(old, new) for old, new in zip(before, loop.student.parameters(), strict=True))


def test_the_evaluator_returns_the_exact_reverse_kl_of_the_students_samples(job, monkeypatch):
    responses = torch.tensor([[8, 3, 12, END_TOKEN, 17, 18], [6, 15, 15, 20, 9, 7]])
    monkeypatch.setattr("tests.benchmarks.held_out.sample", lambda model, prompts, starts, job: torch.cat([prompts, responses], 1))
    loop = PlainLoop(job)
    sampled = [response_of(loop, p, r) for p, r in zip(PROMPTS, (responses[0, :4].tolist(), responses[1].tolist()), strict=True)]
    by_hand = [float(reverse_kl(r.student_logits[t], r.teacher_logits[t]).detach()) for r in sampled for t in range(len(r))]
    assert HeldOutEvaluator(job, prompts=2).reverse_kl(job.student) == pytest.approx(sum(by_hand) / 10, rel=1e-4)


def test_the_reverse_kl_of_the_teacher_against_itself_is_zero(job):
    assert HeldOutEvaluator(job, prompts=2).reverse_kl(job.teacher) == pytest.approx(0, abs=1e-6)
