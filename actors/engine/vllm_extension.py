"""What runs inside vLLM's own worker processes: loading weights from host memory, and the calls that the engine's owner makes."""

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from actors.weights.host_memory import student_of
from actors.weights.packed import SentSample

HEAD = "lm_head.weight"


class WorkerExtension:
    """Mixed into vLLM's worker class; every method is called on all ranks through `collective_rpc`."""

    def set_teacher_share(self, teacher_share: float) -> None:
        self.model_runner.model.teacher_share = teacher_share

    def compare_loaded(self, samples: list[SentSample]) -> tuple[int, list[str]]:
        """Compare what was sent with what this rank computes with: how many tensors could be compared, and which differ.

        Only tensors that vLLM keeps under their name and layout: norms, embeddings, and the head, which is asked through its own
        kernel, since that may hold a packed copy.
        """
        student = student_of(self.model_runner.model)
        parameters, modules = dict(student.named_parameters(remove_duplicate=False)), dict(student.named_modules())
        compared, different = 0, []
        for sample in samples:
            parameter, module = parameters.get(sample.name), modules.get(sample.name.rpartition(".")[0])
            held = None if parameter is None else _held_values(sample, parameter, module)
            if held is not None:
                compared += 1
                sent = torch.from_numpy(sample.values).to(parameter.dtype).float()
                here = ~held.isnan()  # the rows of a sharded embedding that other ranks hold are not here
                if not torch.equal(held[here], sent[here]):
                    different.append(sample.name)
        return compared, different


def _held_values(sample: SentSample, parameter: torch.Tensor, module: nn.Module | None) -> torch.Tensor | None:
    """The sampled elements as the engine holds them, float32 [n], NaN where they are on another rank; None if not comparable."""
    if len(sample.shape) == 1:
        return parameter.detach().cpu().float()[sample.indices] if tuple(parameter.shape) == sample.shape else None
    if not hasattr(module, "shard_indices") and not isinstance(module, nn.Embedding):
        return None
    rows, columns = (torch.from_numpy(i) for i in np.divmod(sample.indices, sample.shape[1]))
    first = module.shard_indices.org_vocab_start_index if hasattr(module, "shard_indices") else 0
    rows = rows - first
    here = (rows >= 0) & (rows < parameter.shape[0])
    values = torch.full(rows.shape, torch.nan)
    if isinstance(module, ParallelLMHead):
        probes = torch.zeros(len(columns), sample.shape[1], dtype=parameter.dtype, device=parameter.device)
        probes[torch.arange(len(columns)), columns] = 1
        outputs = module.quant_method.apply(module, probes).cpu().float()
        values[here] = outputs[torch.arange(len(rows))[here], rows[here]]
    else:
        values[here] = parameter.detach().cpu().float()[rows[here], columns[here]]
    return values
