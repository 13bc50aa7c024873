"""Tests of what one teacher of an ensemble passes to the next: real Ray worker classes around a stub of the engine."""

import numpy as np
import pytest

from actors.workers.ray_workers import TeacherRayWorker
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence


class StubTeacher(TeacherRayWorker):
    """Scores every target with its `number`. calls: the number of sequences in each call of `score`."""

    temperature = 1.0

    def __init__(self, number: float, member_index=None, teacher_id=None):
        self.number, self.member_index, self.teacher_id, self.calls = number, member_index, teacher_id, []

    def score(self, sequences, temperatures):
        self.calls.append(len(sequences))
        return [TeacherScores(*[np.full(s.targets, self.number, np.float32)] * 2, np.full((s.targets, 2), self.number)) for s in sequences]


def rollout(teacher=None) -> Rollout:
    return Rollout(np.arange(3), np.arange(4), np.zeros(4, np.float32), False, 1, 0, 0, teacher)


def sequence(teacher=None) -> TokenSequence:
    return TokenSequence(np.arange(5), np.arange(5) > 1, teacher)


def score_with_all(teachers, inputs) -> list:
    """The items with the scores of all teachers. Each teacher gets what the previous one returned."""
    for teacher in teachers:
        _, *batches = teacher.score_batches(inputs)
        inputs = [item for batch in batches for item in batch]
    return inputs


def scores_of(item) -> list:
    assert isinstance(item.scores, EnsembleScores)
    return [None if scores is None else float(scores.logprobs[0]) for scores in item.scores.scores]


@pytest.mark.parametrize("count", [2, 3])
def test_scores_are_in_the_order_of_the_config(count):
    teachers = [StubTeacher(float(number), member_index=number) for number in range(count)]
    items = score_with_all(teachers, [rollout(), sequence(), rollout(), sequence(), rollout()])
    assert [type(item) for item in items] == [OnPolicyItem, SupervisedItem, OnPolicyItem, SupervisedItem, OnPolicyItem]
    assert [scores_of(item) for item in items] == [[float(number) for number in range(count)]] * 5


def test_a_record_is_scored_by_the_teacher_that_it_names_or_by_all():
    teachers = [StubTeacher(0.0, 0, "maths"), StubTeacher(1.0, 1, "chat")]
    items = score_with_all(teachers, [rollout("chat"), sequence("maths"), sequence(), rollout("maths")])
    assert [scores_of(item) for item in items] == [[None, 1.0], [0.0, None], [0.0, 1.0], [0.0, None]]
    assert [teacher.calls for teacher in teachers] == [[3], [2]]


def test_a_single_teacher_scores_every_record_without_ensemble_scores():
    items = score_with_all([StubTeacher(7.0)], [rollout("chat"), sequence()])
    assert all(isinstance(item.scores, TeacherScores) for item in items)
