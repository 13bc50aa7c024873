"""The Ray classes of the three groups: each wraps a plain worker and passes its inputs and results through Ray.

Rollouts, teacher scores and weights go from worker to worker through Ray's object store. Rollouts and scores travel in object batches
(`actors.object_batches`), as arguments of the call that needs them.
"""

import gc
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
from actors.request_queue import PositionedRequest, QueuedRequests
from actors.weights.nccl_channel import NcclChannel
from actors.weights.packed import SentSample, checksum
from actors.workers.rendezvous import join_process_group, open_store
from actors.workers.rollout import RolloutWorker
from actors.workers.teacher import TeacherWorker
from minirl.bench.timing import matmul_rate
from minirl.collector import lasting_imports
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import UpdateStep
from minirl.types import EnsembleScores, Rollout, TeacherScores, TokenSequence

if TYPE_CHECKING:
    from actors.workers.learner import Learner

Ref = ray.ObjectRef
MicroBatches = list[list[BatchedArgument | OnPolicyItem | SupervisedItem]]


class RayWorker:
    """Base class of all Ray workers: core pinning, memory and devices. cores: the cores that the process may use; None for all."""

    def __init__(self, *, cores: tuple[int, ...] | None = None, **worker: Any):
        if cores:
            os.sched_setaffinity(0, cores)  # before the worker starts threads, because they inherit it
        super().__init__(**worker)

    def peak_memory(self) -> int:
        """Peak bytes of this process so far: host memory plus, on a GPU, its allocator's memory."""
        device_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + device_bytes

    def matmul_rate(self, dtype: str, device: str) -> float:
        """For benchmarks: FLOP/s of a large matrix product in this process, on its device ("cpu" or "cuda") or its threads."""
        return matmul_rate(getattr(torch, dtype), torch.device(device))

    def devices(self) -> set[tuple]:
        """(node, device) for each GPU of this process; without GPUs, (node, core) for each core that it may use."""
        node, gpus = ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()
        return {(node, device) for device in gpus or os.sched_getaffinity(0)}


