"""Diagnostics of target tokens from hidden states, in chunks, against whole rows of logits in float64."""

import numpy as np
import pytest
import torch

from minirl.model.output_head import OutputHead
from minirl.model.student import StudentModule
from minirl.model.token_diagnostics import token_diagnostics
from minirl.training.inputs import SupervisedItem
from minirl.training.update import diagnose, forward
from minirl.types import TeacherScores, numpy_from_tensor
from tests.minirl.model.test_student import VOCABULARY as STUDENT_VOCABULARY
from tests.minirl.model.test_student import model_of, sequences

ROWS, VOCABULARY, PADDED = 13, 40, 44


def heads(student_scale: float = 1.0):
    draw = torch.Generator().manual_seed(0)
    student = OutputHead(torch.randn(PADDED, 6, generator=draw), torch.randn(PADDED, generator=draw), student_scale, None, VOCABULARY)
    teacher = OutputHead(torch.randn(VOCABULARY, 9, generator=draw), None, 1.0, 5.0, VOCABULARY)
    hidden, teacher_hidden = torch.randn(ROWS, 6, generator=draw), torch.randn(ROWS, 9, generator=draw)
    return student, teacher, hidden, teacher_hidden, torch.randint(0, VOCABULARY, (ROWS,), generator=draw)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("top_k", [1, 5])
def test_diagnostics_equal_their_definitions_on_whole_rows(chunk_tokens, top_k):
    student, teacher, hidden, teacher_hidden, targets = heads()
    targets[3] = student.logits(hidden)[3].argmax()  # one correct prediction
    diagnostics = token_diagnostics(
        hidden, targets, student, teacher=teacher, teacher_hidden=teacher_hidden, top_k=top_k, chunk_tokens=chunk_tokens
    )
    for row in range(ROWS):
        z = (hidden[row].double() @ student.weight[:VOCABULARY].double().T) + student.bias[:VOCABULARY].double()
        t = 5 * torch.tanh(teacher_hidden[row].double() @ teacher.weight.double().T / 5)
        q, p = z.softmax(-1).numpy(), t.softmax(-1).numpy()
        likeliest = [set(np.argsort(-x)[:top_k].tolist()) for x in (q, p)]
        target = int(targets[row])
        expected = {
            "student_logprobs": np.log(q[target]), "teacher_logprobs": np.log(p[target]),
            "teacher_log_normalizers": float(t.logsumexp(-1)),
            "reverse_kl": sum(q * np.log(q / p)), "forward_kl": sum(p * np.log(p / q)),
            "confidence": q.max(), "overlap": len(likeliest[0] & likeliest[1]) / top_k, "correct": float(q.argmax() == target),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(getattr(diagnostics, name)[row]) == pytest.approx(value, abs=2e-5), name
    assert diagnostics.correct[3]


def test_equal_models_have_zero_divergence_and_full_overlap():
    student, _, hidden, _, targets = heads()
    diagnostics = token_diagnostics(hidden, targets, student, teacher=student, teacher_hidden=hidden, top_k=7, chunk_tokens=5)
    assert diagnostics.reverse_kl.abs().max() < 1e-5 and diagnostics.forward_kl.abs().max() < 1e-5
    assert diagnostics.overlap.eq(1).all()


def test_split_returns_the_diagnostics_of_each_sequence():
    student, teacher, hidden, teacher_hidden, targets = heads()
    diagnostics = token_diagnostics(hidden, targets, student, teacher=teacher, teacher_hidden=teacher_hidden, top_k=3, chunk_tokens=8)
    parts = diagnostics.split([4, 0, 9])
    assert [len(part.reverse_kl) for part in parts] == [4, 0, 9]
    assert np.array_equal(np.concatenate([part.forward_kl for part in parts]), diagnostics.forward_kl.numpy())
    assert parts[2].correct.dtype == bool


def test_no_targets_at_all():
    student, teacher, hidden, teacher_hidden, targets = heads()
    diagnostics = token_diagnostics(
        hidden[:0], targets[:0], student, teacher=teacher, teacher_hidden=teacher_hidden[:0], top_k=3, chunk_tokens=8
    )
    assert all(len(field) == 0 for field in diagnostics if field is not None)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_student_module_diagnoses_each_sequence_like_its_statistics(temperature):
    """A worker without sequences runs an empty micro-batch while the others work."""
    draw, model, width = np.random.default_rng(0), model_of("llama"), 7
    head = OutputHead(torch.randn(STUDENT_VOCABULARY, width), None, 1.0, None, STUDENT_VOCABULARY)
    module, items = StudentModule(model, vocabulary=STUDENT_VOCABULARY, chunk_tokens=5, teacher_head=head).eval(), []
    for sequence in sequences((9, 4, 20)):
        hidden = torch.from_numpy(draw.normal(size=(sequence.targets, width)).astype(np.float32))
        logits, targets = head.logits(hidden) / temperature, torch.from_numpy(sequence.tokens[sequence.is_target])[:, None]
        normalizers = logits.logsumexp(-1)
        logprobs = logits.gather(1, targets)[:, 0] - normalizers
        items.append(SupervisedItem(sequence, TeacherScores(*map(numpy_from_tensor, (logprobs, normalizers, hidden)))))
    with torch.no_grad():
        inputs, tokens = forward(module, items, "cpu", temperature)
        diagnostics, gap = diagnose(module, items, "cpu", 3, temperature)
        assert diagnose(module, [], "cpu", 3) == ([], {})
    assert float(gap["teacher_gap_max"]) < 1e-5
    for name in ("student_logprobs", "reverse_kl", "forward_kl"):
        rows = getattr(tokens, name).split(inputs.batch.counts.tolist())
        for sequence_diagnostics, row in zip(diagnostics, rows, strict=True):
            np.testing.assert_allclose(getattr(sequence_diagnostics, name), row.numpy(), rtol=1e-5, atol=1e-6)
