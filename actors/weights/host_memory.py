"""The vLLM weight-transfer engine that loads new student weights from buckets in host memory.

`actors.engine.plugin` registers `HostMemoryEngine` with vLLM, and vLLM builds one in each of its worker processes. The rollout worker
(`actors.workers.rollout`) drives a weight update:

    begin_weights    start_weight_update    vLLM makes every layer of the student buffer the weights that it receives
    load_bucket      update_weights         once per bucket; a layer that has received all its weights replaces them in place
    finish_weights   finish_weight_update   vLLM processes the layers that are still waiting

Where the engine holds a mixture, only the student is loaded; the teacher stays as it is.
"""

from dataclasses import dataclass

import torch
from torch import nn
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.packed import PackedWeights


@dataclass
class HostMemoryInitInfo(WeightTransferInitInfo):
    """Empty: host memory needs no connection."""


@dataclass
class HostMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One bucket of an update."""

    bucket: PackedWeights


class HostMemoryEngine(WeightTransferEngine[HostMemoryInitInfo, HostMemoryUpdateInfo]):
    """Loads buckets into the student, layer by layer."""

    init_info_cls, update_info_cls = HostMemoryInitInfo, HostMemoryUpdateInfo

    def init_transfer_engine(self, init_info: HostMemoryInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(student_of(self.model))

    def update_weights(self, update_info: dict) -> None:
        # The base class synchronises an accelerator, which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: HostMemoryUpdateInfo) -> None:
        student_of(self.model).load_weights(update_info.bucket.tensors())

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(student_of(self.model), self.model_config)

    def shutdown(self) -> None:
        pass


def student_of(model: nn.Module) -> nn.Module:
    """The network that the learner trains: the student inside a mixture, else the model itself."""
    return getattr(model, "student", model)
