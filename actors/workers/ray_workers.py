"""What runs in each Ray process of a group: a plain worker, and around it the way of its payloads.

Rollouts, teacher scores and weights go from worker to worker through Ray's object store: rollouts and scores a few at a time
(`actors.object_batches`), as arguments of the call that needs them.
"""

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from actors.call_cost import BusyMeter, CallCost, payload_bytes
from actors.config import LearnerSetup
from actors.object_batches import VALUES_PER_BATCH, BatchedArgument, resolve, split_into_batches
from actors.weights.nccl_channel import NcclChannel
from actors.weights.packed import SentSample, checksum
from actors.workers.rendezvous import host, join
from actors.workers.rollout import RolloutWorker
from actors.workers.teacher import TeacherWorker
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.update import OnPolicyItem, SupervisedItem, UpdateStep
from minirl.types import EnsembleScores, Rollout, SamplingRequest, TeacherScores, TokenSequence

if TYPE_CHECKING:
    from actors.workers.learner import Learner

Ref = ray.ObjectRef
MicroBatches = list[list[BatchedArgument | OnPolicyItem | SupervisedItem]]


class RayWorker:
    """What every worker process answers besides its own calls. cores: those that it is kept on, None for all."""

    def __init__(self, *, cores: tuple[int, ...] | None = None, **worker: Any):
        if cores:
            os.sched_setaffinity(0, cores)  # before the worker starts its threads, which inherit it
        super().__init__(**worker)

    def peak_memory(self) -> int:
        """The most bytes that this process ever held: of host memory, and on a GPU what its allocator held."""
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + device

    def devices(self) -> set[tuple]:
        """(node, device) of each GPU of this process; without GPUs, (node, core) of each core that it may use."""
        node, gpus = ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()
        return {(node, device) for device in gpus or os.sched_getaffinity(0)}


