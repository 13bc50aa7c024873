"""ScoringQueue: rollouts that wait to be scored, and how many of them each teacher worker gets next."""

from collections import deque
from collections.abc import Sequence

from actors.object_batches import VALUES_PER_BATCH
from minirl.model.microbatch import plan_microbatches

MAX_PENDING_CALLS = 2  # scoring calls of one worker, so that it need not wait for the driver between two full passes

Assignment = tuple[int, list[int]]  # a worker, and the positions of the rollouts that it gets


class ScoringQueue:
    """A first-in, first-out queue of rollouts, identified by their positions. pass_tokens: the most tokens of one scoring pass.

    An idle worker gets 1/workers of the waiting tokens: guided self-scheduling (Polychronopoulos and Kuck, 1987). Shares therefore shrink
    towards the end of an iteration, and no worker ends it with a long share while the others are idle.
    """

    def __init__(self, pass_tokens: int):
        self.pass_tokens, self.tokens = pass_tokens, 0
        self._waiting: deque[tuple[int, int]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, position: int, tokens: int) -> None:
        self._waiting.append((position, tokens))
        self.tokens += tokens

    def assign(self, pending_calls: Sequence[int]) -> list[Assignment]:
        """Takes the next rollouts from the queue. pending_calls: the number of unfinished scoring calls of each worker.

        Each idle worker gets its share, at most one pass. While a whole pass per worker still waits, busy workers get a pass ahead.
        """
        pending_calls = list(pending_calls)
        share = min(self.pass_tokens, -(-self.tokens // len(pending_calls)))
        one_pass_per_worker = self.pass_tokens * len(pending_calls)
        assignments = []
        for worker, pending in enumerate(pending_calls):
            if pending == 0 and self:
                assignments.append((worker, self._take(share)))
                pending_calls[worker] += 1
        for worker, pending in enumerate(pending_calls):
            if self.tokens < one_pass_per_worker:
                break
            if pending < MAX_PENDING_CALLS:
                assignments.append((worker, self._take(self.pass_tokens)))
        return assignments

    def assign_all(self, workers: int) -> list[Assignment]:
        """Empties the queue into one share per worker, balanced by tokens. The shares do not depend on the order of arrival."""
        waiting, self._waiting, self.tokens = sorted(self._waiting), deque(), 0
        shares = plan_microbatches([tokens for _, tokens in waiting], workers, 2**62)
        return [(worker, [waiting[i][0] for i in share[0]]) for worker, share in enumerate(shares) if share and share[0]]

    def _take(self, share: int) -> list[int]:
        """Takes rollouts of at most `share` tokens, but at least one. Exceeds the share, up to one pass, to fill an object batch."""
        taken, tokens = [], 0
        while self._waiting:
            position, length = self._waiting[0]
            if taken and tokens + length > (self.pass_tokens if len(taken) < VALUES_PER_BATCH else share):
                break
            self._waiting.popleft()
            taken.append(position)
            tokens += length
        self.tokens -= tokens
        return taken
