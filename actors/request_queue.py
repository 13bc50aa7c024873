"""Request queue: the sampling requests of an iteration that are not dealt up front; an engine takes some when it has room.

The queue is a process of its own, because the workers take from it while the driver does something else. It holds pickled requests, so
that it need not import their types, which import torch.
"""

import pickle
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from minirl.types import SamplingRequest

PositionedRequest = tuple[int, "SamplingRequest"]  # a request, with its position among all requests of its iteration
QUEUED_SHARE = 4  # one in so many requests is queued


@dataclass
class QueuedRequests:
    """An engine's end of the queue. iteration: a number that the queue gave. share: an engine's equal share of the iteration.

    are_left: whether more may come. taken: how many have come. pending: the call that asks for more, until its answer is taken.

    An engine has at most its equal share under way. So an engine that is early, while the others are busy with the iteration before, does
    not take what these could begin soon.
    """

    queue: Any
    iteration: int
    share: int
    are_left: bool = True
    taken: int = 0
    pending: ray.ObjectRef | None = None

    def take(self, under_way: int) -> list[PositionedRequest]:
        """More requests, if some have come; asks for them without waiting. Waits if the engine has none under way."""
        if not self.are_left or under_way >= self.share:
            return []
        if self.pending is None:
            self.pending = self.queue.take.remote(self.iteration, self.share - under_way)
        if under_way and not ray.wait([self.pending], timeout=0)[0]:
            return []
        taken, self.are_left = ray.get(self.pending)
        self.pending, self.taken = None, self.taken + len(taken)
        return [pickle.loads(request) for request in taken]


class RequestQueue:
    """The queued requests of the iterations that were begun, in order.

    An engine takes half of an equal share of them at a time: few enough that all end at nearly the same time, and so many that a large
    batch is full after two steps.

    Worked example, two engines with 32 requests each, of which 24 were dealt and 8 are queued: each take gives 4.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, deque[bytes]] = {}
        self._sizes: dict[int, int] = {}  # of a take
        self._iterations = 0

    def add(self, requests: list[bytes], engines: int) -> int:
        """Adds the pickled requests of an iteration and returns its number. engines: how many take from it."""
        self._iterations += 1
        self._waiting[self._iterations], self._sizes[self._iterations] = deque(requests), -(-len(requests) // (2 * engines))
        return self._iterations

    def take(self, iteration: int, most: int) -> tuple[list[bytes], bool]:
        """The next pickled requests, and whether some are left."""
        if iteration not in self._waiting:
            return [], False
        waiting = self._waiting[iteration]
        taken = [waiting.popleft() for _ in range(min(most, self._sizes[iteration], len(waiting)))]
        if not waiting:
            del self._waiting[iteration], self._sizes[iteration]
        return taken, bool(waiting)


class RayRequestQueue(RequestQueue):
    """`RequestQueue` as a Ray actor."""

    def begin(self, requests: list[bytes], engines: int, share: int) -> QueuedRequests:
        """Adds an iteration and returns its engines' end."""
        return QueuedRequests(ray.get_runtime_context().current_actor, self.add(requests, engines), share)
