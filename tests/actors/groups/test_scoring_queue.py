"""Tests of ScoringQueue: no rollout is lost, no pass is too long, and no worker ends late while the others are idle."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.groups.scoring_queue import MAX_PENDING_CALLS, ScoringQueue

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def queue_of(tokens: list[int], pass_tokens: int) -> ScoringQueue:
    queue = ScoringQueue(pass_tokens)
    for position, length in enumerate(tokens):
        queue.add(position, length)
    return queue


@given(lengths, st.lists(st.integers(0, MAX_PENDING_CALLS), min_size=1, max_size=6), st.integers(1, 500))
def test_assignments_follow_the_queue_and_the_size_of_a_pass(tokens, pending_calls, pass_tokens):
    queue = queue_of(tokens, pass_tokens)
    assignments = queue.assign(pending_calls)
    taken = [position for _, positions in assignments for position in positions]
    assert taken == list(range(len(taken))), "first in, first out, and each rollout once"
    assert queue.tokens == sum(tokens[len(taken) :]) and bool(queue) == (len(taken) < len(tokens))
    assert all(len(positions) == 1 or sum(tokens[i] for i in positions) <= pass_tokens for _, positions in assignments)
    idle = {worker for worker, pending in enumerate(pending_calls) if pending == 0}
    assert {worker for worker, _ in assignments} >= idle or not queue, "no worker stays idle while rollouts wait"
    for worker, pending in enumerate(pending_calls):
        assert pending + sum(assigned == worker for assigned, _ in assignments) <= MAX_PENDING_CALLS


def test_worked_example():
    queue = queue_of([100] * 20, 800)
    assert queue.assign([0, 1]) == [(0, list(range(8)))], "a whole pass for the idle worker; 1,200 tokens are too few for a pass ahead"
    assert queue.assign([0, 1]) == [(0, list(range(8, 14)))], "half of the waiting tokens"
    assert queue.assign([1, 1]) == []
    assert queue.assign([1, 0]) == [(1, [14, 15, 16, 17])], "the share is 300 tokens; a fourth rollout fills the object batch"
    assert queue_of([100] * 24, 800).assign([1, 1]) == [(0, list(range(8))), (1, list(range(8, 16)))], "a pass ahead for each worker"
    assert queue_of([100] * 16, 800).assign([1, 1]) == [(0, list(range(8)))]
    assert queue_of([100] * 48, 800).assign([2, 2]) == []
    assert queue_of([900, 5], 800).assign([0]) == [(0, [0])], "a rollout longer than a pass is scored alone"


@given(lengths, st.integers(1, 6))
def test_equal_shares_do_not_depend_on_the_order_in_which_rollouts_finished(tokens, workers):
    queue, shuffled = queue_of(tokens, 64), ScoringQueue(64)
    for position in np.random.default_rng(len(tokens)).permutation(len(tokens)).tolist():
        shuffled.add(position, tokens[position])
    shares = queue.assign_all(workers)
    assert shares == shuffled.assign_all(workers)
    assert sorted(position for _, positions in shares for position in positions) == list(range(len(tokens)))
    assert not queue and queue.assign_all(workers) == []
    loads = [0] * workers
    for worker, positions in shares:
        loads[worker] += sum(tokens[i] for i in positions)
    assert max(loads) - min(loads) <= max(tokens)


@pytest.mark.parametrize("workers", [1, 2, 16, 256])
@pytest.mark.parametrize("load", [0.6, 0.9])
def test_scoring_ends_soon_after_sampling(workers, load):
    """With a simulated clock: 16 rollouts per worker arrive within a second, a quarter of them at its end. Scoring takes `load` seconds."""
    draw = np.random.default_rng(workers)
    tokens = draw.integers(160, 384, 16 * workers)
    arrivals = np.sort(np.where(np.arange(len(tokens)) % 4, draw.uniform(0.25, 1.0, len(tokens)), 1.0))
    seconds_per_token = load * workers / tokens.sum()
    perfect = 0.0  # end of scoring by a single worker that is as fast as all of them together
    for arrival, length in zip(arrivals, tokens, strict=True):
        perfect = max(perfect, arrival) + length * seconds_per_token / workers
    batch_seconds = 4 * 384 * seconds_per_token
    assert _simulate(tokens, arrivals, workers, seconds_per_token, pass_tokens=4096) <= perfect + 2 * batch_seconds


def _simulate(tokens: np.ndarray, arrivals: np.ndarray, workers: int, seconds_per_token: float, pass_tokens: int) -> float:
    """The simulated time at which the last rollout is scored."""
    queue, pending_calls, free, now = ScoringQueue(pass_tokens), [0] * workers, [0.0] * workers, 0.0
    # An event is (moment, 0, rollout that is finished) or (moment, 1, worker that has finished a call).
    events = [(moment, 0, position) for position, moment in enumerate(arrivals)]
    heapq.heapify(events)
    while events:
        now, is_scored, number = heapq.heappop(events)
        if is_scored:
            pending_calls[number] -= 1
        else:
            queue.add(number, int(tokens[number]))
        for worker, positions in queue.assign(pending_calls):
            pending_calls[worker] += 1
            free[worker] = max(free[worker], now) + seconds_per_token * int(tokens[positions].sum())
            heapq.heappush(events, (free[worker], 1, worker))
    assert not queue
    return now
