"""Publishers: send the learner's weights to every rollout engine as a numbered version, by host memory or NCCL.

An engine refuses to sample between `begin_weights` and `finish_weights`. `finish_weights` compares a sample of what the engine holds with
what was sent.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import ray
import torch

from actors.groups.base import gather
from actors.groups.learner_group import LearnerGroup
from actors.groups.rollout_group import RolloutGroup
from actors.weights.nccl_channel import NcclChannel
from actors.workers.rollout import weight_transfer


@dataclass(frozen=True)
class Publication:
    """A publish that has started. calls: the pending calls of the engines of `rollout`. bytes: the size of one copy of the weights."""

    rollout: RolloutGroup
    calls: list[list[ray.ObjectRef]]
    bytes: int

    def wait(self) -> None:
        """Blocks until every engine holds the weights. Raises RunError where an engine fails or holds something else."""
        for refs in self.calls:
            self.rollout.get(refs, "publish")


class Publisher(Protocol):
    def publish(self, version: int) -> Publication:
        """Sends the learner's weights to every rollout engine as `version`. Calls made to the engines afterwards queue behind it.

        Returns when the learner may change its weights again. The engines may still be sampling or loading at that time.
        """


class HostMemoryPublisher:
    """Packs the weights into buckets that travel through Ray's object store."""

    def __init__(self, learner: LearnerGroup, rollout: RolloutGroup):
        self.learner, self.rollout = learner, rollout

    def publish(self, version: int) -> Publication:
        calls, size = [self.rollout.begin_call("begin_weights")], 0
        for bucket, expected_checksum, nbytes in self.learner.pack_weights(self.rollout.config.dtype):
            # The engines load this bucket while the learner packs the next one.
            calls.append(self.rollout.begin_call("load_bucket", bucket, expected_checksum))
            size += nbytes
        calls.append(self.rollout.begin_call("finish_weights", version))
        return Publication(self.rollout, calls, size)


class NcclPublisher:
    """Broadcasts the weights from GPU to GPU. The test suite does not exercise it, because it has no GPU."""

    def __init__(self, learner: LearnerGroup, rollout: RolloutGroup):
        self.learner, self.rollout = learner, rollout
        self._channel: NcclChannel | None = None

    def publish(self, version: int) -> Publication:
        """Blocks until the engines have received the weights: learner and engines meet inside one collective."""
        if self._channel is None:
            self._channel = self._open_channel()
        dtype = self.rollout.config.dtype
        self.rollout.call("begin_weights", phase="publish")
        info = self.learner.weight_info(dtype)
        # Both ends are watched at once: waiting for one alone would hide a failure of the other until the deadline.
        sending, receiving = self.learner.begin_call("send"), self.rollout.begin_call("receive", info)
        sent_samples, _ = gather([(self.learner, sending), (self.rollout, receiving)], "publish")
        size = sum(math.prod(shape) for shape in info["shapes"]) * getattr(torch, dtype).itemsize
        return Publication(self.rollout, [self.rollout.begin_call("finish_weights", version, sent_samples[0])], size)

    def _open_channel(self) -> NcclChannel:
        learner, rollout = self.learner, self.rollout
        address, port = learner.get([learner.workers[0].open_port.remote()], "publish")[0]
        config = rollout.config
        channel = NcclChannel(address, port, config.workers, config.tensor_parallel, learner.config.publish_bucket_mib * 2**20)
        engines = [worker.join_transfer.remote(channel.engine_info(index)) for index, worker in enumerate(rollout.workers)]
        gather([(learner, learner.begin_call("join_transfer", channel, config.dtype)), (rollout, engines)], "publish")
        return channel


PUBLISHERS = {"host_memory": HostMemoryPublisher, "nccl": NcclPublisher}


def make_publisher(learner: LearnerGroup, rollout: RolloutGroup) -> Publisher:
    """The publisher for `rollout.weight_transfer` on the rollout group's device."""
    return PUBLISHERS[weight_transfer(rollout.config, rollout.device)](learner, rollout)
