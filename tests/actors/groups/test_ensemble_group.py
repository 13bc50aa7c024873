"""What goes from one teacher of an ensemble to the next: the real shells' way of payloads over a stand-in for the engine."""

import numpy as np
import pytest

from actors.workers.ray_workers import TeacherRayWorker
from minirl.training.update import OnPolicyItem, SupervisedItem
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence


class RayWorker(TeacherRayWorker):
    """Says its number of every target."""

    def __init__(self, number: float, place=None, teacher_id=None):
        self.number, self.place, self.teacher_id, self.asked = number, place, teacher_id, []

    def score(self, sequences):
        self.asked.append(len(sequences))
        return [TeacherScores(*[np.full(s.targets, self.number, np.float32)] * 2, np.full((s.targets, 2), self.number)) for s in sequences]


def rollout(teacher=None) -> Rollout:
    return Rollout(np.arange(3), np.arange(4), np.zeros(4, np.float32), False, 1, 0, 0, teacher)


def sequence(teacher=None) -> TokenSequence:
    return TokenSequence(np.arange(5), np.arange(5) > 1, teacher)


def through(shells, asked) -> list:
    """All of the ensemble's answers; every shell is handed what the one before it returned."""
    for shell in shells:
        _, *parcels = shell.score_batches(asked)
        asked = [item for parcel in parcels for item in parcel]
    return asked


def numbers(item) -> list:
    assert isinstance(item.scores, EnsembleScores)
    return [None if scores is None else float(scores.logprobs[0]) for scores in item.scores.scores]


@pytest.mark.parametrize("count", [2, 3])
def test_each_adds_what_it_says_in_the_order_of_the_config(count):
    shells = [RayWorker(float(number), place=number) for number in range(count)]
    found = through(shells, [rollout(), sequence(), rollout(), sequence(), rollout()])
    assert [type(item) for item in found] == [OnPolicyItem, SupervisedItem, OnPolicyItem, SupervisedItem, OnPolicyItem]
    assert [numbers(item) for item in found] == [[float(number) for number in range(count)]] * 5


def test_a_record_is_scored_by_the_teacher_that_it_names_and_by_all_where_it_names_none():
    shells = [RayWorker(0.0, 0, "maths"), RayWorker(1.0, 1, "chat")]
    found = through(shells, [rollout("chat"), sequence("maths"), sequence(), rollout("maths")])
    assert [numbers(item) for item in found] == [[None, 1.0], [0.0, None], [0.0, 1.0], [0.0, None]]
    assert [shell.asked for shell in shells] == [[3], [2]]


def test_one_teacher_says_it_plainly_whatever_a_record_names():
    found = through([RayWorker(7.0)], [rollout("chat"), sequence()])
    assert all(isinstance(item.scores, TeacherScores) for item in found)
