"""Collection: one iteration's rollouts, sampled and possibly scored by the rollout group, or scored by the teacher group."""

import math
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
    """What a collection needs from the teacher side: a `TeacherGroup`, or an `EnsembleGroup` of several.

    as_finished: score each rollout as soon as a worker is free, not when the last rollout has arrived.
    """

    config: TeacherConfig
    workers: list[Any]
    as_finished: bool
    step_timeout_s: float

    def begin_score(self, worker: int, inputs: Sequence[Any]) -> tuple[ray.ObjectRef, list[BatchedRef]]: ...
    def result(self, ref: ray.ObjectRef, worker: int, phase: str) -> CallCost: ...
    def timeout_error(self, worker: int, phase: str, limit_s: float) -> RunError: ...


@dataclass
class SamplingCall:
    """A call that samples on one rollout worker. stream: its results, which alternate: a batch of rollouts, then that batch's summaries.

    batch: a batch that has arrived before its summaries, else None.
    """

    worker: int
    stream: ray.ObjectRefGenerator
    batch: ray.ObjectRef | None = None


@dataclass(frozen=True)
class ScoringCall:
    """A call that scores on one teacher worker. positions: of its rollouts among all. refs: to the rollouts with their scores."""

    worker: int
    positions: list[int]
    refs: list[BatchedRef]


