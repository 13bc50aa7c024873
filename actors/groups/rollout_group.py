"""RolloutGroup: samples responses on its workers and returns references to the rollouts."""

from itertools import pairwise
from typing import Any

from actors.config import ClusterConfig, RolloutConfig
from actors.groups.collection import Collection, SamplingCall, ScoringGroup
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import Places
from actors.object_batches import fetch
from actors.workers.ray_workers import RolloutRayWorker
from actors.workers.rollout import weight_transfer
from minirl.training.inputs import OnPolicyItem
from minirl.training.roles import SampledRollout
from minirl.types import Rollout, SamplingRequest


class RolloutGroup(EngineGroup):
    """Samples responses. Each worker gets a contiguous, equal share of the requests, so that the samples of a prompt share a prefix cache.

    engine: further arguments of `RolloutWorker`. Raises InputError if `weight_transfer` is not possible on this device.
    """

    worker_class = RolloutRayWorker
    config: RolloutConfig

    def __init__(self, config: RolloutConfig, cluster: ClusterConfig, device: str, *, places: Places | None = None, **engine: Any):
        weight_transfer(config, device)
        super().__init__("rollout", config, cluster, device, places, engine)

    def begin(
        self, requests: list[SamplingRequest], teacher: ScoringGroup | None, *, with_scores: bool = False, **options: Any
    ) -> Collection:
        """Starts sampling the requests, behind all earlier calls, and scoring the rollouts. Does not wait.

        teacher: scores the rollouts; None: nothing does, or with `with_scores` the engines that sample them. options: further options of
        `RolloutWorker.sample_each`.
        """
        options["with_scores"] = with_scores
        calls, first = [], 0
        for worker, share in enumerate(_contiguous_shares(requests, len(self.workers))):
            if share:
                stream = self.workers[worker].sample_batches.options(num_returns="streaming").remote(share, options)
                calls.append(SamplingCall(worker, stream, first))
            first += len(share)
        return Collection(self, calls, len(requests), teacher, with_scores)

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[SampledRollout]:
        """Samples one response per request, and waits for all. With `with_scores`, each `rollout` is a reference to an `OnPolicyItem`."""
        return self.begin(requests, None, **options).sampled()

    def fetch(self, sampled: list[SampledRollout]) -> list[Rollout]:
        """Brings the rollouts to the driver, for evaluation, which reads their text."""
        values = fetch([rollout.rollout for rollout in sampled], self.step_timeout_s)
        return [value.rollout if isinstance(value, OnPolicyItem) else value for value in values]


def _contiguous_shares(items: list[Any], parts: int) -> list[list[Any]]:
    """Splits items into contiguous shares whose lengths differ by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]
