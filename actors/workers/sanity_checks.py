"""Checks that stop a run: a non-finite loss or gradient, a teacher rebuilt wrongly, weights other than those that sampled."""

import torch
import torch.distributed as dist
from torch import Tensor

from actors.config import LearnerSetup
from minirl.errors import RunError
from minirl.training.update import Sums, UpdateStep

# Largest allowed gap between the teacher rebuilt by the learner and the teacher engine, relative to the log-normaliser (or to 1 nat).
# Rounding of logits stays well below it.
CHECKSUM_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
# Largest allowed gap between the learner's and the engine's log-probs of a fresh rollout: mean over tokens, in nats.
BEHAVIOR_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.3}


def check_finite(is_finite: bool | Tensor, step: UpdateStep, quantity: str, device: str) -> None:
    """Raises RunError on all ranks if `is_finite` is false on any rank. Collective. quantity: its name in the message."""
    flag = torch.as_tensor(is_finite, device=device).int()
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    if not flag:
        raise RunError(
            f"the {quantity} of iteration {step.iteration}, update {step.update}, is not finite; "
            "lower the learning rate or train in float32, and start again: the last checkpoint is untouched"
        )


def check_teacher_match(total: Sums, setup: LearnerSetup) -> None:
    """Raises RunError if the sum `teacher_gap_max` is larger than rounding explains."""
    gap = float(total.get("teacher_gap_max", 0.0))
    tolerance = setup.config.checksum_tolerance or CHECKSUM_TOLERANCE[setup.teacher_dtype]
    if not gap <= tolerance:
        raise RunError(
            f"the teacher rebuilt from hidden states is {gap:.2g} (relative) away from the teacher engine, more than {tolerance:.2g}: "
            "the learner's copy of its output head or a final norm is wrong; check that teacher.model is the same on all machines"
        )


def check_behavior_match(total: Sums, step: UpdateStep, setup: LearnerSetup) -> None:
    """Raises RunError if the mean gap in nats between the learner's mixture and the engine's log-probs exceeds rounding."""
    if "behavior_gap" not in total:
        return
    gap, tolerance = float(total["behavior_gap"] / total["response_tokens"]), BEHAVIOR_TOLERANCE[setup.behavior_dtype]
    if not gap <= tolerance:
        raise RunError(
            f"iteration {step.iteration}: the learner and the rollout engine differ by {gap:.2g} nats per token on the tokens just "
            f"sampled, more than {tolerance:.2g}: the engine does not sample with the published weights"
        )
