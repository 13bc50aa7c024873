"""Methods added to vLLM's worker class: teacher share, captured scores, width of scored states, check of loaded weights."""

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from actors.engine.model_runner import loaded_model, runner_class
from actors.weights.loaded_model import engine_name, head_rows, head_width, output_head, student_of
from actors.weights.packed import SentSample
from minirl.types import TeacherScores


class WorkerExtension:
    """Mixed into vLLM's worker class. The workers call each method on all ranks through `collective_rpc`."""

    def runner_class(self) -> str:
        return runner_class(self)

    def set_sampling(self, teacher_share: float, with_scores: bool) -> None:
        loaded_model(self).set_sampling(teacher_share, self.model_runner if with_scores else None)

    def take_scores(self, finished: list[tuple[str, list[int]]]) -> list[TeacherScores]:
        """The teacher's scores of responses that have ended, see `MixtureForCausalLM.take_scores`. Empty on other ranks than 0."""
        scores = loaded_model(self).take_scores(finished)
        return scores if self.rank == 0 else []

    def scored_width(self) -> int:
        """Elements of the hidden states that a scoring engine returns."""
        return head_width(loaded_model(self).network)

    def compare_loaded(self, samples: list[SentSample]) -> tuple[bool, list[str]]:
        """Compares the sent samples with the weights that this rank computes with.

        Returns whether the output head was among them, and the names of those that differ. It compares only tensors that vLLM keeps in
        their layout: norms, embeddings, and the head. The head is read through its own kernel, which may hold a packed copy.
        """
        student = student_of(loaded_model(self))
        head = output_head(student)
        parameters, modules = dict(student.named_parameters(remove_duplicate=False)), dict(student.named_modules())
        head_compared, different = False, []
        for sample in samples:
            name = engine_name(student, sample.name)
            parameter, module = parameters.get(name), modules.get(name.rpartition(".")[0])
            copies = [] if parameter is None else [_loaded_values(sample, parameter, module)]
            if parameter is head.weight:  # also where the head is tied to this embedding
                copies.append(_head_values(sample, head))
                head_compared = True
            for loaded in copies:
                if loaded is None:
                    continue
                sent = torch.from_numpy(sample.values).to(parameter.dtype).float()
                on_this_rank = ~loaded.isnan()  # other ranks hold the other rows of a sharded embedding
                if not torch.equal(loaded[on_this_rank], sent[on_this_rank]) and sample.name not in different:
                    different.append(sample.name)
        return head_compared, different


def _loaded_values(sample: SentSample, parameter: torch.Tensor, module: nn.Module | None) -> torch.Tensor | None:
    """The sampled elements as the engine holds them, float32 [n], NaN for those on another rank. None if the tensor cannot be compared."""
    if len(sample.shape) == 1:
        # A linear layer may hold its biases in another order (Bloom), and several of them in one.
        same_layout = tuple(parameter.shape) == sample.shape and not isinstance(module, LinearBase)
        return parameter.detach().cpu().float()[sample.indices] if same_layout else None
    if not isinstance(module, VocabParallelEmbedding | nn.Embedding) or parameter.shape[1:] != sample.shape[1:]:
        return None
    rows, columns, on_this_rank = _positions(sample, module, len(parameter))
    values = torch.full(rows.shape, torch.nan)
    values[on_this_rank] = parameter.detach().cpu().float()[rows[on_this_rank], columns[on_this_rank]]
    return values


def _head_values(sample: SentSample, head: VocabParallelEmbedding) -> torch.Tensor:
    """The sampled elements as the head's kernel computes with them, float32 [n], NaN for those on another rank."""
    rows, columns, on_this_rank = _positions(sample, head, len(head.weight))
    values, outputs = torch.full(rows.shape, torch.nan), head_rows(head, columns)
    values[on_this_rank] = outputs[torch.arange(len(rows))[on_this_rank], rows[on_this_rank]]
    return values


def _positions(sample: SentSample, module: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row on this rank and column of each sampled element of a table, and whether this rank holds the row. count: the rank's rows."""
    rows, columns = (torch.from_numpy(i) for i in np.divmod(sample.indices, sample.shape[1]))
    rows = rows - (module.shard_indices.org_vocab_start_index if hasattr(module, "shard_indices") else 0)
    return rows, columns, (rows >= 0) & (rows < count)
