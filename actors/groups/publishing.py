"""Publishing: the learner's weights become a version in every rollout engine, through host memory or through NCCL.

Engines refuse to sample from the first call of an update to its last, and end it by comparing what they hold with what was sent.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import torch

from actors.groups.base import gather
from actors.weights.nccl_channel import NcclChannel

if TYPE_CHECKING:
    from actors.groups.learner_group import LearnerGroup
    from actors.groups.rollout_group import RolloutGroup


@dataclass(frozen=True)
class Publication:
    """Weights on their way into the engines of `rollout`. bytes: of one copy of them."""

    rollout: "RolloutGroup"
    calls: list[list[ray.ObjectRef]]
    bytes: int

    def wait(self) -> None:
        """Until every engine holds them. Raises RunError where one does not."""
        for refs in self.calls:
            self.rollout.get(refs, "publish")


def publish(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> Publication:
    """Send the learner's weights into every rollout engine, as `version`; what is asked of the engines next comes after them.

    Returns when the learner may change its weights again; through host memory the engines may still be sampling then.
    """
    if rollout.transfer == "nccl":
        return _through_nccl(learner, rollout, version)
    return _through_host_memory(learner, rollout, version)


def _through_host_memory(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> Publication:
    calls, size = [rollout.begin_call("begin_update")], 0
    for bucket, expected, nbytes in learner.pack_weights(rollout.config.dtype):
        calls.append(rollout.begin_call("load_bucket", bucket, expected))  # while the learner packs the next one
        size += nbytes
    calls.append(rollout.begin_call("finish_update", version))
    return Publication(rollout, calls, size)


def _through_nccl(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> Publication:
    """Not exercised by the test suite, which has no GPU. Both ends meet inside one collective, so it waits for the engines."""
    if not rollout.joined:
        _open_channel(learner, rollout)
    rollout.call("begin_update", phase="publish")
    # Both ends meet inside the same collective, so neither may be waited for alone.
    info = learner.weight_info(rollout.config.dtype)
    sent, _ = gather([(learner, learner.begin_call("send")), (rollout, rollout.begin_call("receive", info))], "publish")
    itemsize = getattr(torch, rollout.config.dtype).itemsize
    size = sum(math.prod(shape) for shape in info["shapes"]) * itemsize
    return Publication(rollout, [rollout.begin_call("finish_update", version, sent[0])], size)


def _open_channel(learner: "LearnerGroup", rollout: "RolloutGroup") -> None:
    address, port = learner.get([learner.workers[0].open_port.remote()], "publish")[0]
    config = rollout.config
    channel = NcclChannel(address, port, config.workers, config.tensor_parallel, learner.config.publish_bucket_mib * 2**20)
    engines = [worker.join_transfer.remote(channel.engine_info(index)) for index, worker in enumerate(rollout.workers)]
    gather([(learner, learner.begin_call("join_transfer", channel, config.dtype)), (rollout, engines)], "publish")
    rollout.joined = True
