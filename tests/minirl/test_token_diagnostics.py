"""Diagnostics of tokens from hidden states, in chunks, against whole rows of logits in float64."""

import numpy as np
import pytest
import torch

from minirl.models import OutputHead
from minirl.token_diagnostics import token_diagnostics

ROWS, VOCABULARY, PADDED = 13, 40, 44


def heads(student_scale: float = 1.0):
    draw = torch.Generator().manual_seed(0)
    student = OutputHead(torch.randn(PADDED, 6, generator=draw), torch.randn(PADDED, generator=draw), student_scale, None, VOCABULARY)
    teacher = OutputHead(torch.randn(VOCABULARY, 9, generator=draw), None, 1.0, 5.0, VOCABULARY)
    hidden, teacher_hidden = torch.randn(ROWS, 6, generator=draw), torch.randn(ROWS, 9, generator=draw)
    return student, teacher, hidden, teacher_hidden, torch.randint(0, VOCABULARY, (ROWS,), generator=draw)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("top_k", [1, 5])
def test_all_of_them_are_the_definitions_on_whole_rows(chunk_tokens, top_k):
    student, teacher, hidden, teacher_hidden, targets = heads()
    targets[3] = student.logits(hidden)[3].argmax()  # one that is right
    found = token_diagnostics(
        hidden, targets, student, teacher=teacher, teacher_hidden=teacher_hidden, top_k=top_k, chunk_tokens=chunk_tokens
    )
    for row in range(ROWS):
        z = (hidden[row].double() @ student.weight[:VOCABULARY].double().T) + student.bias[:VOCABULARY].double()
        t = 5 * torch.tanh(teacher_hidden[row].double() @ teacher.weight.double().T / 5)
        q, p = z.softmax(-1).numpy(), t.softmax(-1).numpy()
        best = [set(np.argsort(-x)[:top_k].tolist()) for x in (q, p)]
        target = int(targets[row])
        expected = {
            "student_logprobs": np.log(q[target]), "teacher_logprobs": np.log(p[target]),
            "teacher_log_normalizers": float(t.logsumexp(-1)),
            "reverse_kl": sum(q * np.log(q / p)), "forward_kl": sum(p * np.log(p / q)),
            "confidence": q.max(), "overlap": len(best[0] & best[1]) / top_k, "correct": float(q.argmax() == target),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(getattr(found, name)[row]) == pytest.approx(value, abs=2e-5), name
    assert found.correct[3]


def test_equal_models_are_no_distance_apart_and_share_all():
    student, _, hidden, _, targets = heads()
    found = token_diagnostics(hidden, targets, student, teacher=student, teacher_hidden=hidden, top_k=7, chunk_tokens=5)
    assert found.reverse_kl.abs().max() < 1e-5 and found.forward_kl.abs().max() < 1e-5
    assert found.overlap.eq(1).all()


def test_split_gives_each_sequence_its_own():
    student, teacher, hidden, teacher_hidden, targets = heads()
    found = token_diagnostics(hidden, targets, student, teacher=teacher, teacher_hidden=teacher_hidden, top_k=3, chunk_tokens=8)
    parts = found.split([4, 0, 9])
    assert [len(part.reverse_kl) for part in parts] == [4, 0, 9]
    assert np.array_equal(np.concatenate([part.forward_kl for part in parts]), found.forward_kl.numpy())
    assert parts[2].correct.dtype == bool


def test_no_targets_at_all():
    student, teacher, hidden, teacher_hidden, targets = heads()
    found = token_diagnostics(hidden[:0], targets[:0], student, teacher=teacher, teacher_hidden=teacher_hidden[:0], top_k=3, chunk_tokens=8)
    assert all(len(field) == 0 for field in found if field is not None)
