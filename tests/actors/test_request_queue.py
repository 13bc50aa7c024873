"""Tests of the request queue: each request is taken once, and what an engine takes depends on what it has under way."""

import pickle

import numpy as np
import pytest
import ray

from actors.request_queue import QueuedRequests, RequestQueue
from minirl.types import SamplingRequest
from tests.deadlines import wait_until


def pickled(count: int) -> list[bytes]:
    return [pickle.dumps((position, SamplingRequest(np.arange(3), position, 0, None))) for position in range(count)]


def positions(taken: list[bytes]) -> list[int]:
    return [position for position, _ in map(pickle.loads, taken)]


@pytest.mark.parametrize(("count", "engines", "size"), [(16, 2, 4), (1, 3, 1), (7, 2, 2), (64, 4, 8), (1000, 16, 32)])
def test_each_request_is_taken_once_and_in_order(count, engines, size):
    """The first case is the example of the docstring."""
    queue, takes, are_left = RequestQueue(), [], True
    iteration = queue.add(pickled(count), engines)
    while are_left:
        taken, are_left = queue.take(iteration, 100)
        takes.append(positions(taken))
    assert sum(takes, []) == list(range(count))
    assert {len(taken) for taken in takes[:-1]} <= {size} and 1 <= len(takes[-1]) <= size
    assert queue.take(iteration, 100) == ([], False)  # an engine that was busy until now


def test_an_engine_takes_no_more_than_it_may():
    queue = RequestQueue()
    assert positions(queue.take(queue.add(pickled(16), 2), 3)[0]) == [0, 1, 2]


def test_iterations_do_not_mix():
    queue = RequestQueue()
    first, second = (queue.add(pickled(2), 1) for _ in range(2))
    for iteration in (second, first):
        takes = [queue.take(iteration, 2) for _ in range(2)]
        assert [(positions(taken), are_left) for taken, are_left in takes] == [([0], True), ([1], False)]


class SlowQueue(RequestQueue):
    """Answers when the file exists."""

    def begin(self, gate):
        self.gate = gate
        return self.add(pickled(4), 1)

    def take(self, iteration, most):
        assert wait_until(self.gate.is_file, 20)
        return super().take(iteration, most)


@pytest.mark.slow
def test_an_engine_with_requests_under_way_never_waits_for_the_queue_and_has_at_most_its_share(ray_cluster, tmp_path):
    queue = ray.remote(SlowQueue).options(num_cpus=0).remote()
    queued = QueuedRequests(queue, ray.get(queue.begin.remote(tmp_path / "gate")), share=4)  # gives two at a time
    assert queued.take(4) == [] and queued.pending is None, "it has its share"
    assert queued.take(3) == queued.take(2) == [] and queued.are_left
    (tmp_path / "gate").touch()
    assert [position for position, _ in queued.take(0)] == [0], "asked for when three were under way"
    assert [position for position, _ in queued.take(0)] == [1, 2] and queued.are_left
    assert [position for position, _ in queued.take(0)] == [3] and not queued.are_left
    assert queued.take(0) == [] and queued.taken == 4
    ray.kill(queue)
