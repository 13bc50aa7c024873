"""StudentModule, the student as the learner trains it: a micro-batch in, statistics of each target token out."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minirl.config.objective import DivergenceConfig
from minirl.model.attention import default_kernel, kernel_refusal, use_kernel
from minirl.model.buffers import BufferPool
from minirl.model.chunked_head import head_statistics
from minirl.model.microbatch import MicroBatch, TokenRows, make_microbatch
from minirl.model.output_head import OutputHead, student_head
from minirl.model.sequence_ids import flash_arguments, known_sequences
from minirl.model.teacher_ensemble import EnsembleStates, TeacherEnsemble
from minirl.model.token_diagnostics import TokenDiagnostics, token_diagnostics
from minirl.objective.divergence import TokenStatistics
from minirl.types import TokenSequence

# Widest micro-batch for eager attention. Measured on AVX-512, forward and backward: eager attention takes a third of the time of SDPA at
# 100 tokens, the same time at about 200, twice the time at 512.
EAGER_WIDTH = 192


class StudentModule(nn.Module):
    """The backbone, followed by the output heads of student and teacher over chunks of target tokens.

    `StudentHead` is a separate module that owns the parameters of the student's head, so that ZeRO-3 gathers them once for each pass, not
    once for each chunk. The teacher's head is a constant outside the module tree.
    """

    def __init__(
        self, model: PreTrainedModel, *, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | TeacherEnsemble | None = None
    ):
        super().__init__()
        self.model = model
        self.head = StudentHead(model, vocabulary, chunk_tokens, teacher_head)
        self.attention_by_width = False  # for a CPU: choose the faster attention kernel by the width of each micro-batch
        self._wide_kernel = default_kernel(model.config)
        self._narrow_kernel = self._wide_kernel if kernel_refusal(model.config, "eager") else "eager"
        self.packed = False  # run micro-batches as one row without padding

    def forward(
        self,
        batch: MicroBatch,
        teacher_hidden: Tensor | EnsembleStates | None = None,
        temperature: float = 1.0,
        teacher_expectations: bool = True,
        divergence: DivergenceConfig | None = None,
        top_k: int | None = None,
    ) -> TokenStatistics | TokenDiagnostics:
        """Statistics of the N targets of the micro-batch. teacher_hidden: [N, d_teacher], or the states of several teachers.

        A `divergence` replaces all other expectations. With `top_k`, the result is `TokenDiagnostics`.
        """
        rows = batch.packed if self.packed else batch.padded
        if self.attention_by_width:
            self._choose_attention(rows.input_ids.shape[1])
        hidden = hidden_states(self.model, rows)
        return self.head(hidden, batch.targets, teacher_hidden, temperature, teacher_expectations, divergence, top_k)

    def _choose_attention(self, width: int) -> None:
        use_kernel(self.model, self._narrow_kernel if width <= EAGER_WIDTH else self._wide_kernel)


def hidden_states(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """[N, d]: the states that predict the targets of the micro-batch, after the final norm."""
    positions = {} if rows.position_ids is None else {"position_ids": rows.position_ids}
    with known_sequences(rows.sequence_ids):
        states = model.base_model(input_ids=rows.input_ids, use_cache=False, **positions, **flash_arguments(model, rows)).last_hidden_state
    return rows.predicting_rows(states)


@torch.no_grad()
def packing_gap(model: PreTrainedModel) -> float:
    """The largest difference between the states of a short sequence packed behind a long one and its states alone, relative to the largest
    state. It is large for a family that ignores `position_ids` or does not separate sequences by them; infinite without that argument.
    """
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(1, 64, (length,), generator=draw).numpy() for length in (48, 5)]
    sequences = [TokenSequence(t, np.arange(len(t)) > 0) for t in tokens]
    both, alone = (make_microbatch(subset, model.device) for subset in (sequences, sequences[1:]))
    was_training = model.training
    model.eval()
    try:
        packed, plain = (hidden_states(model, rows).float() for rows in (both.packed, alone.padded))
    except TypeError:  # the family has no argument position_ids
        return float("inf")
    finally:
        model.train(was_training)
    return float((packed[-len(plain) :] - plain).abs().max() / plain.abs().max())


class StudentHead(nn.Module):
    """The output heads of student and teacher as one module; it holds the parameters of the student's head."""

    def __init__(self, model: PreTrainedModel, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | TeacherEnsemble | None):
        super().__init__()
        head = student_head(model, vocabulary)
        self.weight, self.bias = head.weight, head.bias
        self.scale, self.soft_cap, self.vocabulary, self.chunk_tokens = head.scale, head.soft_cap, vocabulary, chunk_tokens
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
                temperature=temperature,
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
