"""Tests of Collection: stub workers in real Ray processes record when they score, and fail on request."""

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
    """Returns responses of 1 + prompt_index tokens. Before the last one it sleeps `slow` seconds, then does what `then` names."""

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
    """Records when it scores and how many. Every score is the length of the response."""

    temperature = 1.0

    def __init__(self, **_):
        self.calls = []

    def score(self, sequences, temperatures):
        self.calls.append((time.time(), len(sequences)))
        return [TeacherScores(*(np.full(s.targets, s.targets, np.float32) for _ in range(2)), np.zeros((s.targets, 2))) for s in sequences]

    def take_calls(self):
        return self.calls


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
def test_all_rollouts_are_scored_in_the_order_of_the_requests(ray_cluster, as_finished):
    with groups(as_finished) as (rollout, teacher):
        first, second = (rollout.begin(REQUESTS, teacher) for _ in range(2))  # the second starts before the results of the first are taken
        for collection in (first, second):
            assert [rollout.summary.response_tokens for rollout in collection.sampled()] == list(range(1, 25))
            items = fetch(collection.scores(), 30)
            assert [item.rollout.prompt_index for item in items] == list(range(24))
            assert [item.scores.logprobs.tolist() for item in items] == [[n] * n for n in range(1, 25)]
            assert collection.call_costs["rollout/busy_seconds"] > 0 and collection.call_costs["teacher/busy_seconds"] > 0
            assert collection.call_costs["teacher/payload_bytes"] == sum(range(1, 25)) * (2 * 4 + 2 * 8)
        assert rollout.begin([], teacher).scores() == []


def test_rollouts_are_scored_as_they_finish_or_all_at_the_end(ray_cluster):
    for as_finished in (True, False):
        with groups(as_finished) as (rollout, teacher):
            collection = rollout.begin(REQUESTS, teacher, slow=1.5)
            collection.scores()
            calls = [call for worker in teacher.call("take_calls") for call in worker]
            last = max(moment for moment, _ in calls)
            scored_early = sum(count for moment, count in calls if moment < last - 0.7)
            assert sum(count for _, count in calls) == 24
            assert scored_early >= 16 if as_finished else scored_early == 0
            assert as_finished or len(calls) == 2, "one call per worker, whatever the order of finishing"


@pytest.mark.parametrize(
    "then, message",
    [
        ("fail", "the engine has had enough"),
        ("die", "rollout worker . died in `sample`"),
        ("hang", "rollout worker . did not finish `sample` within 6 s"),
    ],
)
def test_a_worker_that_fails_while_sampling_is_one_clear_error(ray_cluster, then, message):
    with groups() as (rollout, teacher):
        collection = rollout.begin(REQUESTS, teacher, then=then)
        for wait in (collection.sampled, collection.scores):
            with pytest.raises(RunError, match=message):
                wait()
