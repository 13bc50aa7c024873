"""The groups of vLLM workers as the driver sees them: who of a group gets what, and results in the order of the questions.

The driver holds references to payloads and a few scalars each; `actors.shells` has what runs in the processes.
"""

from collections.abc import Sequence as Items
from itertools import pairwise
from typing import Any

from actors.collection import Collection, SamplingCall
from actors.config import ClusterConfig, EngineConfig, RolloutConfig, TeacherConfig
from actors.group import Group
from actors.parcel import PARCEL, Manifest, Place, fetch, places
from actors.placement import CoreShare, bundle, in_turn, worker_environment
from actors.rollout import weight_transfer
from actors.shells import Ref, RolloutShell, TeacherShell
from minirl.batch import in_order, plan_microbatches
from minirl.protocols import Sampled
from minirl.rollout import Rollout, SamplingRequest, Sequence


class EngineGroup(Group):
    """A group of vLLM workers, all built with the same arguments. share: of the machine's cores; None: the roles take turns."""

    shell: type

    def __init__(
        self, role: str, config: EngineConfig, cluster: ClusterConfig, device: str, share: CoreShare | None, engine: dict[str, Any]
    ):
        self.config = config
        share = share or in_turn(cluster, config)
        super().__init__(
            role,
            self.shell,
            lambda index: (
                engine | {"config": config, "device": device, "threads": share.threads, "cores": share.cores and share.cores[index]}
            ),
            workers=config.workers,
            bundle=bundle(config, device),
            environment=worker_environment(share.threads),
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )


class RolloutGroup(EngineGroup):
    """Samples responses. The requests are dealt out in contiguous, equal shares, so that a prompt's samples share a prefix cache.

    engine: what `RolloutWorker` takes besides. Raises InputError where the weights cannot reach it as configured.
    """

    shell = RolloutShell
    config: RolloutConfig

    def __init__(self, config: RolloutConfig, cluster: ClusterConfig, device: str, *, share: CoreShare | None = None, **engine: Any):
        self.transfer, self.joined = weight_transfer(config, device), False
        super().__init__("rollout", config, cluster, device, share, engine)

    def begin(self, requests: list[SamplingRequest], teacher: "TeacherGroup | None", **options: Any) -> Collection:
        """Have the requests sampled, after all that was asked before, and scored by `teacher`.

        options: those of `RolloutWorker.sample_each`.
        """
        calls, first = [], 0
        for worker, share in enumerate(_contiguous(requests, len(self.workers))):
            if share:
                stream = self.workers[worker].sample_apart.options(num_returns="streaming").remote(share, options)
                calls.append(SamplingCall(worker, stream, first))
            first += len(share)
        return Collection(self, calls, len(requests), teacher)

    def sample(self, requests: list[SamplingRequest], **options: Any) -> list[Sampled]:
        """The same, waited for, and not scored."""
        return self.begin(requests, None, **options).sampled()

    def fetch(self, sampled: list[Sampled]) -> list[Rollout]:
        """The rollouts themselves: for evaluation, which reads their text."""
        return fetch([one.rollout for one in sampled], self.step_timeout_s)


class TeacherGroup(EngineGroup):
    """Scores sequences. engine: what `TeacherWorker` takes besides.

    as_finished: each rollout is scored as soon as a worker is free for it. Else all are dealt out when the last one is there, so
    that what is scored together, and with it the last bits, does not depend on time.
    """

    shell = TeacherShell
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

    def begin_score(self, worker: int, asked: Items[Place | Sequence]) -> tuple[Ref, list[Place]]:
        """Have one worker score rollouts (by place) or sequences (by value).

        Returns a reference to an `Effort`, and the place of each item with its `TeacherScores`.
        """
        manifest = Manifest()
        entries = [manifest.entry(one) for one in asked]
        call = self.workers[worker].score_apart.options(num_returns=1 + -(-len(asked) // PARCEL))
        told, *parcels = call.remote(entries, *manifest.parcels)
        return told, places(parcels, len(asked))

    def score(self, asked: Items[Place | Sequence], tokens: Items[int]) -> list[Place]:
        """The places of all with their `TeacherScores`, dealt out by tokens (the length of each) and waited for."""
        return score_dealt(self, asked, tokens)


def score_dealt(group: Any, asked: Items[Place | Sequence], tokens: Items[int]) -> list[Place]:
    """`score` of a group that begins to score at one worker."""
    shares = [share[0] for share in plan_microbatches(list(tokens), len(group.workers), 2**62)]
    calls = [group.begin_score(worker, [asked[i] for i in share]) for worker, share in enumerate(shares) if share]
    group.get([told for told, _ in calls], "score")
    order = [index for share in shares for index in share]
    return in_order(order, [place for _, found in calls for place in found])


def _contiguous(items: list[Any], parts: int) -> list[list[Any]]:
    """Equal shares, the first ones longer by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]
