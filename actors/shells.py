"""What runs in each Ray process of a group: a plain worker, and around it the way of its payloads.

Rollouts, teacher scores, advantages and weights go from worker to worker through Ray's object store, so what a worker returns by
reference is an object of its own, and what it is handed by reference it fetches itself.
"""

import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch

from actors.config import LearnerSetup
from actors.effort import Effort, Meter, payload_bytes
from actors.publishing import NcclChannel
from actors.rendezvous import host, join
from actors.rollout import RolloutWorker
from actors.teacher import TeacherWorker
from actors.weights import SentSample, checksum
from minirl.rollout import Rollout, SamplingRequest, Sequence
from minirl.update import OnPolicyItem, SupervisedItem, UpdateStep

if TYPE_CHECKING:
    from actors.learner import Learner

Ref = ray.ObjectRef


class Shell:
    """What every worker process answers besides its own calls."""

    def peak_memory(self) -> int:
        """The most bytes that this process ever held: of host memory, and on a GPU what its allocator held."""
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + device


class RolloutShell(Shell, RolloutWorker):
    def sample_apart(self, requests: list[SamplingRequest], options: dict[str, Any]) -> Iterator[Any]:
        """As the rollouts finish: a list of (position among the requests, summary), then each rollout; at the end an `Effort`.

        A stream, so that each rollout is an object of its own that others can work on while this worker samples.
        """
        meter, size = Meter(), 0
        finished = self.sample_each(requests, **options)
        while True:
            with meter():
                rollouts = next(finished, None)
            if rollouts is None:
                break
            yield [(position, rollout.summary) for position, rollout in rollouts]
            yield from (rollout for _, rollout in rollouts)
            size += payload_bytes(rollout for _, rollout in rollouts)
        yield Effort(meter.take(), size)


class TeacherShell(Shell, TeacherWorker):
    def score_apart(self, *asked: Rollout | Sequence) -> list[Any]:
        """An `Effort`, then the scores of each."""
        meter = Meter()
        with meter():
            scores = self.score([item.sequence if isinstance(item, Rollout) else item for item in asked])
        return [Effort(meter.take(), payload_bytes(scores)), *scores]


class LearnerShell(Shell):
    """`Learner`, once this process has joined the other ranks."""

    learner: "Learner"

    def __init__(self, rank: int, workers: int, timeout_s: float):
        self.rank, self.workers, self.timeout_s, self._store = rank, workers, timeout_s, None
        self._meter = Meter()

    def host(self) -> tuple[str, int]:
        self._store, address, port = host(self.timeout_s)
        return address, port

    def start(self, address: str, port: int, setup: LearnerSetup) -> None:
        from actors.learner import Learner  # DeepSpeed takes seconds to import, and only the ranks need it

        join(self._store, address, port, rank=self.rank, workers=self.workers, device=setup.device, timeout_s=self.timeout_s)
        self.learner = Learner(setup)

    def run(self, method: str, *arguments: Any) -> Any:
        """A method of the learner whose arguments and result are small."""
        return getattr(self.learner, method)(*arguments)

    def update(self, step: UpdateStep, on_policy: list[list[OnPolicyItem]], supervised: list[list[SupervisedItem]]) -> dict[str, float]:
        """The learner's sums, and `busy_seconds`: what this worker spent since its last update."""
        with self._meter():
            sums = self.learner.update(step, self._fetch(on_policy), self._fetch(supervised))
        return sums | {"busy_seconds": self._meter.take()}

    def frozen_advantages(self, microbatches: list[list[OnPolicyItem]]) -> list[np.ndarray]:
        with self._meter():
            return self.learner.frozen_advantages(self._fetch(microbatches))

    def bare_seconds(self, microbatches: list[list[OnPolicyItem]]) -> float | None:
        return self.learner.bare_seconds(self._fetch(microbatches))

    def divergences(self, microbatches: list[list[SupervisedItem]]) -> list[tuple[float, float, int]]:
        return self.learner.divergences(self._fetch(microbatches))

    def supervised_sums(self, microbatches: list[list[SupervisedItem]]) -> dict[str, float]:
        return self.learner.supervised_sums(self._fetch(microbatches))

    def pack_weights(self, dtype: str) -> Iterator[Any]:
        """Bucket after bucket, on rank 0 alone: its checksum and bytes, then the bucket itself.

        A stream, so that one is loaded while the next is packed.
        """
        buckets = iter(self.learner.packed_weights(dtype))
        while True:
            with self._meter():
                bucket = next(buckets, None)
                told = None if bucket is None else (checksum(bucket), bucket.data.nbytes)
            if bucket is None:
                return
            yield told
            yield bucket

    def open_port(self) -> tuple[str, int]:
        """An address and a free port of this node, where the sender will wait for the engines."""
        from vllm.utils.network_utils import get_open_port

        return ray.util.get_node_ip_address(), get_open_port()

    def join_transfer(self, channel: NcclChannel, dtype: str) -> None:
        from actors.nccl_publish import open_sender

        self._sender = open_sender(self.learner, channel, dtype)

    def send(self) -> list[SentSample]:
        """Broadcast all weights to the engines, which must be receiving; a few elements of each, to compare. Rank 0 alone sends."""
        self._sender.send_weights()
        return self._sender.source.sent

    def _fetch(self, microbatches: list[list[Any]]) -> list[list[Any]]:
        refs = list({value for items in microbatches for item in items for value in vars(item).values() if isinstance(value, Ref)})
        values = dict(zip(refs, ray.get(refs, timeout=self.timeout_s), strict=True))
        return [[_replaced(item, values) for item in items] for items in microbatches]


def _replaced(item: Any, values: dict[Ref, Any]) -> Any:
    """The item with its references replaced by what they refer to."""
    return replace(item, **{name: values[value] for name, value in vars(item).items() if isinstance(value, Ref)})
