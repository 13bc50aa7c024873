"""Both ends of vLLM's own NCCL weight transfer. Needs GPUs: the test suite, which has none, runs nothing of it beyond `LearnerWeights`.

vLLM's sender means to make the engines' calls itself. Here the driver makes them (`actors.groups.publishing`), at the same time and with
one deadline for both ends, so that an engine that fails is reported at once and not after the sender has waited for it; hence
`DrivenElsewhere`.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine

from actors.weights.host_memory import student_of
from actors.weights.nccl_channel import NcclChannel
from actors.weights.packed import SentSample, sample_of


class PublishingLearner(Protocol):
    """What the sender asks of a learner rank."""

    rank: int

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def gathered_weights(self, dtype: str) -> Iterator[tuple[str, Tensor]]: ...


class StudentNcclEngine(NCCLWeightTransferEngine):
    """The engine's end: vLLM's own, aimed at the student alone where the model is a mixed policy."""

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module):
        super().__init__(config, vllm_config, device, student_of(model))


class LearnerWeights(WeightSource):
    """The learner's weights as vLLM's sender reads them. sent: a few elements of each tensor of the last pass, on rank 0."""

    def __init__(self, learner: PublishingLearner, dtype: str):
        self.learner, self.dtype, self.sent = learner, dtype, []

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, getattr(torch, self.dtype), shape) for name, shape in self.learner.weight_shapes()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.sent: list[SentSample] = []
        for name, tensor in self.learner.gathered_weights(self.dtype):
            if self.learner.rank == 0:
                self.sent.append(sample_of(name, tensor))
            yield name, tensor


class DrivenElsewhere:
    """The engines' calls as vLLM's sender makes them: none, since the driver makes them."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


def open_sender(learner: PublishingLearner, channel: NcclChannel, dtype: str) -> Any:
    """The learner's end; `send_weights()` publishes once. Every rank opens and sends: gathering ZeRO-3 shards is a collective."""
    info = NCCLTrainerInitInfo(
        channel.address,
        channel.port,
        channel.world_size,
        packed=True,
        packed_buffer_size_bytes=channel.buffer_bytes,
        rank=learner.rank,
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=DrivenElsewhere(), source=LearnerWeights(learner, dtype))
