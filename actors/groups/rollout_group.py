"""RolloutGroup: samples responses on its workers and returns references to the rollouts."""

import pickle
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.config import ClusterConfig, RolloutConfig
from actors.groups.collection import Collection, SamplingCall, ScoringGroup
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import Places
from actors.object_batches import fetch
from actors.request_queue import QUEUED_SHARE, PositionedRequest, RayRequestQueue
from actors.workers.ray_workers import RolloutRayWorker
from actors.workers.rollout import weight_transfer
from minirl.training.inputs import OnPolicyItem
from minirl.training.roles import SampledRollout
from minirl.types import Rollout, SamplingRequest


class RolloutGroup(EngineGroup):
    """Samples responses. Each worker gets most of a contiguous, equal share of the requests, so that the samples of a prompt share a prefix
    cache. The workers take the rest from a queue when they have room: one that is slow or still busy takes less.

    fixed_shares: each worker gets its whole share, so that neither the composition of the engines' batches nor the last bits of the
    log-probs depend on timing. engine: further arguments of `RolloutWorker`. Raises InputError if `weight_transfer` is not possible on this
    device.
    """

    worker_class = RolloutRayWorker
    config: RolloutConfig

    def __init__(
        self,
        config: RolloutConfig,
        cluster: ClusterConfig,
        device: str,
        *,
        places: Places | None = None,
        fixed_shares: bool = False,
        **engine: Any,
    ):
        weight_transfer(config, device)
        super().__init__("rollout", config, cluster, device, places, engine)
        self._queue = None if fixed_shares or config.workers == 1 else _start_queue()
        self._sampled: Future[float] | None = None  # when the last collection ended to sample

    def begin(
        self, requests: list[SamplingRequest], teacher: ScoringGroup | None, *, with_scores: bool = False, **options: Any
    ) -> Collection:
        """Starts sampling the requests, behind all earlier calls, and scoring the rollouts. Does not wait.

        teacher: scores the rollouts; None: nothing does, or with `with_scores` the engines that sample them. options: further options of
        `RolloutWorker.sample_each`.
        """
        options["with_scores"] = with_scores
        dealt, queued = self._distribute(requests)
        calls = [
            SamplingCall(worker, self.workers[worker].sample_batches.options(num_returns="streaming").remote(share, queued, options))
            for worker, share in enumerate(dealt)
            if share
        ]
        collection = Collection(self, calls, len(requests), teacher, with_scores, self._sampled)
        self._sampled = collection.sampling_ended
        return collection

    def _distribute(self, requests: list[SamplingRequest]) -> tuple[list[list[PositionedRequest]], Any]:
        """What each worker gets, and from what it takes more: a reference to `QueuedRequests`, or None."""
        shares = _contiguous_shares(list(enumerate(requests)), len(self.workers))
        kept = [len(share) - len(share) // QUEUED_SHARE for share in shares]
        if self._queue is None or sum(kept) == len(requests):
            return shares, None
        queued = [pickle.dumps(pair) for share, count in zip(shares, kept, strict=True) for pair in share[count:]]
        dealt = [share[:count] for share, count in zip(shares, kept, strict=True)]
        return dealt, self._queue.begin.remote(queued, len(shares), max(map(len, shares)))

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[SampledRollout]:
        """Samples one response per request, and waits for all. With `with_scores`, each `rollout` is a reference to an `OnPolicyItem`."""
        return self.begin(requests, None, **options).sampled()

    def fetch(self, sampled: list[SampledRollout]) -> list[Rollout]:
        """Brings the rollouts to the driver, for evaluation, which reads their text."""
        values = fetch([rollout.rollout for rollout in sampled], self.step_timeout_s)
        return [value.rollout if isinstance(value, OnPolicyItem) else value for value in values]

    def stop(self) -> None:
        super().stop()
        if self._queue is not None:
            ray.kill(self._queue)


def _start_queue() -> ray.actor.ActorHandle:
    """The queue's process, on the driver's node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(RayRequestQueue).options(num_cpus=0, scheduling_strategy=here).remote()


def _contiguous_shares(items: list[Any], parts: int) -> list[list[Any]]:
    """Splits items into contiguous shares whose lengths differ by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]
