"""Numbers that stop a run: a loss that is not finite, a teacher not rebuilt as it was, a student that is not the one that sampled."""

import torch
import torch.distributed as dist
from torch import Tensor

from actors.config import LearnerSetup
from minirl.errors import RunError
from minirl.training.update import Sums, UpdateStep

# How far the rebuilt teacher may be from the shipped one, relative to the log-normaliser (or 1 nat): rounding of logits, with room.
CHECKSUM_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
# How far the mean token of a fresh rollout may be, in nats, from what the learner makes of it.
BEHAVIOR_TOLERANCE = {"float32": 1e-2, "bfloat16": 0.3}


def refuse_non_finite(finite: bool | Tensor, step: UpdateStep, what: str, device: str) -> None:
    """Collective: one rank's number that is not finite stops them all. Raises RunError, before the weights are touched."""
    flag = torch.as_tensor(finite, device=device).int()
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    if not flag:
        raise RunError(
            f"the {what} of iteration {step.iteration}, update {step.update}, is not finite; "
            "lower the learning rate or train in float32, and start again: the last checkpoint is untouched"
        )


def refuse_bad_teacher(total: Sums, setup: LearnerSetup) -> None:
    """Raises RunError where the sum `teacher_gap_max` is above what rounding explains."""
    gap = float(total.get("teacher_gap_max", 0.0))
    tolerance = setup.config.checksum_tolerance or CHECKSUM_TOLERANCE[setup.teacher_dtype]
    if not gap <= tolerance:
        raise RunError(
            f"the teacher rebuilt from hidden states is {gap:.2g} (relative) away from what it says itself, more than {tolerance:.2g}: "
            "the learner's copy of its output head or a final norm is wrong; check that teacher.model is the same everywhere"
        )


def refuse_foreign_behavior(total: Sums, step: UpdateStep, setup: LearnerSetup) -> None:
    """Raises RunError where the mean gap in nats between the learner's mixture and the engine's log-probs is above rounding."""
    if "behavior_gap" not in total:
        return
    gap, tolerance = float(total["behavior_gap"] / total["response_tokens"]), BEHAVIOR_TOLERANCE[setup.behavior_dtype]
    if not gap <= tolerance:
        raise RunError(
            f"iteration {step.iteration}: the learner and the rollout engine differ by {gap:.2g} nats per token on the tokens just "
            f"sampled, more than {tolerance:.2g}: the published weights are not what the engine samples with"
        )
