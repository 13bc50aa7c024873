"""The group of DeepSpeed ranks as the driver sees it: who gets which micro-batches, and results over all of them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from actors.config import ClusterConfig, LearnerSetup
from actors.groups.base import Group
from actors.groups.placement import CoreShare, bundle, share_all_cores, worker_environment
from actors.object_batches import CallArguments
from actors.workers.ray_workers import LearnerRayWorker, Ref
from minirl.model.microbatch import plan_microbatches, restore_order
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.update import OnPolicyItem, SupervisedItem, UpdateStep


class LearnerGroup(Group):
    """The DeepSpeed ranks. Sequence are dealt out by tokens; every rank runs equally many micro-batches."""

    worker_class = LearnerRayWorker

    def __init__(self, setup: LearnerSetup, cluster: ClusterConfig, share: CoreShare | None = None):
        self.config = config = setup.config
        share = share or share_all_cores(cluster, config)
        self._setup = replace(setup, threads=share.threads)
        super().__init__(
            "learner",
            self.worker_class,
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
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: Sequence[int]
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

    def frozen_advantages(self, items: list[OnPolicyItem], tokens: Sequence[int]) -> list[np.ndarray]:
        return self._rows("frozen_advantages", items, tokens)

    def diagnostics(self, items: list[SupervisedItem], tokens: Sequence[int], *, top_k: int) -> list[SequenceDiagnostics]:
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
            expected, size = self.result(told, 0, "publish")
            yield next(self._stream(streams[0], 0)), expected, size
        for worker, stream in enumerate(streams[1:], start=1):  # they only helped to gather
            for told in self._stream(stream, worker):
                self.result(told, worker, "publish")

    def _stream(self, stream: ray.ObjectRefGenerator, worker: int) -> Iterator[Ref]:
        """The stream's references as they come, each within the deadline."""
        while ray.wait([stream], timeout=self.step_timeout_s)[0]:
            try:
                yield next(stream)
            except StopIteration:
                return
        raise self.timed_out(worker, "publish", self.step_timeout_s)

    def baseline_seconds(self, items: list[OnPolicyItem], tokens: Sequence[int]) -> list[float | None]:
        """For benchmarks: each worker's seconds for plain PyTorch over its share of these items."""
        return self._each("baseline_seconds", self._deal(items, tokens))

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
            call_arguments = CallArguments()
            entries = [[[call_arguments.argument(item) for item in items] for items in microbatches] for microbatches in shares]
            calls.append(getattr(worker, method).remote(*first, *entries, *call_arguments.batches))
        return calls

    def _rows(self, method: str, items: Sequence[Any], tokens: Sequence[int], first: tuple = ()) -> list[Any]:
        """One result an item, in the order of the items."""
        plan = self._plan(tokens)
        rows = self._each(method, _dealt(items, plan), first)
        order = [i for share in plan for microbatch in share for i in microbatch]
        return restore_order(order, [row for share in rows for row in share])

    def _plan(self, tokens: Sequence[int]) -> list[list[list[int]]]:
        return plan_microbatches(list(tokens), self.config.workers, self.config.tokens_per_microbatch)

    def _deal(self, items: Sequence[Any], tokens: Sequence[int]) -> list[list[list[Any]]]:
        return _dealt(items, self._plan(tokens))


def _dealt(items: Sequence[Any], plan: list[list[list[int]]]) -> list[list[list[Any]]]:
    return [[[items[i] for i in microbatch] for microbatch in share] for share in plan]


def _lengths(items: Sequence[SupervisedItem]) -> list[int]:
    return [len(item.sequence.tokens) for item in items]


def _added(sums: list[dict[str, float]]) -> dict[str, float]:
    """Sums over workers; `_max` keeps the largest, and grad_norm is the same on all."""
    joined: dict[str, float] = {}
    for name in sorted(set().union(*sums)):
        values = [one[name] for one in sums if name in one]
        joined[name] = max(values) if name == "grad_norm" or name.endswith("_max") else sum(values)
    return joined
