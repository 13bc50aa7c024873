"""The student as the learner trains it: a micro-batch in, a few numbers for each target token out."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minirl.batch import MicroBatch
from minirl.divergence import TokenStatistics, in_chunks, token_statistics
from minirl.models import OutputHead, student_head


class StudentModule(nn.Module):
    """Backbone, then the output heads of student and teacher over chunks of target tokens.

    The student's head is a module of its own that owns the head's parameters, so that ZeRO-3 gathers them once a pass and not once a
    chunk. The teacher's head is a constant, kept out of the module tree.
    """

    def __init__(self, model: PreTrainedModel, *, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | None = None):
        super().__init__()
        self.model = model
        self.head = _Head(model, vocabulary, chunk_tokens, teacher_head)

    def forward(
        self, batch: MicroBatch, teacher_hidden: Tensor | None = None, temperature: float = 1.0, under_teacher: bool = True
    ) -> TokenStatistics:
        """One row of statistics for each of the micro-batch's N targets. teacher_hidden: [N, d_teacher]."""
        hidden = self.model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        return self.head(batch.predicting(hidden), batch.targets, teacher_hidden, temperature, under_teacher)


class _Head(nn.Module):
    def __init__(self, model: PreTrainedModel, vocabulary: int, chunk_tokens: int, teacher_head: OutputHead | None):
        super().__init__()
        own = student_head(model, vocabulary)
        self.weight, self.bias = own.weight, own.bias
        self.scale, self.soft_cap, self.vocabulary, self.chunk_tokens = own.scale, own.soft_cap, vocabulary, chunk_tokens
        self.teacher_head = teacher_head

    def forward(
        self, hidden: Tensor, targets: Tensor, teacher_hidden: Tensor | None, temperature: float, under_teacher: bool
    ) -> TokenStatistics:
        def statistics(hidden: Tensor, targets: Tensor, teacher_hidden: Tensor | None) -> TokenStatistics:
            head = OutputHead(self.weight, self.bias, self.scale, self.soft_cap, self.vocabulary)
            teacher_logits = None
            if teacher_hidden is not None:
                with torch.no_grad():
                    teacher_logits = self.teacher_head.logits(teacher_hidden, temperature)
            return token_statistics(head.logits(hidden, temperature), targets, teacher_logits, under_teacher=under_teacher)

        return in_chunks(statistics, self.chunk_tokens, hidden, targets, teacher_hidden)