class RolloutRayWorker(RayWorker, RolloutWorker):
    """`RolloutWorker` with results as a stream of object batches."""

    def sample_batches(self, requests: list[PositionedRequest], queued: QueuedRequests | None, options: dict[str, Any]) -> Iterator[Any]:
        """Yields two values for each object batch of finished rollouts.

        First the batch, a list of `Rollout`, or of `OnPolicyItem` if the options ask for scores. Then a `CallCost` and a list of (position
        of the request, summary), one per rollout.

        It is a stream, so that teacher workers can score rollouts while this worker samples. A batch holds at most half of the rollouts
        that the engine has begun and are not yet sent. The last ones therefore come singly, because an iteration waits for them.
        """
        meter, finished, waiting, sent = BusyMeter(), self.sample_each(requests, queued, **options), [], 0
        while True:
            with meter():
                rollouts = next(finished, None)
            if rollouts is None:
                return
            waiting += rollouts
            begun = len(requests) + (queued.taken if queued else 0)
            while len(waiting) >= (size := min(VALUES_PER_BATCH, max(1, (begun - sent) // 2))):
                batch, waiting, sent = waiting[:size], waiting[size:], sent + size
                yield [rollout for _, rollout in batch]
                summaries = [(position, rollout.summary) for position, rollout in batch]
                yield CallCost(meter.take(), payload_bytes(rollout for _, rollout in batch)), summaries


class TeacherRayWorker(RayWorker, TeacherWorker):
    """`TeacherWorker` that takes object batches and returns them with scores.

    member_index: the index of this teacher in the ensemble; None if it is the only teacher. teacher_id: this teacher's id; it does not
    score sequences that name another teacher, and returns them without its scores. None: it scores all.
    """

    member_index: int | None = None
    teacher_id: str | None = None

    def __init__(
        self, *, member_index: int | None = None, teacher_id: str | None = None, cores: tuple[int, ...] | None = None, **settings: Any
    ):
        super().__init__(cores=cores, **settings)
        self.member_index, self.teacher_id = member_index, teacher_id

    def score_batches(self, arguments: list[BatchedArgument | TokenSequence], *batches: list[Any]) -> list[Any]:
        """Scores rollouts (in `batches`) and sequences. Returns a `CallCost`, then object batches of the items with their scores.

        Rollouts are scored at the worker's temperature, at which they were sampled. Fixed sequences (gold responses, plain text) are
        scored at 1, the temperature of every supervised loss.
        """
        meter = BusyMeter()
        with meter():
            items = [resolve(argument, batches) for argument in arguments]
            sequences = [item if isinstance(item, TokenSequence) else item.sequence for item in items]
            is_scored = [self.teacher_id is None or sequence.teacher in (None, self.teacher_id) for sequence in sequences]
            temperatures = [self.temperature if isinstance(item, Rollout | OnPolicyItem) else 1.0 for item in items]
            scored_pairs = [pair for pair, scored in zip(zip(sequences, temperatures, strict=True), is_scored, strict=True) if scored]
            new_scores = iter(self.score([sequence for sequence, _ in scored_pairs], [temperature for _, temperature in scored_pairs]))
            scores = [next(new_scores) if scored else None for scored in is_scored]
        scored_items = [self._with_scores(item, score) for item, score in zip(items, scores, strict=True)]
        return [CallCost(meter.take(), payload_bytes([score for score in scores if score])), *split_into_batches(scored_items)]

    def _with_scores(self, item: Any, score: TeacherScores | None) -> OnPolicyItem | SupervisedItem:
        """The item with this teacher's scores after those of the ensemble members before it."""
        scores = score if self.member_index is None else EnsembleScores((*(item.scores.scores if self.member_index else ()), score))
        if isinstance(item, OnPolicyItem | SupervisedItem):
            return replace(item, scores=scores)
        return OnPolicyItem(item, scores) if isinstance(item, Rollout) else SupervisedItem(item, scores)


class LearnerRayWorker(RayWorker):
    """`Learner`, built by `start` after this process has joined the other ranks."""

    learner: "Learner | None"

    def __init__(self, rank: int, workers: int, timeout_s: float, cores: tuple[int, ...] | None = None):
        super().__init__(cores=cores)
        self.rank, self.workers, self.timeout_s, self._store = rank, workers, timeout_s, None
        self._meter = BusyMeter()

    def open_rendezvous(self) -> tuple[str, int]:
        """Opens the store through which the ranks find each other, on rank 0. Returns its address and port."""
        self._store, address, port = open_store(self.timeout_s)
        return address, port

    def start(self, rendezvous: tuple[str, int], setup: LearnerSetup) -> list[str]:
        """Joins the other ranks and builds the learner. Returns its warnings, which the user should see.

        rendezvous: what `open_rendezvous` returned.
        """
        join_process_group(self._store, *rendezvous, rank=self.rank, workers=self.workers, device=setup.device, timeout_s=self.timeout_s)
        # After the process has joined, because that fixes DeepSpeed's accelerator. The import takes seconds, and only the ranks need it.
        with lasting_imports():
            import actors.workers.learner  # noqa: F401
        return self.build(setup)

    def build(self, setup: LearnerSetup) -> list[str]:
        """Builds the learner of a stage. Returns its warnings. The learner of an earlier stage and all its memory go first."""
        from actors.workers.learner import Learner  # imported by `start`

        self.learner = self._sender = None
        gc.collect()  # a DeepSpeed engine is full of circular references
        if setup.device == "cuda":
            torch.cuda.empty_cache()
        self.learner = Learner(setup)
        return self.learner.notices

    def load_model(self, path: str) -> list[str]:
        """Replaces the student. Returns the warnings about the new one."""
        self.learner.load_model(path)
        return self.learner.notices

    def packs_sequences(self) -> bool:
        """True if the learner puts several sequences into one row, without padding."""
        return self.learner.module.packed

    def run(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the learner. For methods whose arguments and result are small."""
        return getattr(self.learner, method)(*arguments)

    def update(self, step: UpdateStep, on_policy: MicroBatches, supervised: MicroBatches, *batches: list[Any]) -> dict[str, float]:
        """Returns the learner's sums, and `busy_seconds`: seconds that this worker was busy since its last update."""
        with self._meter():
            sums = self.learner.update(step, _resolved(on_policy, batches), _resolved(supervised, batches))
        return sums | {"busy_seconds": self._meter.take()}

    def frozen_advantages(self, microbatches: MicroBatches, *batches: list[Any]) -> list[np.ndarray]:
        with self._meter():
            return self.learner.frozen_advantages(_resolved(microbatches, batches))

    def baseline_seconds(self, microbatches: MicroBatches, *batches: list[Any]) -> float | None:
        return self.learner.baseline_seconds(_resolved(microbatches, batches))

    def diagnostics(self, top_k: int, microbatches: MicroBatches, *batches: list[Any]) -> list[SequenceDiagnostics]:
        return self.learner.diagnostics(_resolved(microbatches, batches), top_k)

    def supervised_sums(self, microbatches: MicroBatches, *batches: list[Any]) -> dict[str, float]:
        return self.learner.supervised_sums(_resolved(microbatches, batches))

    def pack_weights(self, dtype: str) -> Iterator[Any]:
        """Yields two values for each bucket, on rank 0 only: (checksum, bytes), then the bucket.

        It is a stream, so that the engines load a bucket while the learner packs the next one.
        """
        buckets = iter(self.learner.packed_weights(dtype))
        while True:
            with self._meter():
                bucket = next(buckets, None)
                header = None if bucket is None else (checksum(bucket), bucket.nbytes)
            if bucket is None:
                return
            yield header
            yield bucket

    def open_port(self) -> tuple[str, int]:
        """This node's address and a free port, on which the NCCL sender will wait for the engines."""
        from vllm.utils.network_utils import get_open_port

        return ray.util.get_node_ip_address(), get_open_port()

    def join_transfer(self, channel: NcclChannel, dtype: str) -> None:
        """Opens this rank's end of the NCCL weight transfer."""
        from actors.weights.nccl import open_sender

        self._sender = open_sender(self.learner, channel, dtype)

    def send(self) -> list[SentSample]:
        """Broadcasts all weights to the engines, which must be receiving. Every rank calls it; only rank 0 sends.

        Rank 0 returns a few elements of each weight, for the engines to compare with what they loaded; other ranks return none.
        """
        self._sender.send_weights()
        return self._sender.source.sent


def _resolved(microbatches: MicroBatches, batches: tuple[list[Any], ...]) -> list[list[Any]]:
    return [[resolve(item, batches) for item in items] for items in microbatches]
