"""The receiving end of weights that travel through host memory: a weight-transfer engine for vLLM."""

from dataclasses import dataclass

import torch
from torch import nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.packed import PackedWeights


@dataclass
class NoInit(WeightTransferInitInfo):
    pass


@dataclass
class OneBucket(WeightTransferUpdateInfo):
    bucket: PackedWeights


class HostMemoryEngine(WeightTransferEngine[NoInit, OneBucket]):
    """Loads buckets of host memory layer by layer; in a mixed policy into the student alone."""

    init_info_cls, update_info_cls = NoInit, OneBucket

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(student_of(self.model))

    def update_weights(self, update_info: dict) -> None:
        # The base class synchronises an accelerator, which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: OneBucket) -> None:
        student_of(self.model).load_weights(update_info.bucket.tensors())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(student_of(self.model), self.model_config)

    def shutdown(self) -> None:
        pass


def student_of(model: nn.Module) -> nn.Module:
    """The network that the learner trains: the student inside a mixed policy, else the model itself."""
    return getattr(model, "student", model)
