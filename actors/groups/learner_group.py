"""LearnerGroup: divides items into micro-batches for the DeepSpeed ranks, and combines the results of all ranks."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from actors.config import ClusterConfig, LearnerSetup
from actors.environment import worker_environment
from actors.groups.base import Group
from actors.groups.placement import Places
from actors.object_batches import CallArguments
from actors.workers.ray_workers import LearnerRayWorker, Ref
from minirl.model.microbatch import plan_microbatches, restore_order
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import UpdateStep


class LearnerGroup(Group):
    """The DeepSpeed ranks. Sequences are balanced over the ranks by tokens, and every rank runs the same number of micro-batches."""

    worker_class = LearnerRayWorker

    def __init__(self, setup: LearnerSetup, cluster: ClusterConfig, places: Places | None = None):
        places = places or Places("learner", setup.config, cluster, setup.device)
        self._threads = [share.threads for share in places.shares]
        # torch's own switch does not reach flash-attn, whose backward pass adds in any order unless transformers finds this variable.
        deterministic_kernels = {"FLASH_ATTENTION_DETERMINISTIC": str(int(setup.deterministic))}
        super().__init__(
            "learner",
            self.worker_class,
            lambda rank: {
                "rank": rank,
                "workers": places.workers,
                "timeout_s": cluster.step_timeout_s,
                "cores": places.shares[rank].cores,
            },
            places=places,
            environment=lambda rank: worker_environment(setup.device, self._threads[rank]) | deterministic_kernels,
            start_timeout_s=cluster.start_timeout_s,
            step_timeout_s=cluster.step_timeout_s,
        )
        # Started here, so that all groups start at the same time. Ray hands the rendezvous from rank 0 to all ranks.
        self._begin_build(setup, "start", self.workers[0].open_rendezvous.remote())

    def begin_rebuild(self, setup: LearnerSetup) -> None:
        """Starts to replace the learner by that of another stage, in the same processes; `wait_started` waits for it."""
        self._begin_build(setup, "build")

    def _begin_build(self, setup: LearnerSetup, method: str, *arguments: Ref) -> None:
        self.config = setup.config
        setups = [replace(setup, threads=threads) for threads in self._threads]
        self._start_calls = [getattr(worker, method).remote(*arguments, setup) for worker, setup in zip(self.workers, setups, strict=True)]

    def wait_started(self) -> None:
        _show(self.get(self._start_calls, "start", self.start_timeout_s))

    def begin_update(
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: Sequence[int]
    ) -> Callable[[], dict[str, float]]:
        """Starts one optimizer step behind the earlier calls. tokens: the length of each on-policy item.

        Returns a function that waits for the step and returns the sums over all workers, the mean `busy_seconds` and `grad_norm`.
        """
        shares = self._divide(on_policy, tokens), self._divide(supervised, _lengths(supervised))
        calls = self._begin_on_each_rank("update", *shares, first=(step,))

        def finish() -> dict[str, float]:
            sums = _combine_sums(self.get(calls, "update"))
            return sums | {"busy_seconds": sums["busy_seconds"] / len(self.workers)}

        return finish

    def update(self, *arguments: Any) -> dict[str, float]:
        """Takes one optimizer step and waits for it."""
        return self.begin_update(*arguments)()

    def frozen_advantages(self, items: list[OnPolicyItem], tokens: Sequence[int]) -> list[np.ndarray]:
        return self._per_item("frozen_advantages", items, tokens)

    def diagnostics(self, items: list[SupervisedItem], tokens: Sequence[int], *, top_k: int) -> list[SequenceDiagnostics]:
        return self._per_item("diagnostics", items, tokens, first=(top_k,))

    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]:
        return _combine_sums(self._on_each_rank("supervised_sums", self._divide(items, _lengths(items))))

    def load_model(self, path: str) -> None:
        _show(self.call("load_model", path))

    def save(self, directory: str) -> None:
        self._run("save", directory)

    def load(self, directory: str) -> None:
        self._run("load", directory)

    def export(self, source: str, directory: str) -> None:
        self._run("export", source, directory)

    def pack_weights(self, dtype: str) -> Iterator[tuple[Ref, int, int]]:
        """Yields (reference to `PackedWeights`, checksum, bytes) of each bucket, while the learner still packs the later buckets."""
        streams = [worker.pack_weights.options(num_returns="streaming").remote(dtype) for worker in self.workers]
        for header_ref in self._stream(streams[0], 0):
            expected_checksum, size = self.result(header_ref, 0, "publish")
            yield next(self._stream(streams[0], 0)), expected_checksum, size
        for worker, stream in enumerate(streams[1:], start=1):  # these ranks only took part in gathering sharded weights
            for ref in self._stream(stream, worker):
                self.result(ref, worker, "publish")

    def _stream(self, stream: ray.ObjectRefGenerator, worker: int) -> Iterator[Ref]:
        """Yields the stream's references as they arrive. Raises RunError if the next one takes longer than step_timeout_s."""
        while ray.wait([stream], timeout=self.step_timeout_s)[0]:
            try:
                yield next(stream)
            except StopIteration:
                return
        raise self.timeout_error(worker, "publish", self.step_timeout_s)

    def baseline_seconds(self, items: list[OnPolicyItem], tokens: Sequence[int]) -> list[float | None]:
        """For benchmarks: each worker's seconds for a plain PyTorch update over its share of these items."""
        return self._on_each_rank("baseline_seconds", self._divide(items, tokens))

    def head_seconds(self, tokens: int) -> dict[str, float] | None:
        """For benchmarks: seconds of the output heads and the KL over `tokens` tokens, and of the matrix products alone."""
        return self._run("head_seconds", tokens)[0]

    def weight_info(self, dtype: str) -> dict[str, list]:
        """What vLLM's NCCL engine must know before it receives: names, dtypes and shapes, in the order of sending."""
        names, shapes = zip(*self._run("weight_shapes")[0], strict=True)
        return {"names": list(names), "dtype_names": [dtype] * len(names), "shapes": [list(shape) for shape in shapes]}

    def _run(self, method: str, *arguments: Any) -> list[Any]:
        return self.call("run", method, *arguments, phase=method)

    def _on_each_rank(self, method: str, microbatches: list[list[list[Any]]], first: tuple = ()) -> list[Any]:
        return self.get(self._begin_on_each_rank(method, microbatches, first=first), method)

    def _begin_on_each_rank(self, method: str, *microbatches: list[list[list[Any]]], first: tuple = ()) -> list[Ref]:
        """Starts the method on every rank with the rank's own items. microbatches: lists of [rank][micro-batch] -> items; first: arguments
        before them, the same for all ranks.
        """
        calls = []
        for worker, rank_microbatches in zip(self.workers, zip(*microbatches, strict=True), strict=True):
            call_arguments = CallArguments()
            arguments = [[[call_arguments.argument(item) for item in items] for items in batches] for batches in rank_microbatches]
            calls.append(getattr(worker, method).remote(*first, *arguments, *call_arguments.batches))
        return calls

    def _per_item(self, method: str, items: Sequence[Any], tokens: Sequence[int], first: tuple = ()) -> list[Any]:
        """Calls a method that returns one result per item on every rank. Returns the results in the order of the items."""
        plan = self._plan(tokens)
        results = self._on_each_rank(method, _follow_plan(items, plan), first)
        order = [i for share in plan for microbatch in share for i in microbatch]
        return restore_order(order, [result for share in results for result in share])

    def _plan(self, tokens: Sequence[int]) -> list[list[list[int]]]:
        return plan_microbatches(list(tokens), self.config.workers, self.config.tokens_per_microbatch)

    def _divide(self, items: Sequence[Any], tokens: Sequence[int]) -> list[list[list[Any]]]:
        """[rank][micro-batch] -> items."""
        return _follow_plan(items, self._plan(tokens))


def _follow_plan(items: Sequence[Any], plan: list[list[list[int]]]) -> list[list[list[Any]]]:
    return [[[items[i] for i in microbatch] for microbatch in share] for share in plan]


def _lengths(items: Sequence[SupervisedItem]) -> list[int]:
    return [len(item.sequence.tokens) for item in items]


def _combine_sums(rank_sums: list[dict[str, float]]) -> dict[str, float]:
    """Adds the ranks' sums. Takes the largest of names that end in `_max`, and of `grad_norm`, which is equal on all ranks."""
    combined: dict[str, float] = {}
    for name in sorted(set().union(*rank_sums)):
        values = [sums[name] for sums in rank_sums if name in sums]
        combined[name] = max(values) if name == "grad_norm" or name.endswith("_max") else sum(values)
    return combined


def _show(notices_by_rank: list[list[str]]) -> None:
    """Repeats the ranks' warnings, each once, in the driver, whose output the user sees."""
    for notice in dict.fromkeys(notice for notices in notices_by_rank for notice in notices):
        warnings.warn(notice, stacklevel=3)
