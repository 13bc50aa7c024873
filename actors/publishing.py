"""Publishing: the learner's weights become a version in every rollout engine, through host memory or through NCCL.

Engines refuse to sample from the first call of an update to its last, and end it by comparing what they hold with what was sent.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.group import gather

if TYPE_CHECKING:
    from actors.roles import LearnerGroup, RolloutGroup


@dataclass(frozen=True)
class NcclChannel:
    """One NCCL group: learner rank 0 is its rank 0, and behind it stand all devices of all rollout engines.

    Worked example, 2 rollout workers with tensor_parallel 2: world_size 5; worker 0 has the ranks 1 and 2, worker 1 has 3 and 4.
    address, port: where learner rank 0 waits. buffer_bytes: of the packed buffers, which both ends must cut alike.
    """

    address: str
    port: int
    workers: int
    tensor_parallel: int
    buffer_bytes: int

    @property
    def world_size(self) -> int:
        return 1 + self.workers * self.tensor_parallel

    def engine_info(self, worker: int) -> dict[str, Any]:
        """What the engine of one rollout worker is told; vLLM adds the rank within the engine to `rank_offset`."""
        return {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": 1 + worker * self.tensor_parallel,
            "world_size": self.world_size,
            "packed": True,
            "packed_buffer_size_bytes": self.buffer_bytes,
        }


def publish(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> None:
    """Move the learner's weights into every rollout engine, as `version`."""
    if rollout.transfer == "nccl":
        _through_nccl(learner, rollout, version)
    else:
        _through_host_memory(learner, rollout, version)


def _through_host_memory(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> None:
    buckets = learner.put_weights(rollout.config.dtype)
    rollout.call("begin_update", phase="publish")
    for bucket, expected in buckets:
        rollout.call("load_bucket", bucket, expected, phase="publish")
    rollout.call("finish_update", version, phase="publish")


def _through_nccl(learner: "LearnerGroup", rollout: "RolloutGroup", version: int) -> None:
    """Not exercised by the test suite, which has no GPU."""
    if not rollout.joined:
        _open_channel(learner, rollout)
    rollout.call("begin_update", phase="publish")
    # Both ends meet inside the same collective, so neither may be waited for alone.
    update_info = learner.weight_info(rollout.config.dtype)
    sent, _ = gather([(learner, learner.begin("send")), (rollout, rollout.begin("receive", update_info))], "publish")
    rollout.call("finish_update", version, sent[0], phase="publish")


def _open_channel(learner: "LearnerGroup", rollout: "RolloutGroup") -> None:
    address, port = learner.get([learner.workers[0].open_port.remote()], "publish")[0]
    config = rollout.config
    channel = NcclChannel(address, port, config.workers, config.tensor_parallel, learner.config.publish_bucket_mib * 2**20)
    engines = [worker.join_transfer.remote(channel.engine_info(index)) for index, worker in enumerate(rollout.workers)]
    gather([(learner, learner.begin("join_transfer", channel, config.dtype)), (rollout, engines)], "publish")
    rollout.joined = True
