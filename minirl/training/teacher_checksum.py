"""The checksum of the teacher that is rebuilt from hidden states, against the log-probs that the teacher computed itself."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minirl.model.token_diagnostics import TokenDiagnostics
from minirl.objective.divergence import TokenStatistics
from minirl.types import EnsembleScores, TeacherScores


def sent_values(scores: Sequence[TeacherScores | EnsembleScores]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs and log-normalisers that the teacher sent, both [N], or [N, K] of K teachers; NaN where it sent none."""
    logprobs, log_normalizers = ([_sent(s, field) for s in scores] for field in ("logprobs", "log_normalizers"))
    return np.concatenate(logprobs), np.concatenate(log_normalizers)


def _sent(scores: TeacherScores | EnsembleScores, field: str) -> np.ndarray:
    if isinstance(scores, TeacherScores):
        return getattr(scores, field)
    members = [None if member is None else getattr(member, field) for member in scores.scores]
    missing = np.full_like(next(member for member in members if member is not None), np.nan)
    return np.stack([missing if member is None else member for member in members], axis=1)


def teacher_gap(tokens: TokenStatistics | TokenDiagnostics, sent_logprobs: Tensor, sent_log_normalizers: Tensor) -> Tensor:
    """The largest difference between the rebuilt teacher and the values of `sent_values`, relative to their size.

    The log-normaliser alone would not show permuted rows of the head, so the log-prob of the sampled token is compared too.
    """
    rebuilt = (tokens.teacher_logprobs, tokens.teacher_log_normalizers)
    if sent_logprobs.ndim == 2:
        rebuilt = (tokens.member_logprobs, tokens.member_log_normalizers)
    size = sent_log_normalizers.abs().clamp(min=1.0)
    gaps = [(mine - sent).abs() / size for mine, sent in zip(rebuilt, (sent_logprobs, sent_log_normalizers), strict=True)]
    return torch.maximum(*gaps).masked_fill(sent_log_normalizers.isnan(), 0.0).max()
