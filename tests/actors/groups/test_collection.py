"""Tests of Collection: stub workers in real Ray processes record when they score, and fail on request."""

import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from actors.config import ClusterConfig, RolloutConfig, TeacherConfig
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.object_batches import fetch
from actors.workers.ray_workers import RolloutRayWorker, TeacherRayWorker
from minirl.errors import RunError
from minirl.training.inputs import OnPolicyItem
from minirl.types import Rollout, SamplingRequest, TeacherScores
from tests.deadlines import deadline, wait_until

pytestmark = pytest.mark.slow

CLUSTER = ClusterConfig(start_timeout_s=deadline(20), step_timeout_s=deadline(6))
REQUESTS = [SamplingRequest(np.arange(4), number, 0, number) for number in range(24)]


class Sampler(RolloutRayWorker):
    """Samples one request after the other, in `seconds` each. Returns responses of 1 + prompt_index tokens, and the process id as version.

    gate: a file for which the last request of the iteration waits. then: what that request does. slow: a path; the worker that creates it
    takes ten times as long.
    """

    def __init__(self, **_):
        pass

    def sample_each(self, requests, queued, *, with_scores, seconds=0.0, gate=None, then="end", slow=None, **_):
        if slow is not None and created(slow):
            seconds *= 10
        while requests:
            for position, request in requests:
                time.sleep(seconds)
                if position == len(REQUESTS) - 1:
                    assert gate is None or wait_until(gate.is_file, 20)
                    {"end": lambda: None, "fail": self.fail, "die": lambda: os._exit(3), "hang": lambda: time.sleep(600)}[then]()
                response, index = np.arange(1 + request.prompt_index), request.prompt_index
                logprobs = response.astype(np.float32)
                rollout = Rollout(request.prompt_tokens, response, logprobs, False, os.getpid(), index, 0)
                yield [(position, OnPolicyItem(rollout, TeacherScores(logprobs, logprobs, logprobs[:, None])) if with_scores else rollout)]
            requests = queued.take(0) if queued else []

    def fail(self):
        raise RunError("the engine has had enough")


