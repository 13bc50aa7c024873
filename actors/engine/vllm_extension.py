"""Methods added to vLLM's worker class: set the teacher share, and compare loaded weights with those that were sent."""

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from actors.weights.host_memory import student_of
from actors.weights.packed import SentSample

HEAD = "lm_head.weight"


class WorkerExtension:
    """Mixed into vLLM's worker class. The rollout worker calls each method on all ranks through `collective_rpc`."""

    def set_teacher_share(self, teacher_share: float) -> None:
        self.model_runner.model.teacher_share = teacher_share

    def compare_loaded(self, samples: list[SentSample]) -> tuple[int, list[str]]:
        """Compares the sent samples with the weights that this rank computes with.

        Returns how many tensors it could compare, and the names of those that differ. It compares only tensors that vLLM keeps under
        their name and layout: norms, embeddings, and the head. The head is read through its own kernel, which may hold a packed copy.
        """
        student = student_of(self.model_runner.model)
        parameters, modules = dict(student.named_parameters(remove_duplicate=False)), dict(student.named_modules())
        compared, different = 0, []
        for sample in samples:
            parameter, module = parameters.get(sample.name), modules.get(sample.name.rpartition(".")[0])
            loaded = None if parameter is None else _loaded_values(sample, parameter, module)
            if loaded is not None:
                compared += 1
                sent = torch.from_numpy(sample.values).to(parameter.dtype).float()
                on_this_rank = ~loaded.isnan()  # other ranks hold the other rows of a sharded embedding
                if not torch.equal(loaded[on_this_rank], sent[on_this_rank]):
                    different.append(sample.name)
        return compared, different


def _loaded_values(sample: SentSample, parameter: torch.Tensor, module: nn.Module | None) -> torch.Tensor | None:
    """The sampled elements as the engine holds them, float32 [n], NaN for those on another rank. None if the tensor cannot be compared."""
    if len(sample.shape) == 1:
        return parameter.detach().cpu().float()[sample.indices] if tuple(parameter.shape) == sample.shape else None
    if not hasattr(module, "shard_indices") and not isinstance(module, nn.Embedding):
        return None
    rows, columns = (torch.from_numpy(i) for i in np.divmod(sample.indices, sample.shape[1]))
    first_row = module.shard_indices.org_vocab_start_index if hasattr(module, "shard_indices") else 0
    rows = rows - first_row
    on_this_rank = (rows >= 0) & (rows < parameter.shape[0])
    values = torch.full(rows.shape, torch.nan)
    if isinstance(module, ParallelLMHead):
        # One-hot inputs: output row r of input i is the element (r, columns[i]) of the head.
        probes = torch.zeros(len(columns), sample.shape[1], dtype=parameter.dtype, device=parameter.device)
        probes[torch.arange(len(columns)), columns] = 1
        outputs = module.quant_method.apply(module, probes).cpu().float()
        values[on_this_rank] = outputs[torch.arange(len(rows))[on_this_rank], rows[on_this_rank]]
    else:
        values[on_this_rank] = parameter.detach().cpu().float()[rows[on_this_rank], columns[on_this_rank]]
    return values
