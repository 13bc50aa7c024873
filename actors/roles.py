"""The three groups as the driver sees them, and publishing between two of them.

Payloads (rollouts, teacher scores, advantages, weights) go from worker to worker through Ray's object store; the driver holds their
references and a few scalars each.
"""

from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import ray

from actors.config import ClusterConfig, EngineConfig, LearnerConfig, LearnerSetup
from actors.group import Group
from actors.placement import bundle, threads_of, worker_environment
from actors.rendezvous import host, join
from actors.rollout import RolloutWorker
from actors.teacher import TeacherWorker
from actors.weights import checksum
from minirl.batch import plan_microbatches
from minirl.driver import Sampled
from minirl.rollout import Rollout, RolloutSummary, SamplingRequest, Sequence
from minirl.update import OnPolicyItem, SupervisedItem, UpdateStep

Ref = ray.ObjectRef


class RolloutShell(RolloutWorker):
    """`RolloutWorker` in a Ray actor: its rollouts become objects of their own."""

    def sample_apart(self, requests: list[SamplingRequest], options: dict[str, Any]) -> list[Any]:
        rollouts = self.sample(requests, **options)
        return [[rollout.summary for rollout in rollouts], *rollouts]


class TeacherShell(TeacherWorker):
    def score_apart(self, *asked: Rollout | Sequence) -> list[Any]:
        scores = self.score([item.sequence if isinstance(item, Rollout) else item for item in asked])
        return [len(scores), *scores]


class RolloutGroup:
    """Samples responses; the requests are dealt out in contiguous, equal shares, so that a prompt's samples share a prefix cache."""

    def __init__(self, config: EngineConfig, cluster: ClusterConfig, device: str, **engine: Any):
        self._group = _engine_group("rollout", RolloutShell, config, cluster, device, engine)
        self.wait_started = self._group.wait_started
        self.stop = self._group.stop

    def sample(
        self, requests: list[SamplingRequest], *, teacher_share: float, max_response_tokens: int, weight_version: int
    ) -> list[Sampled]:
        options = {"teacher_share": teacher_share, "max_response_tokens": max_response_tokens, "weight_version": weight_version}
        shares = [share for share in _contiguous(requests, len(self._group.workers)) if share]
        calls = [
            worker.sample_apart.options(num_returns=len(share) + 1).remote(share, options)
            for worker, share in zip(self._group.workers, shares, strict=False)
        ]
        summaries: list[list[RolloutSummary]] = self._group.get([refs[0] for refs in calls], "sample")
        pairs = [zip(refs[1:], known, strict=True) for refs, known in zip(calls, summaries, strict=True)]
        return [Sampled(rollout, summary) for share in pairs for rollout, summary in share]

    def fetch(self, sampled: list[Sampled]) -> list[Rollout]:
        """The rollouts themselves: for evaluation, which reads their text."""
        return ray.get([one.rollout for one in sampled], timeout=self._group.step_timeout_s)

    def load(self, buckets: list[tuple[Ref, int]], version: int) -> None:
        self._group.call("begin_update", phase="publish")
        for bucket, expected in buckets:
            self._group.call("load_bucket", bucket, expected, phase="publish")
        self._group.call("finish_update", version, phase="publish")


class TeacherGroup:
    """Scores sequences; dealt out by tokens."""

    def __init__(self, config: EngineConfig, cluster: ClusterConfig, device: str, **engine: Any):
        self._group = _engine_group("teacher", TeacherShell, config, cluster, device, engine)
        self.wait_started = self._group.wait_started
        self.stop = self._group.stop

    def score(self, asked: Items[Ref | Sequence], tokens: Items[int]) -> list[Ref]:
        """References to the `TeacherScores` of rollouts (by reference) or sequences (by value); tokens: the length of each."""
        shares = [share[0] for share in plan_microbatches(list(tokens), len(self._group.workers), 2**62) if share[0]]
        calls = [
            worker.score_apart.options(num_returns=len(share) + 1).remote(*[asked[i] for i in share])
            for worker, share in zip(self._group.workers, shares, strict=False)
        ]
        self._group.get([refs[0] for refs in calls], "score")
        scored = {index: ref for refs, share in zip(calls, shares, strict=True) for index, ref in zip(share, refs[1:], strict=True)}
        return [scored[index] for index in range(len(asked))]


class LearnerShell:
    """`Learner` in a Ray actor: joins the other ranks, fetches what it is handed by reference, puts out what it returns by reference."""

    def __init__(self, rank: int, workers: int, timeout_s: float):
        self.rank, self.workers, self.timeout_s, self._store = rank, workers, timeout_s, None

    def host(self) -> tuple[str, int]:
        self._store, address, port = host(self.timeout_s)
        return address, port

    def start(self, address: str, port: int, setup: LearnerSetup) -> None:
        from actors.learner import Learner  # DeepSpeed takes seconds to import, and only the ranks need it

        join(self._store, address, port, rank=self.rank, workers=self.workers, device=setup.device, timeout_s=self.timeout_s)
        self.learner = Learner(setup)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.learner, method)(*arguments)

    def update(self, step: UpdateStep, on_policy: list[list[OnPolicyItem]], supervised: list[list[SupervisedItem]]) -> dict[str, float]:
        return self.learner.update(step, self._fetch(on_policy), self._fetch(supervised))

    def frozen_advantages(self, microbatches: list[list[OnPolicyItem]]) -> list[np.ndarray]:
        return self.learner.frozen_advantages(self._fetch(microbatches))

    def divergences(self, microbatches: list[list[SupervisedItem]]) -> list[tuple[float, float, int]]:
        return self.learner.divergences(self._fetch(microbatches))

    def put_weights(self, dtype: str) -> list[tuple[Ref, int]]:
        return [(ray.put(bucket), checksum(bucket)) for bucket in self.learner.packed_weights(dtype)]

    def _fetch(self, microbatches: list[list[Any]]) -> list[list[Any]]:
        refs = {value for items in microbatches for item in items for value in vars(item).values() if isinstance(value, Ref)}
        values = dict(zip(refs, ray.get(list(refs), timeout=self.timeout_s), strict=True))
        return [
            [replace(item, **{name: values[v] for name, v in vars(item).items() if isinstance(v, Ref)}) for item in items]
            for items in microbatches
        ]


