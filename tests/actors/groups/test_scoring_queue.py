"""Who scores what: nothing is lost, no pass is too long, and no worker ends with a long piece while the others are idle."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.groups.scoring_queue import CALLS_AHEAD, ScoringQueue

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def waiting(tokens: list[int], limit: int) -> ScoringQueue:
    unscored = ScoringQueue(limit)
    for position, length in enumerate(tokens):
        unscored.add(position, length)
    return unscored


@given(lengths, st.lists(st.integers(0, CALLS_AHEAD), min_size=1, max_size=6), st.integers(1, 500))
def test_pieces_follow_the_queue_and_the_limit(tokens, calls, limit):
    unscored = waiting(tokens, limit)
    pieces = unscored.pieces(calls)
    taken = [position for _, positions in pieces for position in positions]
    assert taken == list(range(len(taken))), "first come, first served, and each once"
    assert unscored.tokens == sum(tokens[len(taken) :]) and bool(unscored) == (len(taken) < len(tokens))
    assert all(len(positions) == 1 or sum(tokens[i] for i in positions) <= limit for _, positions in pieces)
    idle = {worker for worker, pending in enumerate(calls) if pending == 0}
    assert {worker for worker, _ in pieces} >= idle or not unscored, "while something waits, nobody stays idle"
    for worker, pending in enumerate(calls):
        assert pending + sum(one == worker for one, _ in pieces) <= CALLS_AHEAD


def test_worked_example():
    unscored = waiting([100] * 20, 800)
    assert unscored.pieces([0, 1]) == [(0, list(range(8)))], "a whole pass for the idle one; for the busy one a second does not wait"
    assert unscored.pieces([0, 1]) == [(0, list(range(8, 14)))], "half of what is left"
    assert unscored.pieces([1, 1]) == []
    assert unscored.pieces([1, 0]) == [(1, [14, 15, 16, 17])], "a parcel is filled"
    assert waiting([100] * 24, 800).pieces([1, 1]) == [(0, list(range(8))), (1, list(range(8, 16)))], "a pass waits for each"
    assert waiting([100] * 16, 800).pieces([1, 1]) == [(0, list(range(8)))]
    assert waiting([100] * 48, 800).pieces([2, 2]) == []
    assert waiting([900, 5], 800).pieces([0]) == [(0, [0])], "what is longer than a pass goes alone"


@given(lengths, st.integers(1, 6))
def test_equal_shares_do_not_depend_on_the_order_in_which_rollouts_finished(tokens, workers):
    unscored, shuffled = waiting(tokens, 64), ScoringQueue(64)
    for position in np.random.default_rng(len(tokens)).permutation(len(tokens)).tolist():
        shuffled.add(position, tokens[position])
    shares = unscored.equal_shares(workers)
    assert shares == shuffled.equal_shares(workers)
    assert sorted(position for _, positions in shares for position in positions) == list(range(len(tokens)))
    assert not unscored and unscored.equal_shares(workers) == []
    loads = [0] * workers
    for worker, positions in shares:
        loads[worker] += sum(tokens[i] for i in positions)
    assert max(loads) - min(loads) <= max(tokens)


@pytest.mark.parametrize("workers", [1, 2, 16, 256])
@pytest.mark.parametrize("load", [0.6, 0.9])
def test_scoring_ends_soon_after_sampling(workers, load):
    """In a simulated clock: 16 rollouts a worker come within a second, a quarter of them with its end; scoring takes `load` seconds."""
    draw = np.random.default_rng(workers)
    tokens = draw.integers(160, 384, 16 * workers)
    arrivals = np.sort(np.where(np.arange(len(tokens)) % 4, draw.uniform(0.25, 1.0, len(tokens)), 1.0))
    seconds_a_token = load * workers / tokens.sum()
    perfect = 0.0  # one worker, as fast as all of them
    for arrival, length in zip(arrivals, tokens, strict=True):
        perfect = max(perfect, arrival) + length * seconds_a_token / workers
    parcel = 4 * 384 * seconds_a_token
    assert _simulate(tokens, arrivals, workers, seconds_a_token, limit=4096) <= perfect + 2 * parcel


def _simulate(tokens: np.ndarray, arrivals: np.ndarray, workers: int, seconds_a_token: float, limit: int) -> float:
    unscored, calls, free, now = ScoringQueue(limit), [0] * workers, [0.0] * workers, 0.0
    events = [(moment, 0, position) for position, moment in enumerate(arrivals)]  # (when, 0: finished / 1: scored, rollout / worker)
    heapq.heapify(events)
    while events:
        now, scored, number = heapq.heappop(events)
        if scored:
            calls[number] -= 1
        else:
            unscored.add(number, int(tokens[number]))
        for worker, positions in unscored.pieces(calls):
            calls[worker] += 1
            free[worker] = max(free[worker], now) + seconds_a_token * int(tokens[positions].sum())
            heapq.heappush(events, (free[worker], 1, worker))
    assert not unscored
    return now
