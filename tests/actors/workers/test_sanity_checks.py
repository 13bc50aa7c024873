"""Checks that stop a run, also when the checked number is NaN."""

import math

import pytest
import torch

from actors.config import LearnerConfig, LearnerSetup
from actors.workers.sanity_checks import check_behavior_match, check_teacher_match
from minirl.errors import RunError
from minirl.training.update import LossDivisors, UpdateStep

STEP = UpdateStep(7, 21, 1e-3, LossDivisors())


def setup(**changes) -> LearnerSetup:
    config = LearnerConfig(checksum_tolerance=changes.pop("checksum_tolerance", None))
    return LearnerSetup(model="student", teacher="teacher", vocabulary=64, config=config, device="cpu", threads=1, seed=0, **changes)


@pytest.mark.parametrize("gap", [0.11, math.nan, math.inf])
def test_a_wrongly_rebuilt_teacher_is_refused(gap):
    with pytest.raises(RunError, match=r"the teacher rebuilt from hidden states is (0.11|nan|inf) .* more than 0.1"):
        check_teacher_match({"teacher_gap_max": torch.tensor(gap)}, setup(checksum_tolerance=0.1))


def test_rounding_is_allowed_and_bfloat16_rounds_more():
    check_teacher_match({"teacher_gap_max": torch.tensor(0.09)}, setup(checksum_tolerance=0.1))
    check_teacher_match({}, setup())
    gap = {"teacher_gap_max": torch.tensor(1e-2)}
    check_teacher_match(gap, setup(teacher_dtype="bfloat16"))
    with pytest.raises(RunError):
        check_teacher_match(gap, setup())


@pytest.mark.parametrize("total", [5.0, math.nan])
def test_an_engine_that_samples_with_other_weights_is_refused(total):
    sums = {"behavior_gap": torch.tensor(total), "response_tokens": torch.tensor(10)}
    with pytest.raises(RunError, match=r"iteration 7: the learner and the rollout engine differ by (0.5|nan) nats per token"):
        check_behavior_match(sums, STEP, setup(behavior_dtype="bfloat16"))


def test_the_gap_is_a_mean_over_tokens_and_an_unmeasured_gap_is_allowed():
    sums = {"behavior_gap": torch.tensor(5.0), "response_tokens": torch.tensor(10_000)}
    check_behavior_match(sums, STEP, setup())
    check_behavior_match({}, STEP, setup())
