"""Statistics of target tokens from hidden states and output heads, with at most one chunk of logits in memory.

`head_statistics` is one autograd function with a hand-written gradient. With plain autograd, whole passes over [tokens, vocabulary] would
leave the cache and use fresh memory, which costs more than the matrix products. The logits of a chunk lie in buffers that outlive the pass;
everything else runs in blocks of rows. The logits of the last chunk are kept for the backward pass, which overwrites them with its
gradient. The backward pass computes the logits of earlier chunks again; there are none if the targets of a micro-batch fit one chunk.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from minirl.config.objective import DivergenceConfig
from minirl.model.buffers import BufferPool
from minirl.model.matmul import multiplies_natively
from minirl.model.output_head import OutputHead
from minirl.model.row_blocks import Derivatives, RowBlocks, RowStatistics
from minirl.model.teacher_ensemble import EnsembleStates, MemberStatistics, TeacherEnsemble, concatenate_members, teacher_logits_into
from minirl.objective.divergence import TokenStatistics, divergence_of


@dataclass(frozen=True)
class HeadCall:
    """The constants of one pass. targets: [N]; teacher_hidden: [N, d_teacher], or the states of several teachers; None without a teacher.

    keep_logits: a backward pass may follow.
    """

    targets: Tensor
    teacher: OutputHead | TeacherEnsemble | None
    teacher_hidden: Tensor | EnsembleStates | None
    temperature: float
    teacher_expectations: bool
    divergence: DivergenceConfig | None
    chunk_tokens: int
    buffer_pool: BufferPool
    keep_logits: bool

    def chunks(self) -> list[slice]:
        """At least one chunk, empty if there are no targets: under ZeRO-3 every rank must use the output head."""
        rows = len(self.targets)
        return [slice(start, min(start + self.chunk_tokens, rows)) for start in range(0, max(rows, 1), self.chunk_tokens)]

    def blocks(self, logits: Tensor) -> RowBlocks:
        config = self.divergence
        return RowBlocks(logits, None if config is None else partial(divergence_of, config=config, divided_by=self.temperature))


def head_statistics(
    hidden: Tensor,
    targets: Tensor,
    student: OutputHead,
    *,
    chunk_tokens: int,
    teacher: OutputHead | TeacherEnsemble | None = None,
    teacher_hidden: Tensor | EnsembleStates | None = None,
    temperature: float = 1.0,
    teacher_expectations: bool = True,
    divergence: DivergenceConfig | None = None,
    buffer_pool: BufferPool | None = None,
) -> TokenStatistics:
    """`token_statistics` of N targets from hidden states [N, d] and output heads, with at most `chunk_tokens` rows of logits at once.

    Differentiable once, by `hidden` and by the student's weight and bias. Teacher values carry no gradient.
    """
    call = HeadCall(
        targets,
        teacher,
        teacher_hidden,
        temperature,
        teacher_expectations,
        divergence,
        chunk_tokens,
        buffer_pool or BufferPool(),
        keep_logits=torch.is_grad_enabled(),
    )
    return TokenStatistics(*_HeadStatistics.apply(hidden, student.weight, student.bias, student, call))


class _HeadStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, student: OutputHead, call: HeadCall) -> tuple[Tensor | None, ...]:
        logits, block_statistics, members = _Logits(call, student.vocabulary, hidden), [], []
        with widened_head(student, hidden, call.buffer_pool) as head:
            for chunk in call.chunks():
                members.append(logits.fill(chunk, hidden, head))
                block_statistics += _statistics_of(logits, call)
        member_logprobs, member_log_normalizers = concatenate_members(members)
        rows = RowStatistics(*(None if field[0] is None else torch.cat(field) for field in zip(*block_statistics, strict=True)))
        rows = rows._replace(member_logprobs=member_logprobs, member_log_normalizers=member_log_normalizers)
        if call.keep_logits:
            ctx.logits, ctx.rows, ctx.call, ctx.student = logits, rows, call, replace(student, weight=None, bias=None)
            ctx.save_for_backward(hidden, weight, bias)
        else:
            logits.give_back()
        ctx.set_materialize_grads(False)
        teacher_values = (rows.teacher_logprobs, rows.teacher_log_normalizers, rows.member_logprobs, rows.member_log_normalizers)
        ctx.mark_non_differentiable(*(t for t in teacher_values if t is not None))
        return tuple(getattr(rows, name) for name in TokenStatistics._fields)

    @staticmethod
    def backward(ctx, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        student = replace(ctx.student, weight=weight, bias=bias)
        logits, ctx.logits = ctx.logits or _Logits(ctx.call, student.vocabulary, hidden), None
        total = _Gradients(hidden, student, trained=ctx.needs_input_grad[1])
        for chunk in reversed(ctx.call.chunks()):
            if logits.chunk != chunk:
                with widened_head(student, hidden, ctx.call.buffer_pool) as head:
                    logits.fill(chunk, hidden, head)
            total.add(chunk, _gradient_of(logits, ctx.rows, ctx.call, upstream, student))
        logits.give_back()
        return total.hidden, total.weight(), total.bias(), None, None


class _Logits:
    """The logits of student and teacher for one chunk at a time, [n, V] each, in buffers borrowed from the pool."""

    def __init__(self, call: HeadCall, width: int, hidden: Tensor):
        self._call, self._width, self.chunk = call, width, None
        names = ("student logits", "teacher logits")[: 1 if call.teacher_hidden is None else 2]
        size = max((chunk.stop - chunk.start) for chunk in call.chunks()) * width
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        self._buffers = {name: call.buffer_pool.borrow(name, size, dtype, hidden.device) for name in names}

    def fill(self, chunk: slice, hidden: Tensor, student: OutputHead) -> MemberStatistics | None:
        """Compute the logits of a chunk. With several teachers, the teacher logits are the log-probs of their average, and the return
        value holds the log-probs and log-normalisers of each teacher.
        """
        self.chunk, call = chunk, self._call
        student.logits_into(self.student, hidden[chunk], call.temperature)
        if call.teacher_hidden is None:
            return None
        return teacher_logits_into(
            self.teacher,
            call.teacher,
            call.teacher_hidden[chunk],
            call.targets[chunk],
            temperature=call.temperature,
            buffer_pool=call.buffer_pool,
        )

    @property
    def student(self) -> Tensor:
        return self._view("student logits")

    @property
    def teacher(self) -> Tensor | None:
        return None if self._call.teacher_hidden is None else self._view("teacher logits")

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """A tensor [n, V] of `dtype` in the memory of the student's logits. `dtype` is not wider than theirs, so writing gradient row i
        overwrites no row of logits after i.
        """
        rows = self.student
        return rows.view(-1).view(dtype)[: rows.numel()].view(rows.shape)

    def give_back(self) -> None:
        for name, buffer in self._buffers.items():
            self._call.buffer_pool.give_back(name, buffer)
        self._buffers = {}

    def _view(self, name: str) -> Tensor:
        rows = self.chunk.stop - self.chunk.start
        return self._buffers[name][: rows * self._width].view(rows, self._width)


class _Gradients:
    """Sums d loss / d (hidden, weight, bias) over chunks: products in the dtype of the parameters, sums of several chunks in float32.

    trained: False for a frozen head, as with adapters; its weight and bias then get no gradient.
    """

    def __init__(self, hidden: Tensor, student: OutputHead, *, trained: bool):
        self._rows, self._student, self._trained = hidden, student, trained
        self.hidden = torch.empty_like(hidden)
        self._weight, self._bias = None, None

    def add(self, chunk: slice, gradient: Tensor) -> None:
        """Add a chunk. gradient: d loss / d (h @ weight.T + bias) [n, V] of its rows."""
        torch.mm(gradient, self._student.weight[: self._student.vocabulary], out=self.hidden[chunk])
        if not self._trained:
            return
        weight = gradient.T @ self._rows[chunk]
        self._weight = weight if self._weight is None else self._weight.to(torch.promote_types(weight.dtype, torch.float32)).add_(weight)
        if self._student.bias is not None:
            bias = gradient.sum(0, dtype=torch.promote_types(gradient.dtype, torch.float32))
            self._bias = bias if self._bias is None else self._bias + bias

    def weight(self) -> Tensor | None:
        return None if self._weight is None else _as_parameter(self._weight, self._student.weight)

    def bias(self) -> Tensor | None:
        return None if self._bias is None else _as_parameter(self._bias, self._student.bias)


def _statistics_of(logits: _Logits, call: HeadCall) -> list[RowStatistics]:
    student, teacher, targets = logits.student, logits.teacher, call.targets[logits.chunk]
    blocks = call.blocks(student)
    return [
        blocks.statistics(
            student[rows], None if teacher is None else teacher[rows], targets[rows], teacher_expectations=call.teacher_expectations
        )
        for rows in blocks.slices(len(student))
    ]


def _gradient_of(logits: _Logits, rows: RowStatistics, call: HeadCall, upstream: tuple[Tensor | None, ...], student: OutputHead) -> Tensor:
    """d loss / d (h @ weight.T + bias) [n, V] of the chunk's rows, in the dtype of the weight; it overwrites the student's logits."""
    chunk = logits.chunk
    out, rows = logits.gradient(student.weight.dtype), _slice_rows(rows, chunk)
    derivatives = _derivatives(upstream, chunk, student.scale / call.temperature, torch.zeros_like(rows.student_logprobs))
    blocks = call.blocks(logits.student)
    for block in blocks.slices(len(out)):
        z, t = logits.student[block], None if logits.teacher is None else logits.teacher[block]
        gradient = blocks.gradient(z, t, call.targets[chunk][block], _slice_rows(rows, block), _slice_rows(derivatives, block))
        if student.soft_cap is not None:
            gradient *= 1 - (z * (call.temperature / student.soft_cap)).square()
        out[block] = gradient
    return out


def _derivatives(upstream: tuple[Tensor | None, ...], chunk: slice, factor: float, zeros: Tensor) -> Derivatives:
    """The chunk's rows of the derivatives by each statistic. factor: scale / temperature, by the chain rule."""
    by_name = {name: t[chunk] * factor for name, t in zip(TokenStatistics._fields, upstream, strict=True) if t is not None}
    teacher_expectations = [by_name[name] for name in ("forward_kl", "soft_cross_entropy") if name in by_name]
    return Derivatives(
        logprobs=by_name.get("student_logprobs", zeros),
        reverse_kl=by_name.get("reverse_kl", zeros),
        teacher_expectations=sum(teacher_expectations) if teacher_expectations else None,
        divergence=by_name.get("divergence"),
    )


Rows = TypeVar("Rows", RowStatistics, Derivatives)


def _slice_rows(rows: Rows, selected: slice) -> Rows:
    return type(rows)(*(None if field is None else field[selected] for field in rows))


def _as_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the dtype and shape of the parameter; rows beyond the shared vocabulary are 0."""
    gradient = gradient.to(parameter.dtype)
    if len(gradient) == len(parameter):
        return gradient
    return torch.cat([gradient, gradient.new_zeros(len(parameter) - len(gradient), *gradient.shape[1:])])


@contextmanager
def widened_head(head: OutputHead, hidden: Tensor, buffer_pool: BufferPool) -> Iterator[OutputHead]:
    """The head for one pass of products: on a CPU its weight is widened once for the pass, not once for each chunk."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    if multiplies_natively(head.weight) or head.weight.dtype == dtype:
        yield head
        return
    weight = head.weight[: head.vocabulary]
    buffer = buffer_pool.borrow("student weight", weight.numel(), dtype, weight.device)
    yield replace(head, weight=buffer[: weight.numel()].view(weight.shape).copy_(weight))
    buffer_pool.give_back("student weight", buffer)