def created(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


class Scorer(TeacherRayWorker):
    """Records how many sequences each call scores. Every score is the length of the response."""

    temperature = 1.0

    def __init__(self, **_):
        self.calls = []

    def score(self, sequences, temperatures):
        self.calls.append(len(sequences))
        return [TeacherScores(*(np.full(s.targets, s.targets, np.float32) for _ in range(2)), np.zeros((s.targets, 2))) for s in sequences]

    def sequences_of_calls(self):
        return self.calls


class Samplers(RolloutGroup):
    worker_class = Sampler


class Scorers(TeacherGroup):
    worker_class = Scorer


@contextmanager
def groups(as_finished: bool = True, micro_batch_tokens: int = 64, cluster: ClusterConfig = CLUSTER, fixed_shares: bool = False):
    rollout = Samplers(RolloutConfig(workers=2), cluster, "cpu", fixed_shares=fixed_shares)
    teacher = Scorers(
        TeacherConfig(model="none", workers=2, micro_batch_tokens=micro_batch_tokens), cluster, "cpu", as_finished=as_finished
    )
    try:
        rollout.wait_started()
        teacher.wait_started()
        yield rollout, teacher
    finally:
        rollout.stop()
        teacher.stop()


@pytest.mark.parametrize(("as_finished", "fixed_shares"), [(True, False), (False, False), (False, True)])
def test_all_rollouts_are_scored_in_the_order_of_the_requests(ray_cluster, as_finished, fixed_shares):
    with groups(as_finished, fixed_shares=fixed_shares) as (rollout, teacher):
        first, second = (rollout.begin(REQUESTS, teacher) for _ in range(2))  # the second starts before the results of the first are taken
        for collection in (first, second):
            assert [rollout.summary.response_tokens for rollout in collection.sampled()] == list(range(1, 25))
            items = fetch(collection.scores(), deadline(3))
            assert [item.rollout.prompt_index for item in items] == list(range(24))
            assert [item.scores.logprobs.tolist() for item in items] == [[n] * n for n in range(1, 25)]
            assert collection.call_costs["rollout/busy_seconds"] > 0 and collection.call_costs["teacher/busy_seconds"] > 0
            assert collection.call_costs["teacher/payload_bytes"] == sum(range(1, 25)) * (2 * 4 + 2 * 8)
        assert rollout.begin([], teacher).scores() == []


def test_rollouts_that_arrive_with_scores_are_not_scored_again(ray_cluster):
    with groups() as (rollout, _):
        collection = rollout.begin(REQUESTS, None, with_scores=True)
        items = fetch(collection.scores(), deadline(3))
        assert [item.scores.logprobs.tolist() for item in items] == [list(range(n)) for n in range(1, 25)]
        assert [len(rollout.response_tokens) for rollout in rollout.fetch(collection.sampled())] == list(range(1, 25))
        assert set(collection.call_costs) == {"rollout/busy_seconds", "rollout/payload_bytes"}
        tokens, prompts = sum(range(1, 25)), 24 * REQUESTS[0].prompt_tokens.nbytes
        assert collection.call_costs["rollout/payload_bytes"] == prompts + tokens * (8 + 4 + 3 * 4), "with their scores"


@pytest.mark.parametrize("as_finished", [True, False])
def test_rollouts_are_scored_as_they_finish_or_all_at_the_end(ray_cluster, as_finished, tmp_path):
    with groups(as_finished) as (rollout, teacher):

        def calls() -> list[int]:
            return sum(teacher.call("sequences_of_calls"), [])

        collection = rollout.begin(REQUESTS, teacher, gate=tmp_path / "gate")
        # all but the last rollouts arrive before the gate opens
        assert wait_until(lambda: sum(calls()) >= 16, 6) if as_finished else (time.sleep(1.0), calls())[1] == []
        (tmp_path / "gate").touch()
        collection.scores()
        assert sum(calls()) == 24
        assert as_finished or len(calls()) == 2, "one call per worker, whatever the order of finishing"


def test_a_slow_worker_gets_few_requests_and_does_not_hold_the_iteration(ray_cluster, tmp_path):
    """Two workers, one of them ten times slower. With equal shares the iteration takes as long as 12 requests of the slow one."""
    seconds, counts = {}, {}
    for fixed_shares in (False, True):
        with groups(fixed_shares=fixed_shares) as (rollout, _):
            began = time.monotonic()
            sampled = rollout.sample(REQUESTS, seconds=0.05, slow=tmp_path / f"slow {fixed_shares}")
            seconds[fixed_shares] = time.monotonic() - began
            counts[fixed_shares] = sorted(Counter(rollout.summary.weight_version for rollout in sampled).values())
    assert counts[True] == [12, 12]
    assert counts[False] == [9, 15], "the fast worker takes all that is not dealt up front"
    assert seconds[False] < 0.9 * seconds[True]


def test_the_deadline_of_an_iteration_does_not_count_while_it_waits_for_the_one_before(ray_cluster):
    with groups(cluster=CLUSTER.model_copy(update={"step_timeout_s": 3.0})) as (rollout, _):
        first, second = (rollout.begin(REQUESTS[:16], None, seconds=0.5) for _ in range(2))
        began = time.monotonic()
        assert len(first.sampled()) == 16
        assert time.monotonic() - began > 3.0, "the second began after its deadline, had this counted from its submission"
        assert len(second.sampled()) == 16


@pytest.mark.parametrize(
    "then, message",
    [
        ("fail", "the engine has had enough"),
        ("die", "rollout worker . died in `sample`"),
        ("hang", "rollout worker . did not finish `sample` within 6 s.* raise cluster.step_timeout_s"),
    ],
)
def test_a_worker_that_fails_while_sampling_is_one_clear_error(ray_cluster, then, message):
    limit = 6.0 if then == "hang" else CLUSTER.step_timeout_s
    with groups(cluster=CLUSTER.model_copy(update={"step_timeout_s": limit})) as (rollout, teacher):
        collection = rollout.begin(REQUESTS, teacher, then=then)
        for wait in (collection.sampled, collection.scores):
            with pytest.raises(RunError, match=message):
                wait()
