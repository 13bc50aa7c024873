"""TeacherGroup: scores rollouts or sequences on its workers and returns references to the scores."""

from collections.abc import Sequence
from typing import Any

from actors.config import ClusterConfig, TeacherConfig
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import Places
from actors.object_batches import VALUES_PER_BATCH, BatchedRef, CallArguments, batched_refs
from actors.workers.ray_workers import Ref, TeacherRayWorker
from minirl.model.microbatch import plan_microbatches, restore_order
from minirl.types import TokenSequence


class TeacherGroup(EngineGroup):
    """Scores sequences. engine: further arguments of `TeacherWorker`.

    as_finished: score each rollout as soon as a worker is free. Otherwise all rollouts are distributed when the last one has arrived, so
    that neither the composition of the scoring passes nor the last bits of the scores depend on timing.
    """

    worker_class = TeacherRayWorker
    config: TeacherConfig

    def __init__(
        self,
        config: TeacherConfig,
        cluster: ClusterConfig,
        device: str,
        *,
        places: Places | None = None,
        as_finished: bool = True,
        role: str = "teacher",
        **engine: Any,
    ):
        self.as_finished = as_finished
        super().__init__(role, config, cluster, device, places, engine)

    def begin_score(self, worker: int, inputs: Sequence[BatchedRef | TokenSequence]) -> tuple[Ref, list[BatchedRef]]:
        """Starts scoring rollouts (by reference) or sequences (by value) on one worker, without waiting.

        Returns a reference to the call's `CallCost`, and one to each `OnPolicyItem` or `SupervisedItem` with its `TeacherScores`.
        """
        call_arguments = CallArguments()
        arguments = [call_arguments.argument(value) for value in inputs]
        call = self.workers[worker].score_batches.options(num_returns=1 + -(-len(inputs) // VALUES_PER_BATCH))
        cost_ref, *batches = call.remote(arguments, *call_arguments.batches)
        return cost_ref, batched_refs(batches, len(inputs))

    def score(self, inputs: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
        """Scores all inputs, balanced over the workers by tokens (the length of each input), and waits.

        Returns references to the items with their `TeacherScores`, in the order of the inputs.
        """
        return score_across_workers(self, inputs, tokens)


def score_across_workers(group: Any, inputs: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
    """`TeacherGroup.score` for any group that has `begin_score` and `get`."""
    shares = [share[0] for share in plan_microbatches(list(tokens), len(group.workers), 2**62)]
    calls = [group.begin_score(worker, [inputs[i] for i in share]) for worker, share in enumerate(shares) if share]
    group.get([cost_ref for cost_ref, _ in calls], "score")
    order = [index for share in shares for index in share]
    return restore_order(order, [ref for _, refs in calls for ref in refs])
