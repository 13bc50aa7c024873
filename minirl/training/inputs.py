"""The items of a micro-batch, and what they need on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minirl.model.device_copy import copy_concatenated, copy_together
from minirl.model.microbatch import MicroBatch, make_microbatch
from minirl.model.teacher_ensemble import EnsembleStates
from minirl.model.token_diagnostics import TokenDiagnostics
from minirl.objective.divergence import TokenStatistics
from minirl.training.teacher_checksum import sent_values, teacher_gap
from minirl.types import EnsembleScores, Rollout, RolloutSummary, TeacherScores, TokenSequence


@dataclass(frozen=True)
class OnPolicyItem:
    """A rollout, the teacher's scores and, with `credit: frozen`, its advantages before whitening, float32 [T]."""

    rollout: Rollout
    scores: TeacherScores | EnsembleScores
    advantages: np.ndarray | None = None

    @property
    def sequence(self) -> TokenSequence:
        return self.rollout.sequence

    @property
    def summary(self) -> RolloutSummary:
        return self.rollout.summary


@dataclass(frozen=True)
class SupervisedItem:
    """A sequence with fixed targets: a gold response or plain text. scores: only where the loss needs the teacher's distribution."""

    sequence: TokenSequence
    scores: TeacherScores | EnsembleScores | None = None


@dataclass(frozen=True)
class Inputs:
    """What one micro-batch of B sequences and N targets needs on the device.

    teacher_hidden, sent_logprobs, sent_log_normalizers: None where the items have no scores; see `sent_values` for the latter two.
    behavior_logprobs [N], truncated [B] (1 or 0), advantages [N] with `credit: frozen`: of rollouts only.
    """

    batch: MicroBatch
    teacher_hidden: Tensor | EnsembleStates | None = None
    sent_logprobs: Tensor | None = None
    sent_log_normalizers: Tensor | None = None
    behavior_logprobs: Tensor | None = None
    truncated: Tensor | None = None
    advantages: Tensor | None = None

    @classmethod
    def of(cls, items: Sequence[OnPolicyItem | SupervisedItem], device: str) -> "Inputs":
        """Copies everything before the first operation is queued on the device, and waits for none of it."""
        batch, scores, arrays = make_microbatch([item.sequence for item in items], device), [item.scores for item in items], {}
        if items and isinstance(items[0], OnPolicyItem):
            arrays["behavior_logprobs"] = np.concatenate([item.rollout.behavior_logprobs for item in items])
            arrays["truncated"] = np.array([item.rollout.truncated for item in items], np.float32)
            if items[0].advantages is not None:
                arrays["advantages"] = np.concatenate([item.advantages for item in items])
        if not items or scores[0] is None:
            hidden = None
        else:
            arrays["sent_logprobs"], arrays["sent_log_normalizers"] = sent_values(scores)
            is_ensemble = isinstance(scores[0], EnsembleScores)
            hidden = EnsembleStates.from_scores(scores, device) if is_ensemble else copy_concatenated([s.hidden for s in scores], device)
        copied = copy_together(list(arrays.values()), device) if arrays else []
        return cls(batch, hidden, **dict(zip(arrays, copied, strict=True)))

    def gap(self, tokens: TokenStatistics | TokenDiagnostics) -> dict[str, Tensor]:
        """The teacher's checksum, to be logged."""
        return {"teacher_gap_max": teacher_gap(tokens, self.sent_logprobs, self.sent_log_normalizers)}
