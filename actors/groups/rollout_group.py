"""The rollout group as the driver sees it: requests in, references to rollouts out."""

from itertools import pairwise
from typing import Any

from actors.config import ClusterConfig, RolloutConfig
from actors.groups.collection import Collection, SamplingCall, ScoringGroup
from actors.groups.engine_group import EngineGroup
from actors.groups.placement import CoreShare
from actors.object_batches import fetch
from actors.workers.ray_workers import RolloutRayWorker
from actors.workers.rollout import weight_transfer
from minirl.training.roles import SampledRollout
from minirl.types import Rollout, SamplingRequest


class RolloutGroup(EngineGroup):
    """Samples responses. The requests are dealt out in contiguous, equal shares, so that a prompt's samples share a prefix cache.

    engine: what `RolloutWorker` takes besides. Raises InputError where the weights cannot reach it as configured.
    """

    worker_class = RolloutRayWorker
    config: RolloutConfig

    def __init__(self, config: RolloutConfig, cluster: ClusterConfig, device: str, *, share: CoreShare | None = None, **engine: Any):
        weight_transfer(config, device)
        super().__init__("rollout", config, cluster, device, share, engine)

    def begin(self, requests: list[SamplingRequest], teacher: ScoringGroup | None, **options: Any) -> Collection:
        """Have the requests sampled, after all that was asked before, and scored by `teacher`.

        options: those of `RolloutWorker.sample_each`.
        """
        calls, first = [], 0
        for worker, share in enumerate(_contiguous(requests, len(self.workers))):
            if share:
                stream = self.workers[worker].sample_batches.options(num_returns="streaming").remote(share, options)
                calls.append(SamplingCall(worker, stream, first))
            first += len(share)
        return Collection(self, calls, len(requests), teacher)

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[SampledRollout]:
        """The same, waited for, and not scored."""
        return self.begin(requests, None, **options).sampled()

    def fetch(self, sampled: list[SampledRollout]) -> list[Rollout]:
        """The rollouts themselves: for evaluation, which reads their text."""
        return fetch([one.rollout for one in sampled], self.step_timeout_s)


def _contiguous(items: list[Any], parts: int) -> list[list[Any]]:
    """Equal shares, the first ones longer by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]