class Collection:
    """Collects `count` rollouts and their scores in a background thread, so that both go on while the driver waits for something else.

    calls: the sampling calls, already started. teacher: scores the rollouts; None if nothing does, or if the rollouts arrive with scores
    (with_scores). If a worker fails, `sampled` or `scores` raises the error. cpu_seconds: CPU time of the thread, set when all rollouts are
    scored. earlier: the `sampling_ended` of the collection behind which the calls queue, if there is one. The deadline of the first result
    counts from its end. sampling_ended: gets the moment, in monotonic seconds, when no call samples any more.
    """

    def __init__(
        self,
        rollout: Group,
        calls: list[SamplingCall],
        count: int,
        teacher: ScoringGroup | None,
        with_scores: bool = False,
        earlier: Future[float] | None = None,
    ):
        self._with_scores = with_scores
        self._earlier, self.sampling_ended = earlier, Future[float]()
        self._waiting_since = time.monotonic()  # for a result
        self.rollout, self.teacher, self.count = rollout, teacher, count
        self._streams: dict[Any, SamplingCall] = {call.stream: call for call in calls}
        self._finished: dict[int, SampledRollout] = {}
        self._queue = ScoringQueue(teacher.config.micro_batch_tokens if teacher else 0)
        self._scoring_calls: dict[ray.ObjectRef, ScoringCall] = {}  # by the reference to the call's cost
        self._pending_calls = [0] * len(teacher.workers) if teacher else []  # of each teacher worker
        self._scores: dict[int, BatchedRef] = {}
        self._costs = {"rollout": CallCost(0.0), "teacher": CallCost(0.0)}
        self._all_sampled: Future[list[SampledRollout]] = Future()
        self._all_scored: Future[list[BatchedRef]] = Future()
        threading.Thread(target=self._run, name="collection", daemon=True).start()

    def sampled(self) -> list[SampledRollout]:
        """Waits for all rollouts and returns them in the order of the requests."""
        return self._all_sampled.result()

    def scores(self) -> list[BatchedRef]:
        """Waits until all rollouts are scored. Returns references to `OnPolicyItem`s, in the order of the requests."""
        return self._all_scored.result()

    @property
    def call_costs(self) -> dict[str, float]:
        """For each role: busy seconds, mean over its workers, and bytes of the rollouts or scores that it produced.

        Without a teacher group there are those of the rollout group alone. They include the scores, if the rollouts arrive with them.
        """
        workers = {"rollout": len(self.rollout.workers)} | ({"teacher": len(self.teacher.workers)} if self.teacher else {})
        seconds = {f"{role}/busy_seconds": self._costs[role].seconds / count for role, count in workers.items()}
        return seconds | {f"{role}/payload_bytes": self._costs[role].bytes for role in workers}

    def _run(self) -> None:
        try:
            while self._streams:
                self._advance()
            self.sampling_ended.set_result(time.monotonic())
            self._all_sampled.set_result(_in_order(self._finished, self.count))
            while self.teacher and (self._queue or self._scoring_calls):
                self._start_scoring()
                self._advance()
            self.cpu_seconds = time.thread_time()
            self._all_scored.set_result(_in_order(self._scores, self.count if self.teacher or self._with_scores else 0))
        except BaseException as error:  # also SystemExit: a thread that waits in `sampled` or `scores` would hang
            if not self.sampling_ended.done():
                self.sampling_ended.set_result(time.monotonic())
            for future in (self._all_sampled, self._all_scored):
                if not future.done():
                    future.set_exception(error)

    def _advance(self) -> None:
        """Waits for the next results of either group and processes them."""
        group = self.rollout if self._streams else self.teacher
        deadline = self._waiting_since + group.step_timeout_s
        done, pending = ready([*self._streams, *self._scoring_calls], deadline - time.monotonic())
        if not done:
            if (began := self._could_begin()) > self._waiting_since:
                self._waiting_since = began
                return
            call = (self._streams or self._scoring_calls)[pending[0]]
            raise group.timeout_error(call.worker, "sample" if self._streams else "score", group.step_timeout_s)
        self._waiting_since = time.monotonic()
        for ref in done:
            if ref in self._streams:
                self._take_rollouts(self._streams[ref])
            else:
                self._take_scores(ref)
        if self.teacher and self.teacher.as_finished:
            self._start_scoring()

    def _could_begin(self) -> float:
        """The earliest moment at which no worker was busy with the earlier collection: now, if one still is."""
        if self._earlier is None:
            return -math.inf
        return self._earlier.result() if self._earlier.done() else time.monotonic()

    def _take_rollouts(self, call: SamplingCall) -> None:
        try:
            ref = next(call.stream)
        except StopIteration:
            del self._streams[call.stream]
            if call.batch is not None:  # a stream that ends between a batch and its summaries has failed, and `batch` holds the error
                self.rollout.result(call.batch, call.worker, "sample")
            return
        if call.batch is None:
            call.batch = ref
            return
        cost, summaries = self.rollout.result(ref, call.worker, "sample")
        self._costs["rollout"] += cost
        for index, (position, summary) in enumerate(summaries):
            ref = BatchedRef(call.batch, index)
            self._finished[position] = SampledRollout(ref, summary)
            if self._with_scores:
                self._scores[position] = ref
            else:
                self._queue.add(position, summary.tokens)
        call.batch = None

    def _take_scores(self, cost_ref: ray.ObjectRef) -> None:
        call = self._scoring_calls.pop(cost_ref)
        self._costs["teacher"] += self.teacher.result(cost_ref, call.worker, "score")
        self._pending_calls[call.worker] -= 1
        self._scores |= dict(zip(call.positions, call.refs, strict=True))

    def _start_scoring(self) -> None:
        """Assigns waiting rollouts to teacher workers that are idle or soon will be."""
        queue, pending = self._queue, self._pending_calls
        for worker, positions in queue.assign(pending) if self.teacher.as_finished else queue.assign_all(len(pending)):
            cost_ref, refs = self.teacher.begin_score(worker, [self._finished[position].rollout for position in positions])
            self._scoring_calls[cost_ref] = ScoringCall(worker, positions, refs)
            pending[worker] += 1


def _in_order(values: dict[int, Any], count: int) -> list[Any]:
    missing = count - len(values)
    if missing:
        raise RunError(f"{missing} of {count} rollouts are missing although every worker ended without an error; report this as a bug")
    return [values[position] for position in range(count)]
