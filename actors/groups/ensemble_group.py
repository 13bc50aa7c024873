"""EnsembleGroup: several teacher groups with the interface of one; each adds its scores and passes the items on.

Each teacher has its own workers and engines, so that each can be scaled separately. The hidden states travel with their sequence.
"""

from collections.abc import Sequence

import ray

from actors.call_cost import CallCost
from actors.groups.teacher_group import TeacherGroup, score_across_workers
from actors.object_batches import BatchedRef
from actors.workers.ray_workers import Ref
from minirl.types import TokenSequence


class EnsembleGroup:
    """Scores with all members. members: in the order of the config, with equally many workers."""

    def __init__(self, members: list[TeacherGroup]):
        self.members, first = members, members[0]
        self.config, self.workers = first.config, first.workers
        self.as_finished, self.step_timeout_s = first.as_finished, first.step_timeout_s
        self._member_costs: dict[ray.ObjectRef, list[Ref]] = {}  # the last member's reference -> those of all members

    def begin_score(self, worker: int, inputs: Sequence[BatchedRef | TokenSequence]) -> tuple[Ref, list[BatchedRef]]:
        """Like `TeacherGroup.begin_score`, on the worker of this number in each member. The driver does not wait between the members."""
        cost_refs = []
        for member in self.members:
            cost_ref, inputs = member.begin_score(worker, inputs)
            cost_refs.append(cost_ref)
        self._member_costs[cost_ref] = cost_refs
        return cost_ref, list(inputs)

    def score(self, inputs: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
        return score_across_workers(self, inputs, tokens)

    def get(self, cost_refs: list[Ref], phase: str) -> list[CallCost]:
        """Waits for these calls within the deadline of one member. Returns the cost of each, summed over the members."""
        self.members[-1].get(cost_refs, phase)
        return [self.result(cost_ref, number, phase) for number, cost_ref in enumerate(cost_refs)]

    def result(self, cost_ref: Ref, worker: int, phase: str) -> CallCost:
        """The cost of a call that has ended, summed over the members."""
        total = CallCost(0.0)
        for member, member_ref in zip(self.members, self._member_costs.pop(cost_ref), strict=True):
            total += member.result(member_ref, worker, phase)
        return total

    def timeout_error(self, worker: int, phase: str, limit_s: float) -> Exception:
        return self.members[0].timeout_error(worker, phase, limit_s)
