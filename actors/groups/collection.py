"""One iteration's rollouts on their way: sampled by one group, scored by another as they finish."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from actors.call_cost import CallCost
from actors.config import TeacherConfig
from actors.groups.base import Group, ready
from actors.groups.scoring_queue import ScoringQueue
from actors.object_batches import BatchedRef
from minirl.errors import RunError
from minirl.training.roles import SampledRollout


class ScoringGroup(Protocol):
    """What a collection asks of the teacher group, whether it holds one teacher or an ensemble.

    as_finished: each rollout is scored as soon as a worker is free, not when the last rollout has arrived.
    """

    config: TeacherConfig
    workers: list[Any]
    as_finished: bool
    step_timeout_s: float

    def begin_score(self, worker: int, asked: Sequence[Any]) -> tuple[ray.ObjectRef, list[BatchedRef]]: ...
    def result(self, ref: ray.ObjectRef, worker: int, phase: str) -> CallCost: ...
    def timed_out(self, worker: int, phase: str, limit_s: float) -> RunError: ...


@dataclass
class SamplingCall:
    """What one rollout worker was asked: its stream of results, and the place of its first request among all.

    batch: what came last, of which the next result tells.
    """

    worker: int
    stream: ray.ObjectRefGenerator
    first: int
    batch: ray.ObjectRef | None = None


@dataclass(frozen=True)
class ScoringCall:
    """What one teacher worker was asked: which rollouts, and where they will be with their scores."""

    worker: int
    positions: list[int]
    scored: list[BatchedRef]


class Collection:
    """Watches sampling and scoring from a thread of its own, so that both go on while the driver waits for something else.

    teacher None: the rollouts are not scored. A failure on the way is raised by `sampled` or `scores`. cpu_seconds: of that thread, once
    all is scored.
    """

    def __init__(self, rollout: Group, calls: list[SamplingCall], count: int, teacher: "ScoringGroup | None"):
        self.rollout, self.teacher, self.count = rollout, teacher, count
        self._streams: dict[Any, SamplingCall] = {call.stream: call for call in calls}
        self._finished: dict[int, SampledRollout] = {}
        self._unscored = ScoringQueue(teacher.config.micro_batch_tokens if teacher else 0)
        self._asked: dict[ray.ObjectRef, ScoringCall] = {}
        self._calls = [0] * len(teacher.workers) if teacher else []
        self._scores: dict[int, BatchedRef] = {}
        self._spent = {"rollout": CallCost(0.0), "teacher": CallCost(0.0)}
        self._all_sampled: Future[list[SampledRollout]] = Future()
        self._all_scored: Future[list[BatchedRef]] = Future()
        threading.Thread(target=self._run, name="collection", daemon=True).start()

    def sampled(self) -> list[SampledRollout]:
        """Wait for all rollouts; in the order of the requests."""
        return self._all_sampled.result()

    def scores(self) -> list[BatchedRef]:
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
            if call.batch is not None:  # nothing was told of it: it is how the call failed
                self.rollout.result(call.batch, call.worker, "sample")
            return
        if call.batch is None:
            call.batch = ref
            return
        effort, told = self.rollout.result(ref, call.worker, "sample")
        self._spent["rollout"] += effort
        for index, (position, summary) in enumerate(told):
            self._finished[call.first + position] = SampledRollout(BatchedRef(call.batch, index), summary)
            self._unscored.add(call.first + position, summary.tokens)
        call.batch = None

    def _take_scores(self, told: ray.ObjectRef) -> None:
        call = self._asked.pop(told)
        self._spent["teacher"] += self.teacher.result(told, call.worker, "score")
        self._calls[call.worker] -= 1
        self._scores |= dict(zip(call.positions, call.scored, strict=True))

    def _hand_out(self) -> None:
        """Give waiting rollouts to teacher workers that have nothing to do, or soon will."""
        as_finished, waiting = self.teacher.as_finished, self._unscored
        for worker, positions in waiting.pieces(self._calls) if as_finished else waiting.equal_shares(len(self._calls)):
            told, scored = self.teacher.begin_score(worker, [self._finished[position].rollout for position in positions])
            self._asked[told] = ScoringCall(worker, positions, scored)
            self._calls[worker] += 1


def _in_order(values: dict[int, Any], count: int) -> list[Any]:
    missing = count - len(values)
    if missing:
        raise RunError(f"{missing} of {count} rollouts never came, although every worker ended in order")
    return [values[position] for position in range(count)]
