"""Several teacher groups as one: what is scored goes from one to the next, and each adds what it says of it.

Each teacher keeps workers and engines of its own, so that each scales by itself; hidden states go on beside the sequence they belong to.
"""

from collections.abc import Sequence

import ray

from actors.call_cost import CallCost
from actors.groups.teacher_group import TeacherGroup, score_dealt
from actors.object_batches import BatchedRef
from actors.workers.ray_workers import Ref
from minirl.types import TokenSequence


class EnsembleGroup:
    """Speaks for all its members as a `TeacherGroup` would. members: in the order of the config, with equally many workers."""

    def __init__(self, members: list[TeacherGroup]):
        self.members, first = members, members[0]
        self.config, self.workers, self.as_finished, self.step_timeout_s = (
            first.config,
            first.workers,
            first.as_finished,
            first.step_timeout_s,
        )
        self._calls: dict[ray.ObjectRef, list[Ref]] = {}

    def begin_score(self, worker: int, asked: Sequence[BatchedRef | TokenSequence]) -> tuple[Ref, list[BatchedRef]]:
        """As of `TeacherGroup`; the same worker of each member, one after the other, without the driver waiting in between."""
        calls = []
        for member in self.members:
            told, asked = member.begin_score(worker, asked)
            calls.append(told)
        self._calls[told] = calls
        return told, list(asked)

    def score(self, asked: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
        return score_dealt(self, asked, tokens)

    def get(self, calls: list[Ref], phase: str) -> list[CallCost]:
        """What all members spent on each call, within the deadline of one."""
        self.members[-1].get(calls, phase)
        return [self.result(told, number, phase) for number, told in enumerate(calls)]

    def result(self, told: Ref, worker: int, phase: str) -> CallCost:
        spent = CallCost(0.0)
        for member, call in zip(self.members, self._calls.pop(told), strict=True):
            spent += member.result(call, worker, phase)
        return spent

    def timed_out(self, worker: int, phase: str, seconds: float) -> Exception:
        return self.members[0].timed_out(worker, phase, seconds)
