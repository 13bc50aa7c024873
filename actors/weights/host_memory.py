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
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from actors.weights.loaded_model import has_tied_head, incomplete_layers, output_head, student_of
from actors.weights.packed import PackedWeights
from minirl.errors import RunError


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
        self._tied_head = has_tied_head(student_of(self.model))
        initialize_layerwise_reload(student_of(self.model))

    def update_weights(self, update_info: dict) -> None:
        # The base class synchronises an accelerator, which a CPU does not have.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: HostMemoryUpdateInfo) -> None:
        student_of(self.model).load_weights(update_info.bucket.tensors())

    def finish_weight_update(self) -> None:
        student = student_of(self.model)
        if incomplete := incomplete_layers(student, self._tied_head):
            raise RunError(
                f"the weights that were sent lack {len(incomplete)} layers of the rollout engine's {type(student).__name__}, "
                f"{incomplete[0]} first; name a student of another family"
            )
        finalize_layerwise_reload(student, self.model_config)
        if self._tied_head:  # a CPU kernel holds its own packed copy of the head
            output_head(student).quant_method.process_weights_after_loading(output_head(student))

    def shutdown(self) -> None:
        pass
