"""The mixture that samples (paper, Eq. 4): (1 - teacher_share) student + teacher_share teacher."""

import math

import torch


def mixture_logprobs(student: torch.Tensor, teacher: torch.Tensor, teacher_share: float) -> torch.Tensor:
    """log[(1-a) q + a p] from log q and log p of the same shape, elementwise, exact at a = 0 and a = 1.

    Accepts whole rows [..., V] as well as the log-probs of single tokens.
    """
    if teacher_share == 0.0:
        return student
    if teacher_share == 1.0:
        return teacher
    return torch.logaddexp(student + math.log1p(-teacher_share), teacher + math.log(teacher_share))
