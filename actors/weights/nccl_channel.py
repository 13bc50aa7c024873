"""NcclChannel: address and ranks of the NCCL group that carries weights from the learner to the rollout engines."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NcclChannel:
    """One NCCL group: learner rank 0 is its rank 0, and the devices of all rollout engines follow.

    Worked example, 2 rollout workers with tensor_parallel 2: world_size 5; worker 0 has the ranks 1 and 2, worker 1 has 3 and 4.
    address, port: where learner rank 0 waits. buffer_bytes: size of a packed buffer; both ends must use the same.
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
        """vLLM's init info for the engine of one rollout worker. vLLM adds the rank within the engine to `rank_offset`."""
        return {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": 1 + worker * self.tensor_parallel,
            "world_size": self.world_size,
            "packed": True,
            "packed_buffer_size_bytes": self.buffer_bytes,
        }
