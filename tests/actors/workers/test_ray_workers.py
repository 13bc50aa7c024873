"""The teacher's Ray worker: which temperature each kind of item is scored at."""

import numpy as np
import pytest

from actors.workers.ray_workers import TeacherRayWorker
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence

TOKENS = np.array([3, 4, 5])
ROLLOUT = Rollout(TOKENS[:1], TOKENS[1:], np.zeros(2, np.float32), False, 1, 0, 0)
BLOCK = TokenSequence(TOKENS, np.array([False, True, True]))
SCORES = TeacherScores(np.zeros(2, np.float32), np.zeros(2, np.float32), np.zeros((2, 4), np.float32))


class RecordingTeacher(TeacherRayWorker):
    """A worker without an engine that records the temperatures."""

    temperature = 0.7

    def __init__(self, member_index: int | None, teacher_id: str | None = None):
        self.member_index, self.teacher_id, self.temperatures = member_index, teacher_id, None

    def score(self, sequences, temperatures=None):
        self.temperatures = temperatures
        return [SCORES for _ in sequences]


@pytest.mark.parametrize("member_index", [None, 0, 1])
def test_rollouts_are_scored_at_the_runs_temperature_and_fixed_sequences_at_one(member_index):
    """The learner computes its supervised losses at temperature 1, whatever the run samples at, and compares the scores there."""
    earlier = EnsembleScores((SCORES,))
    items = [OnPolicyItem(ROLLOUT, earlier), SupervisedItem(BLOCK, earlier)] if member_index else [ROLLOUT, BLOCK]
    worker = RecordingTeacher(member_index)
    _, batch = worker.score_batches([items[1], items[0], items[1]])
    assert worker.temperatures == [1.0, 0.7, 1.0]
    assert [type(item) for item in batch] == [SupervisedItem, OnPolicyItem, SupervisedItem]


def test_sequences_of_another_teacher_take_no_part():
    worker = RecordingTeacher(0, "mathematics")
    other = TokenSequence(TOKENS, BLOCK.is_target, "code")
    worker.score_batches([other, ROLLOUT])
    assert worker.temperatures == [0.7]
