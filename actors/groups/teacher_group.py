"""The teacher group as the driver sees it: rollouts or sequences in, references to their scores out."""

from collections.abc import Sequence
from typing import Any

from actors.config import ClusterConfig, TeacherConfig
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import CoreShare
from actors.object_batches import VALUES_PER_BATCH, BatchedRef, CallArguments, batched_refs
from actors.workers.ray_workers import Ref, TeacherRayWorker
from minirl.model.microbatch import plan_microbatches, restore_order
from minirl.types import TokenSequence


class TeacherGroup(EngineGroup):
    """Scores sequences. engine: what `TeacherWorker` takes besides.

    as_finished: each rollout is scored as soon as a worker is free for it. Else all are dealt out when the last one is there, so
    that what is scored together, and with it the last bits, does not depend on time.
    """

    worker_class = TeacherRayWorker
    config: TeacherConfig

    def __init__(
        self,
        config: TeacherConfig,
        cluster: ClusterConfig,
        device: str,
        *,
        share: CoreShare | None = None,
        as_finished: bool = True,
        role: str = "teacher",
        **engine: Any,
    ):
        self.as_finished = as_finished
        super().__init__(role, config, cluster, device, share, engine)

    def begin_score(self, worker: int, asked: Sequence[BatchedRef | TokenSequence]) -> tuple[Ref, list[BatchedRef]]:
        """Have one worker score rollouts (by place) or sequences (by value).

        Returns a reference to an `CallCost`, and the place of each item with its `TeacherScores`.
        """
        call_arguments = CallArguments()
        entries = [call_arguments.argument(one) for one in asked]
        call = self.workers[worker].score_batches.options(num_returns=1 + -(-len(asked) // VALUES_PER_BATCH))
        told, *batches = call.remote(entries, *call_arguments.batches)
        return told, batched_refs(batches, len(asked))

    def score(self, asked: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
        """The places of all with their `TeacherScores`, dealt out by tokens (the length of each) and waited for."""
        return score_dealt(self, asked, tokens)


def score_dealt(group: Any, asked: Sequence[BatchedRef | TokenSequence], tokens: Sequence[int]) -> list[BatchedRef]:
    """`score` of a group that begins to score at one worker."""
    shares = [share[0] for share in plan_microbatches(list(tokens), len(group.workers), 2**62)]
    calls = [group.begin_score(worker, [asked[i] for i in share]) for worker, share in enumerate(shares) if share]
    group.get([told for told, _ in calls], "score")
    order = [index for share in shares for index in share]
    return restore_order(order, [place for _, found in calls for place in found])
