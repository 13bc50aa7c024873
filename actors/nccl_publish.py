"""The learner's end of vLLM's own NCCL weight transfer. Needs GPUs: not exercised by the test suite, which has none.

The engines' end is `RolloutWorker.join_transfer` and `receive`; vLLM's engine drives both through a client with four methods
(`init_weight_transfer_engine`, `start_weight_update`, `update_weights`, `finish_weight_update`) that the rollout group supplies.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

NamedTensors = Iterable[tuple[str, torch.Tensor]]


def nccl_sender(
    shapes: list[tuple[str, torch.dtype, tuple[int, ...]]],
    weights: Callable[[], NamedTensors],
    client: Any,
    *,
    master_address: str,
    master_port: int,
    engine_ranks: int,
    learner_rank: int,
) -> Any:
    """Open the transfer; the result's `send_weights()` publishes once and `shutdown()` closes. Call it on every learner rank.

    shapes: name, dtype and full shape of every tensor that `weights()` will yield, in that order. engine_ranks: workers x
    tensor_parallel of the rollout group. Rank 0 sends; the others only iterate, since gathering ZeRO-3 shards is a collective.
    """
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class LearnerWeights(WeightSource):
        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(*shape) for shape in shapes]

        def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(weights())

    info = NCCLTrainerInitInfo(master_address, master_port, world_size=1 + engine_ranks, rank=learner_rank)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=LearnerWeights())
