"""The three groups as the driver sees them: who of a group gets what, and results in the order of the questions.

The driver holds references to payloads and a few scalars each; `actors.shells` has what runs in the processes.
"""

import warnings
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import ray

from actors.collection import Collection, SamplingCall
from actors.config import ClusterConfig, EngineConfig, LearnerSetup, RolloutConfig, TeacherConfig
from actors.group import Group
from actors.parcel import PARCEL, Manifest, Place, fetch, places
from actors.placement import CoreShare, bundle, in_turn, worker_environment
from actors.rollout import weight_transfer
from actors.shells import LearnerShell, Ref, RolloutShell, TeacherShell
from minirl.batch import plan_microbatches
from minirl.protocols import Sampled
from minirl.rollout import Rollout, SamplingRequest, Sequence
from minirl.token_diagnostics import Diagnostics
from minirl.update import OnPolicyItem, SupervisedItem, UpdateStep


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
    return _in_order(order, [place for _, found in calls for place in found])


class LearnerGroup(Group):
    """The DeepSpeed ranks. Items are dealt out by tokens; every rank runs equally many micro-batches."""

    shell = LearnerShell

    def __init__(self, setup: LearnerSetup, cluster: ClusterConfig, share: CoreShare | None = None):
        self.config = config = setup.config
        share = share or in_turn(cluster, config)
        self._setup = replace(setup, threads=share.threads)
        super().__init__(
            "learner",
            self.shell,
            lambda rank: {
                "rank": rank,
                "workers": config.workers,
                "timeout_s": cluster.step_timeout_s,
                "cores": share.cores and share.cores[rank],
            },
            workers=config.workers,
            bundle=bundle(config, setup.device),
            environment=worker_environment(self._setup.threads),
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )
        self._hosting = self.workers[0].host.remote()  # begun here, so that the groups start side by side

    def wait_started(self) -> None:
        address, port = self.get([self._hosting], "start", self.start_timeout_s)[0]
        for refused in set(self.call("start", address, port, self._setup, timeout_s=self.start_timeout_s)) - {None}:
            warnings.warn(refused, stacklevel=2)  # in the process that a person looks at

    def begin_update(
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: Items[int]
    ) -> Callable[[], dict[str, float]]:
        """One optimizer step, after those that were asked before; tokens: the length of each on-policy item.

        Returns what waits for it, and returns sums over all workers, and `grad_norm`.
        """
        calls = self._begin_each("update", self._deal(on_policy, tokens), self._deal(supervised, _lengths(supervised)), first=(step,))

        def finish() -> dict[str, float]:
            sums = _added(self.get(calls, "update"))
            return sums | {"busy_seconds": sums["busy_seconds"] / len(self.workers)}

        return finish

    def update(self, *arguments: Any) -> dict[str, float]:
        """The same, waited for."""
        return self.begin_update(*arguments)()

    def frozen_advantages(self, items: list[OnPolicyItem], tokens: Items[int]) -> list[np.ndarray]:
        return self._rows("frozen_advantages", items, tokens)

    def diagnostics(self, items: list[SupervisedItem], tokens: Items[int], *, top_k: int) -> list[Diagnostics]:
        return self._rows("diagnostics", items, tokens, first=(top_k,))

    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]:
        return _added(self._each("supervised_sums", self._deal(items, _lengths(items))))

    def load_model(self, path: str) -> None:
        self._run("load_model", path)

    def save(self, directory: str) -> None:
        self._run("save", directory)

    def load(self, directory: str) -> None:
        self._run("load", directory)

    def export(self, source: str, directory: str) -> None:
        self._run("export", source, directory)

    def pack_weights(self, dtype: str) -> Iterator[tuple[Ref, int, int]]:
        """The weights as references to `PackedWeights`, each with its checksum and bytes, while the later ones are still being packed."""
        streams = [worker.pack_weights.options(num_returns="streaming").remote(dtype) for worker in self.workers]
        for told in self._stream(streams[0], 0):
            expected, size = self.value(told, 0, "publish")
            yield next(self._stream(streams[0], 0)), expected, size
        for worker, stream in enumerate(streams[1:], start=1):  # they only helped to gather
            for told in self._stream(stream, worker):
                self.value(told, worker, "publish")

    def _stream(self, stream: ray.ObjectRefGenerator, worker: int) -> Iterator[Ref]:
        """The stream's references as they come, each within the deadline."""
        while ray.wait([stream], timeout=self.step_timeout_s)[0]:
            try:
                yield next(stream)
            except StopIteration:
                return
        raise self.timed_out(worker, "publish", self.step_timeout_s)

    def bare_seconds(self, items: list[OnPolicyItem], tokens: Items[int]) -> list[float | None]:
        """For benchmarks: each worker's seconds for plain PyTorch over its share of these items."""
        return self._each("bare_seconds", self._deal(items, tokens))

    def head_seconds(self, tokens: int) -> dict[str, float] | None:
        """For benchmarks: seconds of the output heads and the KL over so many tokens, and of their bare matrix products."""
        return self._run("head_seconds", tokens)[0]

    def weight_info(self, dtype: str) -> dict[str, list]:
        """What vLLM's NCCL engine asks before it receives: names, dtypes and shapes in the order in which they are sent."""
        names, shapes = zip(*self._run("weight_shapes")[0], strict=True)
        return {"names": list(names), "dtype_names": [dtype] * len(names), "shapes": [list(shape) for shape in shapes]}

    def _run(self, method: str, *arguments: Any) -> list[Any]:
        return self.call("run", method, *arguments, phase=method)

    def _each(self, method: str, dealt: list[list[list[Any]]], first: tuple = ()) -> list[Any]:
        return self.get(self._begin_each(method, dealt, first=first), method)

    def _begin_each(self, method: str, *dealt: list[list[list[Any]]], first: tuple = ()) -> list[Ref]:
        """A call of its own on every rank, at once. dealt: [worker][micro-batch] -> items; first: what comes before them, for all."""
        calls = []
        for worker, shares in zip(self.workers, zip(*dealt, strict=True), strict=True):
            manifest = Manifest()
            entries = [[[manifest.entry(item) for item in items] for items in microbatches] for microbatches in shares]
            calls.append(getattr(worker, method).remote(*first, *entries, *manifest.parcels))
        return calls

    def _rows(self, method: str, items: Items[Any], tokens: Items[int], first: tuple = ()) -> list[Any]:
        """One result an item, in the order of the items."""
        plan = self._plan(tokens)
        rows = self._each(method, _dealt(items, plan), first)
        order = [i for share in plan for microbatch in share for i in microbatch]
        return _in_order(order, [row for share in rows for row in share])

    def _plan(self, tokens: Items[int]) -> list[list[list[int]]]:
        return plan_microbatches(list(tokens), self.config.workers, self.config.tokens_per_microbatch)

    def _deal(self, items: Items[Any], tokens: Items[int]) -> list[list[list[Any]]]:
        return _dealt(items, self._plan(tokens))


def _dealt(items: Items[Any], plan: list[list[list[int]]]) -> list[list[list[Any]]]:
    return [[[items[i] for i in microbatch] for microbatch in share] for share in plan]


def _lengths(items: Items[SupervisedItem]) -> list[int]:
    return [len(item.sequence.tokens) for item in items]


def _contiguous(items: list[Any], parts: int) -> list[list[Any]]:
    """Equal shares, the first ones longer by at most one."""
    edges = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(edges)]


def _in_order(order: list[int], values: list[Any]) -> list[Any]:
    """values[i] belongs to the item `order[i]`: the values in the order of the items."""
    placed = dict(zip(order, values, strict=True))
    return [placed[index] for index in range(len(order))]


def _added(sums: list[dict[str, float]]) -> dict[str, float]:
    """Sums over workers; `_max` keeps the largest, and grad_norm is the same on all."""
    joined: dict[str, float] = {}
    for name in sorted(set().union(*sums)):
        values = [one[name] for one in sums if name in one]
        joined[name] = max(values) if name == "grad_norm" or name.endswith("_max") else sum(values)
    return joined
