"""One iteration's rollouts on their way: sampled by one group, scored by another as they finish."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from actors.effort import Effort
from actors.group import Group, ready
from actors.parcel import PARCEL, Place
from minirl.batch import plan_microbatches
from minirl.errors import RunError
from minirl.protocols import Sampled

if TYPE_CHECKING:
    from actors.engine_groups import TeacherGroup

CALLS_AHEAD = 2  # scoring calls that one worker may have, so that it does not wait for the driver between two full ones


@dataclass
class SamplingCall:
    """What one rollout worker was asked: its stream of results, and the place of its first request among all.

    parcel: what came last, of which the next result tells.
    """

    worker: int
    stream: ray.ObjectRefGenerator
    first: int
    parcel: ray.ObjectRef | None = None


@dataclass(frozen=True)
class ScoringCall:
    """What one teacher worker was asked: which rollouts, and where they will be with their scores."""

    worker: int
    positions: list[int]
    scored: list[Place]


class Collection:
    """Watches sampling and scoring from a thread of its own, so that both go on while the driver waits for something else.

    teacher None: the rollouts are not scored. A failure on the way is raised by `sampled` or `scores`. cpu_seconds: of that thread, once
    all is scored.
    """

    def __init__(self, rollout: Group, calls: list[SamplingCall], count: int, teacher: "TeacherGroup | None"):
        self.rollout, self.teacher, self.count = rollout, teacher, count
        self._streams: dict[Any, SamplingCall] = {call.stream: call for call in calls}
        self._finished: dict[int, Sampled] = {}
        self._unscored: deque[int] = deque()
        self._unscored_tokens = 0
        self._asked: dict[ray.ObjectRef, ScoringCall] = {}
        self._calls = [0] * len(teacher.workers) if teacher else []
        self._scores: dict[int, Place] = {}
        self._spent = {"rollout": Effort(0.0), "teacher": Effort(0.0)}
        self._all_sampled: Future[list[Sampled]] = Future()
        self._all_scored: Future[list[Place]] = Future()
        threading.Thread(target=self._run, name="collection", daemon=True).start()

    def sampled(self) -> list[Sampled]:
        """Wait for all rollouts; in the order of the requests."""
        return self._all_sampled.result()

    def scores(self) -> list[Place]:
        """Wait for all to be scored; where each rollout is with its `TeacherScores`, in the order of the requests."""
        return self._all_scored.result()

    @property
    def effort(self) -> dict[str, float]:
        """Seconds of each role's mean worker, and bytes of what it produced."""
        workers = {"rollout": len(self.rollout.workers), "teacher": len(self.teacher.workers) if self.teacher else 1}
        seconds = {f"{role}/busy_seconds": effort.seconds / workers[role] for role, effort in self._spent.items()}
        return seconds | {f"{role}/payload_bytes": effort.bytes for role, effort in self._spent.items()}

    def _run(self) -> None:
        try:
            while self._streams:
                self._advance()
            self._all_sampled.set_result(_in_order(self._finished, self.count))
            while self.teacher and (self._unscored or self._asked):
                self._hand_out()
                self._advance()
            self.cpu_seconds = time.thread_time()
            self._all_scored.set_result(_in_order(self._scores, self.count if self.teacher else 0))
        except BaseException as error:  # also what only ends this thread: whoever waits must hear of it
            for future in (self._all_sampled, self._all_scored):
                if not future.done():
                    future.set_exception(error)

    def _advance(self) -> None:
        """Wait for the next results of either group, and take them."""
        group = self.rollout if self._streams else self.teacher
        done, waiting = ready([*self._streams, *self._asked], group.step_timeout_s)
        if not done:
            worker = self._streams[waiting[0]].worker if self._streams else self._asked[waiting[0]].worker
            raise group.timed_out(worker, "sample" if self._streams else "score", group.step_timeout_s)
        for one in done:
            if one in self._streams:
                self._take_rollouts(self._streams[one])
            else:
                self._take_scores(one)
        if self.teacher and self.teacher.as_finished:
            self._hand_out()

    def _take_rollouts(self, call: SamplingCall) -> None:
        try:
            ref = next(call.stream)
        except StopIteration:
            del self._streams[call.stream]
            if call.parcel is not None:  # nothing was told of it: it is how the call failed
                self.rollout.value(call.parcel, call.worker, "sample")
            return
        if call.parcel is None:
            call.parcel = ref
            return
        effort, told = self.rollout.value(ref, call.worker, "sample")
        self._spent["rollout"] += effort
        for index, (position, summary) in enumerate(told):
            self._finished[call.first + position] = Sampled(Place(call.parcel, index), summary)
            self._unscored.append(call.first + position)
            self._unscored_tokens += summary.tokens
        call.parcel = None

    def _take_scores(self, told: ray.ObjectRef) -> None:
        call = self._asked.pop(told)
        self._spent["teacher"] += self.teacher.value(told, call.worker, "score")
        self._calls[call.worker] -= 1
        self._scores |= dict(zip(call.positions, call.scored, strict=True))

    def _hand_out(self) -> None:
        """Give waiting rollouts to teacher workers that have nothing to do, or soon will."""
        for worker, positions in self._pieces() if self.teacher.as_finished else self._equal_shares():
            told, scored = self.teacher.begin_score(worker, [self._finished[position].rollout for position in positions])
            self._asked[told] = ScoringCall(worker, positions, scored)
            self._calls[worker] += 1

    def _pieces(self) -> Iterator[tuple[int, list[int]]]:
        """(worker, rollouts) for idle workers, at most a scoring pass each; for busy ones where a whole pass is waiting too."""
        limit = self.teacher.config.micro_batch_tokens
        idle = [worker for worker, calls in enumerate(self._calls) if not calls]
        share = min(limit, -(-self._unscored_tokens // max(len(idle), 1)))
        for worker in idle:
            if not self._unscored:
                return
            yield worker, self._take_unscored(share, limit)
        for worker, calls in enumerate(self._calls):
            if self._unscored_tokens < limit:
                return
            if calls < CALLS_AHEAD:
                yield worker, self._take_unscored(limit, limit)

    def _take_unscored(self, share: int, limit: int) -> list[int]:
        """Rollouts of at most `share` tokens; within the limit also more, to fill a parcel with their scores."""
        taken, tokens = [], 0
        while self._unscored:
            tokens += self._tokens(self._unscored[0])
            if taken and tokens > (limit if len(taken) < PARCEL else share):
                break
            taken.append(self._unscored.popleft())
        self._unscored_tokens -= sum(map(self._tokens, taken))
        return taken

    def _equal_shares(self) -> list[tuple[int, list[int]]]:
        """All rollouts at once, dealt by tokens: what a worker gets depends on the rollouts alone and not on when they finished."""
        positions, self._unscored = sorted(self._unscored), deque()
        shares = plan_microbatches([self._tokens(position) for position in positions], len(self.teacher.workers), 2**62)
        return [(worker, [positions[i] for i in share[0]]) for worker, share in enumerate(shares) if share and share[0]]

    def _tokens(self, position: int) -> int:
        return self._finished[position].summary.tokens


def _in_order(values: dict[int, Any], count: int) -> list[Any]:
    missing = count - len(values)
    if missing:
        raise RunError(f"{missing} of {count} rollouts never came, although every worker ended in order")
    return [values[position] for position in range(count)]
