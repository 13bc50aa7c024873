"""Both ends of vLLM's NCCL weight transfer: the engine that receives, and the sender on the learner's ranks.

It needs GPUs. The test suite has none and runs only `LearnerWeights`.

vLLM's sender expects to make the engines' calls itself. Here the driver makes them (`actors.groups.publishing`): it starts both ends at the
same time, with one deadline, so that it reports a failing engine at once instead of after the sender has waited for it. The sender
therefore gets a client that does nothing, `NoOpEngineClient`.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLWeightTransferEngine

from actors.weights.loaded_model import student_of
from actors.weights.nccl_channel import NcclChannel
from actors.weights.packed import SentSample, sample_elements


class PublishingLearner(Protocol):
    """The part of a learner rank that the sender uses."""

    rank: int

    def weight_shapes(self) -> list[tuple[str, tuple[int, ...]]]: ...
    def gathered_weights(self, dtype: str) -> Iterator[tuple[str, Tensor]]: ...


class StudentNcclEngine(NCCLWeightTransferEngine):
    """The receiving end: vLLM's own engine. Where the model is a mixture, it loads only the student."""

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module):
        super().__init__(config, vllm_config, device, student_of(model))


class LearnerWeights(WeightSource):
    """The learner's weights in the form that vLLM's sender reads. sent: on rank 0, a few elements of each tensor of the last pass."""

    def __init__(self, learner: PublishingLearner, dtype: str):
        self.learner, self.dtype, self.sent = learner, dtype, []

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, getattr(torch, self.dtype), shape) for name, shape in self.learner.weight_shapes()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self.sent: list[SentSample] = []
        for name, tensor in self.learner.gathered_weights(self.dtype):
            if self.learner.rank == 0:
                self.sent.append(sample_elements(name, tensor))
            yield name, tensor


class NoOpEngineClient:
    """Stands in for the engines in vLLM's sender. Its calls do nothing, because the driver calls the engines."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass


def open_sender(learner: PublishingLearner, channel: NcclChannel, dtype: str) -> Any:
    """The sending end; each `send_weights()` publishes once. Every rank opens one and sends: gathering ZeRO-3 shards is collective."""
    info = NCCLTrainerInitInfo(
        channel.address,
        channel.port,
        channel.world_size,
        packed=True,
        packed_buffer_size_bytes=channel.buffer_bytes,
        rank=learner.rank,
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=NoOpEngineClient(), source=LearnerWeights(learner, dtype))
