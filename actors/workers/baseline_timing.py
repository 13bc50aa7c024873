"""Baselines for `minirl bench`: seconds of plain PyTorch for the learner's work, on its device and in its dtype."""

import torch
from torch import nn
from transformers import PreTrainedModel

from minirl.bench.timing import median_seconds
from minirl.model.chunked_head import widened_head
from minirl.model.matmul import matmul_into
from minirl.model.microbatch import MicroBatch
from minirl.model.student import StudentHead


def baseline_seconds(model: PreTrainedModel, microbatches: list[MicroBatch]) -> float:
    """Seconds for forward and backward of the plain model over all micro-batches.

    It computes logits of every position in the model's dtype, and cross-entropy of the targets in float32. It deletes the model's
    gradients, so the model must not be in training.
    """

    def forward_backward() -> None:
        for batch in microbatches:
            logits = batch.padded.predicting_rows(model(input_ids=batch.padded.input_ids, use_cache=False).logits)
            nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum").backward()
        model.zero_grad()

    return median_seconds(forward_backward, model.device)


def head_seconds(head: StudentHead, tokens: int) -> dict[str, float]:
    """Seconds of the output heads over `tokens` random targets.

    `chunked`: forward and backward of the heads and the reverse KL, as in training. `products`: only the matrix products that this
    needs, four of them, or three if the student's head is frozen.
    """
    student, teacher = head.student, head.teacher_head
    device, dtype = student.weight.device, student.weight.dtype
    hidden = torch.randn(tokens, student.weight.shape[1], device=device, dtype=dtype, requires_grad=True)
    teacher_hidden = torch.randn(tokens, teacher.weight.shape[1], device=device, dtype=dtype)
    targets = torch.randint(student.vocabulary, (tokens,), device=device)
    parameters = [hidden, *(p for p in (student.weight, student.bias) if p is not None and p.requires_grad)]

    def chunked() -> None:
        statistics = head(hidden, targets, teacher_hidden, 1.0, teacher_expectations=False)
        torch.autograd.grad(statistics.reverse_kl.sum() - statistics.student_logprobs.sum(), parameters)

    chunk = min(tokens, head.chunk_tokens)
    logits = torch.empty(chunk, student.vocabulary, device=device, dtype=torch.promote_types(dtype, torch.float32))
    gradient = torch.ones(chunk, student.vocabulary, device=device, dtype=dtype)

    @torch.no_grad()
    def products() -> None:
        with widened_head(student, hidden, head.buffer_pool) as wide_head:
            for start in range(0, tokens, chunk):
                rows = slice(start, min(start + chunk, tokens))
                count = rows.stop - rows.start
                matmul_into(logits[:count], hidden[rows], wide_head.weight[: wide_head.vocabulary])
                matmul_into(logits[:count], teacher_hidden[rows], teacher.weight[: teacher.vocabulary])
                torch.mm(gradient[:count], student.weight[: student.vocabulary])
                if student.weight.requires_grad:
                    torch.mm(gradient[:count].T, hidden[rows])

    return {"chunked": median_seconds(chunked, device), "products": median_seconds(products, device)}
