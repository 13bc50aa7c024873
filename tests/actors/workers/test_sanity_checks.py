"""Bad numbers stop a run, and a number that is none is the worst."""

import math

import pytest
import torch

from actors.config import LearnerConfig, LearnerSetup
from actors.workers.sanity_checks import refuse_bad_teacher, refuse_foreign_behavior
from minirl.errors import RunError
from minirl.training.update import LossDivisors, UpdateStep

STEP = UpdateStep(7, 21, 1e-3, LossDivisors())


def setup(**changes) -> LearnerSetup:
    config = LearnerConfig(checksum_tolerance=changes.pop("checksum_tolerance", None))
    return LearnerSetup(model="student", teacher="teacher", vocabulary=64, config=config, device="cpu", threads=1, seed=0, **changes)


@pytest.mark.parametrize("gap", [0.11, math.nan, math.inf])
def test_a_teacher_that_is_not_rebuilt_as_it_was(gap):
    with pytest.raises(RunError, match=r"the teacher rebuilt from hidden states is (0.11|nan|inf) .* more than 0.1"):
        refuse_bad_teacher({"teacher_gap_max": torch.tensor(gap)}, setup(checksum_tolerance=0.1))


def test_rounding_is_no_refusal_and_bfloat16_rounds_more():
    refuse_bad_teacher({"teacher_gap_max": torch.tensor(0.09)}, setup(checksum_tolerance=0.1))
    refuse_bad_teacher({}, setup())
    gap = {"teacher_gap_max": torch.tensor(1e-2)}
    refuse_bad_teacher(gap, setup(teacher_dtype="bfloat16"))
    with pytest.raises(RunError):
        refuse_bad_teacher(gap, setup())


@pytest.mark.parametrize("total", [5.0, math.nan])
def test_an_engine_that_samples_with_other_weights(total):
    sums = {"behavior_gap": torch.tensor(total), "response_tokens": torch.tensor(10)}
    with pytest.raises(RunError, match=r"iteration 7: the learner and the rollout engine differ by (0.5|nan) nats per token"):
        refuse_foreign_behavior(sums, STEP, setup(behavior_dtype="bfloat16"))


def test_the_gap_is_a_mean_over_tokens_and_nothing_is_said_where_none_was_measured():
    sums = {"behavior_gap": torch.tensor(5.0), "response_tokens": torch.tensor(10_000)}
    refuse_foreign_behavior(sums, STEP, setup())
    refuse_foreign_behavior({}, STEP, setup())
