"""The student as the learner trains it: a micro-batch in, a few numbers for each target token out."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minirl.config.objective import DivergenceConfig
from minirl.model.buffers import BufferPool
from minirl.model.chunked_head import head_statistics
from minirl.model.microbatch import MicroBatch, make_microbatch
from minirl.model.output_head import OutputHead, student_head
from minirl.model.teacher_ensemble import EnsembleStates, TeacherEnsemble
from minirl.model.token_diagnostics import TokenDiagnostics, token_diagnostics
from minirl.objective.divergence import TokenStatistics
from minirl.types import TokenSequence

# Measured on AVX-512, both passes: plain products take a third of the time of SDPA at 100 tokens, as long at about 200, twice at 512.
EAGER_WIDTH = 192


class StudentModule(nn.Module):
    """Backbone, then the output heads of student and teacher over chunks of target tokens.

    The student's head is a module of its own that owns the head's parameters, so that ZeRO-3 gathers them once a pass and not once a
    chunk. The teacher's head is a constant, kept out of the module tree.
    """

    def __init__(
        self, model: PreTrainedModel, *, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | TeacherEnsemble | None = None
    ):
        super().__init__()
        self.model = model
        self.head = StudentHead(model, vocabulary, chunk_tokens, teacher_head)
        self.attention_by_width = False  # on a CPU: whichever kernel is faster
        self.packed = False

    def forward(
        self,
        batch: MicroBatch,
        teacher_hidden: Tensor | EnsembleStates | None = None,
        temperature: float = 1.0,
        teacher_expectations: bool = True,
        divergence: DivergenceConfig | None = None,
        top_k: int | None = None,
    ) -> TokenStatistics | TokenDiagnostics:
        """One row of statistics for each of the micro-batch's N targets. teacher_hidden: [N, d_teacher], or of several teachers. A
        divergence that is asked for takes the place of all the others; top_k asks for diagnostics instead, at temperature 1.
        """
        rows = batch.packed() if self.packed else batch
        if self.attention_by_width:
            self._choose_attention(rows.input_ids.shape[1])
        hidden = hidden_states(self.model, rows)
        return self.head(hidden, batch.targets, teacher_hidden, temperature, teacher_expectations, divergence, top_k)

    def _choose_attention(self, width: int) -> None:
        kernel = "eager" if width <= EAGER_WIDTH else "sdpa"
        if self.model.config._attn_implementation != kernel:
            self.model.set_attn_implementation(kernel)


def hidden_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """[N, d]: the states that predict the micro-batch's targets, the final norm included."""
    positions = {} if batch.position_ids is None else {"position_ids": batch.position_ids}
    return batch.predicting_rows(model.base_model(input_ids=batch.input_ids, use_cache=False, **positions).last_hidden_state)


@torch.no_grad()
def packing_gap(model: PreTrainedModel) -> float:
    """How far the states of a short sequence behind a long one in the same row are from its states alone, at most, relative to the
    largest of them. A family that takes no `position_ids`, or takes them for less than where a sequence begins, is far off.
    """
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 64, (length,), generator=draw).numpy() for length in (48, 5)]
    sequences = [TokenSequence(t, np.arange(len(t)) > 0) for t in tokens]
    both, alone = (make_microbatch(part).to(model.device) for part in (sequences, sequences[1:]))
    was_training = model.training
    model.eval()
    try:
        packed, plain = (hidden_states(model, batch).float() for batch in (both.packed(), alone))
    except TypeError:  # no such argument
        return float("inf")
    finally:
        model.train(was_training)
    return float((packed[-len(plain) :] - plain).abs().max() / plain.abs().max())


class StudentHead(nn.Module):
    def __init__(self, model: PreTrainedModel, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | TeacherEnsemble | None):
        super().__init__()
        own = student_head(model, vocabulary)
        self.weight, self.bias = own.weight, own.bias
        self.scale, self.soft_cap, self.vocabulary, self.chunk_tokens = own.scale, own.soft_cap, vocabulary, chunk_tokens
        self.teacher_head = teacher_head
        self.buffer_pool = BufferPool()

    @property
    def student(self) -> OutputHead:
        return OutputHead(self.weight, self.bias, self.scale, self.soft_cap, self.vocabulary)

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        teacher_hidden: Tensor | EnsembleStates | None,
        temperature: float,
        teacher_expectations: bool,
        divergence: DivergenceConfig | None = None,
        top_k: int | None = None,
    ) -> TokenStatistics | TokenDiagnostics:
        if top_k is not None:
            return token_diagnostics(
                hidden,
                targets,
                self.student,
                teacher=self.teacher_head,
                teacher_hidden=teacher_hidden,
                top_k=top_k,
                chunk_tokens=self.chunk_tokens,
                buffer_pool=self.buffer_pool,
            )
        return head_statistics(
            hidden,
            targets,
            self.student,
            chunk_tokens=self.chunk_tokens,
            teacher=self.teacher_head,
            teacher_hidden=teacher_hidden,
            temperature=temperature,
            teacher_expectations=teacher_expectations,
            divergence=divergence,
            buffer_pool=self.buffer_pool,
        )
