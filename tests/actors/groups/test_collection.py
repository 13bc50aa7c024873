"""Rollouts as they finish, and their scores: plain workers in real Ray processes say when they are asked, and fail as they are told."""

import os
import time
from contextlib import contextmanager

import numpy as np
import pytest

from actors.config import ClusterConfig, RolloutConfig, TeacherConfig
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.object_batches import fetch
from actors.workers.ray_workers import RolloutRayWorker, TeacherRayWorker
from minirl.errors import RunError
from minirl.types import Rollout, SamplingRequest, TeacherScores

pytestmark = pytest.mark.slow

CLUSTER = ClusterConfig(start_timeout_s=60, step_timeout_s=6)
REQUESTS = [SamplingRequest(np.arange(4), number, 0, number) for number in range(24)]


class Sampler(RolloutRayWorker):
    """A response of 1 + prompt_index tokens each; `slow` seconds before the last; then what `then` says."""

    def __init__(self, **_):
        pass

    def sample_each(self, requests, *, slow=0.0, then="end", **_):
        for position, request in enumerate(requests):
            if position == len(requests) - 1:
                time.sleep(slow)
                {"end": lambda: None, "fail": self.fail, "die": lambda: os._exit(3), "hang": lambda: time.sleep(60)}[then]()
            response = np.arange(1 + request.prompt_index)
            yield [(position, Rollout(request.prompt_tokens, response, response.astype(np.float32), False, 7, request.prompt_index, 0))]

    def fail(self):
        raise RunError("the engine has had enough")


class Scorer(TeacherRayWorker):
    """Notes when it was asked; its scores name the response's length."""

    def __init__(self, **_):
        self.asked = []

    def score(self, sequences):
        self.asked.append((time.time(), len(sequences)))
        return [TeacherScores(*(np.full(s.targets, s.targets, np.float32) for _ in range(2)), np.zeros((s.targets, 2))) for s in sequences]

    def notes(self):
        return self.asked


class Samplers(RolloutGroup):
    worker_class = Sampler


class Scorers(TeacherGroup):
    worker_class = Scorer


@contextmanager
def groups(as_finished: bool = True, micro_batch_tokens: int = 64):
    rollout = Samplers(RolloutConfig(workers=2), CLUSTER, "cpu")
    teacher = Scorers(
        TeacherConfig(model="none", workers=2, micro_batch_tokens=micro_batch_tokens), CLUSTER, "cpu", as_finished=as_finished
    )
    try:
        rollout.wait_started()
        teacher.wait_started()
        yield rollout, teacher
    finally:
        rollout.stop()
        teacher.stop()


@pytest.mark.parametrize("as_finished", [True, False])
def test_all_come_scored_in_the_order_of_the_requests(ray_cluster, as_finished):
    with groups(as_finished) as (rollout, teacher):
        first, second = (rollout.begin(REQUESTS, teacher) for _ in range(2))  # the second is begun before the first is taken
        for collection in (first, second):
            assert [one.summary.response_tokens for one in collection.sampled()] == list(range(1, 25))
            items = fetch(collection.scores(), 30)
            assert [item.rollout.prompt_index for item in items] == list(range(24))
            assert [item.scores.logprobs.tolist() for item in items] == [[n] * n for n in range(1, 25)]
            assert collection.effort["rollout/busy_seconds"] > 0 and collection.effort["teacher/busy_seconds"] > 0
            assert collection.effort["teacher/payload_bytes"] == sum(range(1, 25)) * (2 * 4 + 2 * 8)
        assert rollout.begin([], teacher).scores() == []


def test_rollouts_are_scored_while_others_are_sampled_or_else_all_together(ray_cluster):
    for as_finished in (True, False):
        with groups(as_finished) as (rollout, teacher):
            collection = rollout.begin(REQUESTS, teacher, slow=1.5)
            collection.scores()
            notes = [note for worker in teacher.call("notes") for note in worker]
            before = sum(count for asked, count in notes if asked < max(asked for asked, _ in notes) - 0.7)
            assert sum(count for _, count in notes) == 24
            assert before >= 16 if as_finished else before == 0
            assert as_finished or len(notes) == 2, "one call a worker, whatever finished when"


@pytest.mark.parametrize(
    "then, message",
    [
        ("fail", "the engine has had enough"),
        ("die", "rollout worker . died in `sample`"),
        ("hang", "rollout worker . did not finish `sample` within 6 s"),
    ],
)
def test_a_worker_that_fails_in_the_middle_is_one_clear_error(ray_cluster, then, message):
    with groups() as (rollout, teacher):
        collection = rollout.begin(REQUESTS, teacher, then=then)
        for wait in (collection.sampled, collection.scores):
            with pytest.raises(RunError, match=message):
                wait()
