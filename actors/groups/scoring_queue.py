"""Rollouts that wait to be scored, and which teacher worker gets how many of them."""

from collections import deque
from collections.abc import Sequence

from actors.object_batches import VALUES_PER_BATCH
from minirl.model.microbatch import plan_microbatches

CALLS_AHEAD = 2  # scoring calls that one worker may have, so that it does not wait for the driver between two full ones

Piece = tuple[int, list[int]]  # a worker, and the positions of what it gets


class ScoringQueue:
    """A queue of rollouts by position, dealt out in pieces. limit: tokens of a scoring pass.

    Whoever is idle gets its share of what waits, as if all workers would ask now: guided self-scheduling (Polychronopoulos and Kuck,
    1987). So the pieces shrink where little is left, and no worker ends an iteration with a long one while the others are idle.
    """

    def __init__(self, limit: int):
        self.limit, self.tokens = limit, 0
        self._waiting: deque[tuple[int, int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, position: int, tokens: int) -> None:
        self._waiting.append((position, tokens))
        self.tokens += tokens

    def pieces(self, calls: Sequence[int]) -> list[Piece]:
        """For idle workers, at most a pass each; for others where a whole pass waits for every worker. calls: that each worker has."""
        share, one_for_each = min(self.limit, -(-self.tokens // len(calls))), self.limit * len(calls)
        pieces, calls = [], list(calls)
        for worker, pending in enumerate(calls):
            if pending == 0 and self:
                pieces.append((worker, self._take(share)))
                calls[worker] += 1
        for worker, pending in enumerate(calls):
            if self.tokens < one_for_each:
                break
            if pending < CALLS_AHEAD:
                pieces.append((worker, self._take(self.limit)))
        return pieces

    def equal_shares(self, workers: int) -> list[Piece]:
        """All at once, dealt by tokens: what a worker gets depends on the rollouts alone and not on when they finished."""
        waiting, self._waiting, self.tokens = sorted(self._waiting), deque(), 0
        shares = plan_microbatches([tokens for _, tokens in waiting], workers, 2**62)
        return [(worker, [waiting[i][0] for i in share[0]]) for worker, share in enumerate(shares) if share and share[0]]

    def _take(self, share: int) -> list[int]:
        """At most `share` tokens; within the limit also more, to fill a batch with their scores."""
        taken, tokens = [], 0
        while self._waiting:
            position, length = self._waiting[0]
            if taken and tokens + length > (self.limit if len(taken) < VALUES_PER_BATCH else share):
                break
            self._waiting.popleft()
            taken.append(position)
            tokens += length
        self.tokens -= tokens
        return taken