class LearnerGroup:
    """The DeepSpeed ranks. Items are dealt out by tokens; every rank runs equally many micro-batches."""

    def __init__(self, setup: LearnerSetup, cluster: ClusterConfig):
        config: LearnerConfig = setup.config
        self.config = config
        self._cluster = cluster
        self._setup = replace(setup, threads=threads_of(cluster, config))
        self._group = Group(
            "learner",
            LearnerShell,
            lambda rank: {"rank": rank, "workers": config.workers, "timeout_s": cluster.step_timeout_s},
            workers=config.workers,
            bundle=bundle(config, setup.device),
            environment=worker_environment(self._setup.threads),
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )
        self.stop = self._group.stop
        self._starting = [self._group.workers[0].host.remote()]

    def wait_started(self) -> None:
        address, port = self._group.get(self._starting, "start", self._cluster.start_timeout_s)[0]
        self._group.call("start", address, port, self._setup, timeout_s=self._cluster.start_timeout_s)

    def update(
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: Items[int]
    ) -> dict[str, float]:
        """One optimizer step; tokens: the length of each on-policy item. Returns sums over all workers, and `grad_norm`."""
        mine = self._deal(on_policy, tokens)
        plain = self._deal(supervised, [len(item.sequence.tokens) for item in supervised])
        calls = [worker.update.remote(step, a, b) for worker, a, b in zip(self._group.workers, mine, plain, strict=True)]
        return _added(self._group.get(calls, "update"))

    def frozen_advantages(self, items: list[OnPolicyItem], tokens: Items[int]) -> list[np.ndarray]:
        return self._in_order("frozen_advantages", items, tokens)

    def divergences(self, items: list[SupervisedItem], tokens: Items[int]) -> list[tuple[float, float, int]]:
        return self._in_order("divergences", items, tokens)

    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]:
        dealt = self._deal(items, [len(item.sequence.tokens) for item in items])
        calls = [worker.call.remote("supervised_sums", share) for worker, share in zip(self._group.workers, dealt, strict=True)]
        return _added(self._group.get(calls, "validate"))

    def load_model(self, path: str) -> None:
        self._group.call("call", "load_model", path, phase="load_model")

    def save(self, directory: str) -> None:
        self._group.call("call", "save", directory, phase="save")

    def load(self, directory: str) -> None:
        self._group.call("call", "load", directory, phase="load")

    def export(self, source: str, directory: str) -> None:
        self._group.call("call", "export", source, directory, phase="export")

    def put_weights(self, dtype: str) -> list[tuple[Ref, int]]:
        return self._group.call("put_weights", dtype, phase="publish")[0]

    def _plan(self, tokens: Items[int]) -> list[list[list[int]]]:
        return plan_microbatches(list(tokens), self.config.workers, self.config.tokens_per_microbatch)

    def _deal(self, items: Items[Any], tokens: Items[int]) -> list[list[list[Any]]]:
        if not items:
            return [[] for _ in range(self.config.workers)]
        return [[[items[i] for i in microbatch] for microbatch in share] for share in self._plan(tokens)]

    def _in_order(self, method: str, items: Items[Any], tokens: Items[int]) -> list[Any]:
        dealt = self._deal(items, tokens)
        calls = [getattr(worker, method).remote(share) for worker, share in zip(self._group.workers, dealt, strict=True)]
        results = self._group.get(calls, method)
        order = [i for share in self._plan(tokens) for microbatch in share for i in microbatch]
        by_index = dict(zip(order, (row for rows in results for row in rows), strict=True))
        return [by_index[i] for i in range(len(items))]


def _engine_group(role: str, shell: type, config: EngineConfig, cluster: ClusterConfig, device: str, engine: dict[str, Any]) -> Group:
    threads = threads_of(cluster, config)
    return Group(
        role,
        shell,
        lambda index: engine | {"config": config, "device": device, "threads": threads},
        workers=config.workers,
        bundle=bundle(config, device),
        environment=worker_environment(threads),
        start_timeout_s=cluster.start_timeout_s,
        step_timeout_s=cluster.step_timeout_s,
    )


def _contiguous(items: list[Any], parts: int) -> list[list[Any]]:
    """Equal shares, the first ones longer by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def _added(sums: list[dict[str, float]]) -> dict[str, float]:
    """Sums over workers; `_max` keeps the largest, and grad_norm is the same on all."""
    joined: dict[str, float] = {}
    for name in sums[0] | sums[-1]:
        values = [one[name] for one in sums if name in one]
        joined[name] = max(values) if name == "grad_norm" or name.endswith("_max") else sum(values)
    return joined
