"""Teacher ensembles: the average against naive float64, each teacher's checksum, one teacher for each record."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from minirl.config.objective import DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.model.chunked_head import head_statistics
from minirl.model.output_head import OutputHead
from minirl.model.teacher_ensemble import EnsembleStates, TeacherEnsemble
from minirl.model.token_diagnostics import token_diagnostics
from minirl.objective.divergence import TokenStatistics, token_statistics
from minirl.training.inputs import Inputs, OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, forward, on_policy_loss, soft_update_loss
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence
from tests import oracles

VOCABULARY, WIDTH, WIDTHS, WEIGHTS = 11, 5, (4, 6, 3), (1.0, 3.0, 0.5)
LENGTHS = (4, 2, 3, 1)  # targets of the sequences
ALL_TEACHERS = tuple((0, 1, 2) for _ in LENGTHS)
BY_RECORD = ((1,), (0,), (1,), (2,))
SCORING = {  # the teachers that score each sequence
    "all": ALL_TEACHERS,
    "by record": BY_RECORD,
    "some": ((0, 2), (1,), (0, 1, 2), (0,)),
    "one scores nothing": ((0, 1),) * len(LENGTHS),
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Teachers:
    """K heads with different width, scale and soft-cap, and the hidden states of each for every target of every sequence.

    scoring: the teachers that score each sequence.
    """

    def __init__(self, scoring, temperature: float = 1.0):
        self.scoring, self.temperature = scoring, temperature
        self.heads = tuple(
            OutputHead(random(VOCABULARY + k, width, seed=k), None, 1.0 + k, 2.0 if k == 1 else None, VOCABULARY)
            for k, width in enumerate(WIDTHS)
        )
        self.hidden = [[random(n, width, seed=10 * i + k) for k, width in enumerate(WIDTHS)] for i, n in enumerate(LENGTHS)]
        self.targets = [(torch.arange(n) * 3 + i) % VOCABULARY for i, n in enumerate(LENGTHS)]
        self.ensemble = TeacherEnsemble(self.heads, WEIGHTS)

    def logits(self, sequence: int, k: int) -> Tensor:
        """[n, V] at temperature 1, computed here from the formula of a head."""
        head = self.heads[k]
        rows = self.hidden[sequence][k] @ head.weight[:VOCABULARY].T * head.scale
        return rows if head.soft_cap is None else head.soft_cap * torch.tanh(rows / head.soft_cap)

    def average(self) -> Tensor:
        """[N, V] log-probs, averaged as probabilities, one token and one vocabulary entry at a time."""
        rows = []
        for sequence, teachers in enumerate(self.scoring):
            for t in range(LENGTHS[sequence]):
                logs = {k: oracles.log_softmax(self.logits(sequence, k)[t] / self.temperature) for k in teachers}
                total = sum(WEIGHTS[k] for k in teachers)
                rows.append(torch.stack([sum(WEIGHTS[k] / total * logs[k][v].exp() for k in teachers) for v in range(VOCABULARY)]).log())
        return torch.stack(rows)

    def scores(self, sequence: int) -> EnsembleScores:
        """The scores as the teachers would send them."""
        scores = []
        for k in range(len(self.heads)):
            logits = self.logits(sequence, k) / self.temperature
            logprobs = logits.log_softmax(-1).gather(1, self.targets[sequence][:, None])[:, 0]
            member_scores = TeacherScores(logprobs.numpy(), logits.logsumexp(-1).numpy(), self.hidden[sequence][k].numpy())
            scores.append(member_scores if k in self.scoring[sequence] else None)
        return EnsembleScores(tuple(scores))

    def states(self) -> EnsembleStates:
        return EnsembleStates.from_scores([self.scores(i) for i in range(len(LENGTHS))], "cpu")


class Student:
    def __init__(self):
        self.hidden, weight = random(sum(LENGTHS), WIDTH, seed=30).requires_grad_(), random(VOCABULARY, WIDTH, seed=31).requires_grad_()
        self.head = OutputHead(weight, None, 1.0, None, VOCABULARY)

    def statistics(self, teachers: Teachers, chunk_tokens: int = 3, **switches) -> TokenStatistics:
        states = {"teacher": teachers.ensemble, "teacher_hidden": teachers.states(), "temperature": teachers.temperature} | switches
        return head_statistics(self.hidden, torch.cat(teachers.targets), self.head, chunk_tokens=chunk_tokens, **states)

    def logits(self) -> Tensor:
        return self.hidden @ self.head.weight.T

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.hidden, self.head.weight), retain_graph=True)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
@pytest.mark.parametrize("scoring", SCORING)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_an_ensemble_is_its_average_in_probability(temperature, scoring, chunk_tokens):
    """Every statistic and every gradient equals that of one teacher whose logits are the log-probs of the average."""
    teachers, student = Teachers(SCORING[scoring], temperature), Student()
    statistics = student.statistics(teachers, chunk_tokens)
    expected = token_statistics(student.logits() / temperature, torch.cat(teachers.targets), teachers.average())
    names = ("student_logprobs", "reverse_kl", "forward_kl", "soft_cross_entropy")
    for name in (*names, "teacher_logprobs"):
        torch.testing.assert_close(getattr(statistics, name), getattr(expected, name), rtol=1e-10, atol=1e-12, msg=name)
    assert statistics.teacher_log_normalizers.abs().max() < 1e-12
    losses = [sum((random(sum(LENGTHS), seed=i) * getattr(s, name)).sum() for i, name in enumerate(names)) for s in (statistics, expected)]
    for pair in zip(*map(student.gradients, losses), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", [DivergenceConfig(kind="jsd", temperature=2.0), DivergenceConfig(kind="logit_mse")])
def test_a_divergence_is_measured_from_the_average(divergence):
    teachers, student = Teachers(SCORING["some"], temperature=1.7), Student()
    values = student.statistics(teachers, divergence=divergence).divergence
    switches = {"temperature": divergence.temperature} if divergence.kind == "jsd" else {}
    rows = zip(student.logits(), 1.7 * teachers.average(), strict=True)
    expected = torch.stack([oracles.divergence(divergence.kind, q, p, **switches) for q, p in rows])
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
    for pair in zip(student.gradients(values.sum()), student.gradients(expected.sum()), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-11)


def test_a_sequence_with_one_teacher_equals_a_run_with_that_teacher_alone():
    """By record: each sequence against its teacher, computed by the code for a single teacher."""
    teachers, student = Teachers(BY_RECORD), Student()
    together, start = student.statistics(teachers), 0
    for i, (k,) in enumerate(BY_RECORD):
        rows = slice(start, start + LENGTHS[i])
        alone = head_statistics(
            student.hidden[rows],
            teachers.targets[i],
            student.head,
            chunk_tokens=3,
            teacher=teachers.heads[k],
            teacher_hidden=teachers.hidden[i][k],
        )
        for name in ("student_logprobs", "reverse_kl", "forward_kl", "soft_cross_entropy", "teacher_logprobs"):
            torch.testing.assert_close(getattr(together, name)[rows], getattr(alone, name), rtol=1e-11, atol=1e-13)
        start = rows.stop


def test_logprobs_and_log_normalizers_of_each_teacher_are_returned():
    teachers, student = Teachers(SCORING["some"], temperature=1.7), Student()
    statistics, start = student.statistics(teachers), 0
    for i, scoring in enumerate(SCORING["some"]):
        rows = slice(start, start := start + LENGTHS[i])
        for k in range(len(WIDTHS)):
            logprobs, log_normalizers = statistics.member_logprobs[rows, k], statistics.member_log_normalizers[rows, k]
            if k not in scoring:
                assert logprobs.isnan().all() and log_normalizers.isnan().all()
                continue
            scores = teachers.scores(i).scores[k]
            torch.testing.assert_close(logprobs, torch.from_numpy(scores.logprobs))
            torch.testing.assert_close(log_normalizers, torch.from_numpy(scores.log_normalizers))
    assert not statistics.member_logprobs.requires_grad and not statistics.member_log_normalizers.requires_grad


def test_a_single_teacher_has_no_member_statistics():
    student, teachers = Student(), Teachers(ALL_TEACHERS)
    hidden = torch.cat([sequence[0] for sequence in teachers.hidden])
    statistics = student.statistics(teachers, teacher=teachers.heads[0], teacher_hidden=hidden)
    assert statistics.member_logprobs is None and statistics.member_log_normalizers is None


def test_a_sequence_that_no_teacher_scores_is_refused():
    with pytest.raises(ValueError, match="no teacher scores"):
        Teachers(((0,), (), (1,), (2,))).states()


def test_bfloat16_states_are_averaged_in_float32():
    """Against float64 on the same rounded states."""
    teachers, student = Teachers(ALL_TEACHERS), Student()
    for i, sequence in enumerate(teachers.hidden):
        teachers.hidden[i] = [hidden.bfloat16().double() for hidden in sequence]
    teachers.heads = tuple(replace(head, weight=head.weight.bfloat16().double()) for head in teachers.heads)
    narrow = tuple(torch.cat([s[k] for s in teachers.hidden]).bfloat16() for k in range(len(WIDTHS)))
    states = EnsembleStates.of(narrow, np.ones((sum(LENGTHS), len(WIDTHS)), bool))
    ensemble = TeacherEnsemble(tuple(replace(head, weight=head.weight.bfloat16()) for head in teachers.heads), WEIGHTS)
    rounded, head = student.hidden.detach().bfloat16(), replace(student.head, weight=student.head.weight.detach().bfloat16())
    statistics = head_statistics(rounded, torch.cat(teachers.targets), head, chunk_tokens=3, teacher=ensemble, teacher_hidden=states)
    expected = token_statistics(rounded.double() @ head.weight.double().T, torch.cat(teachers.targets), teachers.average())
    assert statistics.teacher_logprobs.dtype == torch.float32
    torch.testing.assert_close(statistics.teacher_logprobs.double(), expected.teacher_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics.reverse_kl.double(), expected.reverse_kl, rtol=1e-5, atol=1e-5)


# In an update


def items_of(teachers: Teachers) -> list[OnPolicyItem]:
    """Rollouts with prompts of two tokens and the targets as responses, with their scores."""
    rollouts = [Rollout(np.array([3, 4]), t.numpy(), np.full(len(t), -2.0), False, 0, i, 0) for i, t in enumerate(teachers.targets)]
    return [OnPolicyItem(rollout, teachers.scores(i)) for i, rollout in enumerate(rollouts)]


def student_module(teachers: Teachers, student: Student):
    """(micro-batch, states, ...) -> statistics; the hidden states of the student are fixed and do not depend on the micro-batch."""

    def call(batch, states, temperature, teacher_expectations, divergence):
        switches = {
            "temperature": temperature,
            "teacher_expectations": teacher_expectations,
            "divergence": divergence,
            "teacher": teachers.ensemble,
        }
        return head_statistics(
            student.hidden[: len(batch.targets)], batch.targets, student.head, chunk_tokens=3, teacher_hidden=states, **switches
        )

    return call


@pytest.mark.parametrize("scoring", SCORING)
def test_rewards_and_single_step_use_the_average(scoring):
    teachers, student = Teachers(SCORING[scoring]), Student()
    config, items = ObjectiveConfig(pretrain_coefficient=0.0), items_of(teachers)
    loss, sums = on_policy_loss(
        student_module(teachers, student), items, config, LossDivisors(), device="cpu", temperature=1.0, teacher_share=0.0
    )
    student_rows, teacher_rows = (rows.split(LENGTHS) for rows in (student.logits(), teachers.average()))
    responses = [
        oracles.Response(q, p, tokens.tolist(), item.rollout.behavior_logprobs.tolist())
        for q, p, tokens, item in zip(student_rows, teacher_rows, teachers.targets, items, strict=True)
    ]
    expected = sum(sum(oracles.paper_losses(response)) for response in responses)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for pair in zip(student.gradients(loss), student.gradients(expected), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)
    assert sums["teacher_gap_max"] < 1e-12


@pytest.mark.parametrize("scoring", ["all", "by record", "some"])
@pytest.mark.parametrize("k", range(len(WIDTHS)))
@pytest.mark.parametrize("field", ["logprobs", "log_normalizers"])
def test_the_checksum_detects_a_fault_of_each_teacher(field, k, scoring):
    """One number of one teacher is wrong, in the last sequence that it scores; its weight in the average does not matter."""
    teachers, student = Teachers(SCORING[scoring]), Student()
    scores = [teachers.scores(i) for i in range(len(LENGTHS))]
    last = max(i for i, sequence_teachers in enumerate(SCORING[scoring]) if k in sequence_teachers)
    members = list(scores[last].scores)
    wrong = getattr(members[k], field).copy()
    wrong[-1] += 0.5
    members[k] = replace(members[k], **{field: wrong})
    scores[last] = EnsembleScores(tuple(members))
    sequences = [item.sequence for item in items_of(teachers)]
    items = [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]
    inputs, tokens = forward(student_module(teachers, student), items, "cpu", 1.0)
    gap = inputs.gap(tokens)["teacher_gap_max"].item()
    size = max(1.0, abs(members[k].log_normalizers[-1]))
    assert gap == pytest.approx(0.5 / size, rel=1e-6)


def test_soft_targets_use_the_average():
    teachers, student = Teachers(SCORING["some"]), Student()
    items = [SupervisedItem(TokenSequence(i.sequence.tokens, i.sequence.is_target), i.scores) for i in items_of(teachers)]
    config = SoftTargetsConfig(hard_weight=0.25)
    loss, sums = soft_update_loss(student_module(teachers, student), items, config, 2.0, device="cpu")
    tokens = torch.cat(teachers.targets).tolist()
    expected = oracles.soft_target_loss(student.logits(), teachers.average(), tokens, "forward_kl", 0.25) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for pair in zip(student.gradients(loss), student.gradients(expected), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-12)
    assert sums["teacher_gap_max"] < 1e-12


def test_diagnostics_use_the_average_and_return_values_of_each_teacher():
    teachers, student = Teachers(SCORING["some"]), Student()
    states = {"teacher": teachers.ensemble, "teacher_hidden": teachers.states()}
    diagnostics = token_diagnostics(student.hidden, torch.cat(teachers.targets), student.head, **states, top_k=3, chunk_tokens=4)
    expected = token_statistics(student.logits(), torch.cat(teachers.targets), teachers.average())
    for name in ("reverse_kl", "forward_kl", "teacher_logprobs"):
        torch.testing.assert_close(getattr(diagnostics, name), getattr(expected, name), rtol=1e-10, atol=1e-12)
    assert Inputs.of(items_of(teachers), "cpu").gap(diagnostics)["teacher_gap_max"] < 1e-12