class RolloutRayWorker(RayWorker, RolloutWorker):
    def sample_batches(self, requests: list[SamplingRequest], options: dict[str, Any]) -> Iterator[Any]:
        """As the rollouts finish: a batch of them, then an `CallCost` and of each its (position among the requests, summary).

        A stream, so that others can work on rollouts while this worker samples. A batch takes half of those that are left, at most:
        the last ones come singly, since an iteration waits for them.
        """
        meter, finished, waiting, left = BusyMeter(), self.sample_each(requests, **options), [], len(requests)
        while True:
            with meter():
                rollouts = next(finished, None)
            if rollouts is None:
                return
            waiting += rollouts
            while len(waiting) >= (most := min(VALUES_PER_BATCH, max(1, left // 2))):
                batch, waiting, left = waiting[:most], waiting[most:], left - most
                yield [rollout for _, rollout in batch]
                told = [(position, rollout.summary) for position, rollout in batch]
                yield CallCost(meter.take(), payload_bytes(rollout for _, rollout in batch)), told


class TeacherRayWorker(RayWorker, TeacherWorker):
    """place: of this teacher among several, None for the only one. teacher_id: its id, and it passes on what another one speaks for."""

    place: int | None = None
    teacher_id: str | None = None

    def __init__(self, *, place: int | None = None, teacher_id: str | None = None, cores: tuple[int, ...] | None = None, **settings: Any):
        super().__init__(cores=cores, **settings)
        self.place, self.teacher_id = place, teacher_id

    def score_batches(self, asked: list[BatchedArgument | TokenSequence], *batches: list[Any]) -> list[Any]:
        """An `CallCost`, then batches of the items with their scores."""
        meter = BusyMeter()
        with meter():
            found = [resolve(one, batches) for one in asked]
            sequences = [item if isinstance(item, TokenSequence) else item.sequence for item in found]
            mine = [self.teacher_id is None or sequence.teacher in (None, self.teacher_id) for sequence in sequences]
            scores = iter(self.score([sequence for sequence, own in zip(sequences, mine, strict=True) if own]))
            told = [next(scores) if own else None for own in mine]
        items = [self._scored(item, score) for item, score in zip(found, told, strict=True)]
        return [CallCost(meter.take(), payload_bytes([score for score in told if score])), *split_into_batches(items)]

    def _scored(self, item: Any, score: TeacherScores | None) -> OnPolicyItem | SupervisedItem:
        """The item with the scores that it brought and this one's beside them."""
        scores = score if self.place is None else EnsembleScores((*(item.scores.scores if self.place else ()), score))
        if isinstance(item, OnPolicyItem | SupervisedItem):
            return replace(item, scores=scores)
        return OnPolicyItem(item, scores) if isinstance(item, Rollout) else SupervisedItem(item, scores)


class LearnerRayWorker(RayWorker):
    """`Learner`, once this process has joined the other ranks."""

    learner: "Learner"

    def __init__(self, rank: int, workers: int, timeout_s: float, cores: tuple[int, ...] | None = None):
        super().__init__(cores=cores)
        self.rank, self.workers, self.timeout_s, self._store = rank, workers, timeout_s, None
        self._meter = BusyMeter()

    def host(self) -> tuple[str, int]:
        self._store, address, port = host(self.timeout_s)
        return address, port

    def start(self, address: str, port: int, setup: LearnerSetup) -> str | None:
        """Returns why the learner pads although it was told to pack, if so."""
        from actors.workers.learner import Learner  # DeepSpeed takes seconds to import, and only the ranks need it

        join(self._store, address, port, rank=self.rank, workers=self.workers, device=setup.device, timeout_s=self.timeout_s)
        self.learner = Learner(setup)
        return self.learner.packing_refused

    def packs_sequences(self) -> bool:
        """Whether the learner puts several sequences into one row, without padding."""
        return self.learner.module.packed

    def run(self, method: str, *arguments: Any) -> Any:
        """A method of the learner whose arguments and result are small."""
        return getattr(self.learner, method)(*arguments)

    def update(self, step: UpdateStep, on_policy: MicroBatches, supervised: MicroBatches, *batches: list[Any]) -> dict[str, float]:
        """The learner's sums, and `busy_seconds`: what this worker spent since its last update."""
        with self._meter():
            sums = self.learner.update(step, _unpacked(on_policy, batches), _unpacked(supervised, batches))
        return sums | {"busy_seconds": self._meter.take()}

    def frozen_advantages(self, microbatches: MicroBatches, *batches: list[Any]) -> list[np.ndarray]:
        with self._meter():
            return self.learner.frozen_advantages(_unpacked(microbatches, batches))

    def baseline_seconds(self, microbatches: MicroBatches, *batches: list[Any]) -> float | None:
        return self.learner.baseline_seconds(_unpacked(microbatches, batches))

    def diagnostics(self, top_k: int, microbatches: MicroBatches, *batches: list[Any]) -> list[SequenceDiagnostics]:
        return self.learner.diagnostics(_unpacked(microbatches, batches), top_k)

    def supervised_sums(self, microbatches: MicroBatches, *batches: list[Any]) -> dict[str, float]:
        return self.learner.supervised_sums(_unpacked(microbatches, batches))

    def pack_weights(self, dtype: str) -> Iterator[Any]:
        """Bucket after bucket, on rank 0 alone: its checksum and bytes, then the bucket itself.

        A stream, so that one is loaded while the next is packed.
        """
        buckets = iter(self.learner.packed_weights(dtype))
        while True:
            with self._meter():
                bucket = next(buckets, None)
                told = None if bucket is None else (checksum(bucket), bucket.nbytes)
            if bucket is None:
                return
            yield told
            yield bucket

    def open_port(self) -> tuple[str, int]:
        """An address and a free port of this node, where the sender will wait for the engines."""
        from vllm.utils.network_utils import get_open_port

        return ray.util.get_node_ip_address(), get_open_port()

    def join_transfer(self, channel: NcclChannel, dtype: str) -> None:
        from actors.weights.nccl import open_sender

        self._sender = open_sender(self.learner, channel, dtype)

    def send(self) -> list[SentSample]:
        """Broadcast all weights to the engines, which must be receiving; a few elements of each, to compare. Rank 0 alone sends."""
        self._sender.send_weights()
        return self._sender.source.sent


def _unpacked(microbatches: MicroBatches, batches: tuple[list[Any], ...]) -> list[list[Any]]:
    return [[resolve(item, batches) for item in items] for items in microbatches]
