"""A learner that is built again in the processes of an earlier stage computes what a new one computes."""

import os

import pytest
import torch

from actors.config import LearnerConfig, LearnerSetup
from minirl.config.objective import ObjectiveConfig
from minirl.training.update import LossDivisors, UpdateStep
from tests.actors.learners import TRAINING, VOCABULARY, blocks, learner_group, weights

pytestmark = pytest.mark.slow
STEP = UpdateStep(0, 0, 0.1, LossDivisors(supervised=10.0))


def process_ids(group) -> list[int]:
    return group.get([worker.__ray_call__.remote(lambda _: os.getpid()) for worker in group.workers], "look")


@pytest.mark.parametrize(("workers", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_a_rebuilt_learner_equals_a_new_one(workers, stage, ray_cluster, model_directory):
    earlier, student = (model_directory("llama", vocab=VOCABULARY, hidden=hidden, seed=1) for hidden in (32, 64))
    learner = {"workers": workers, "zero_stage": stage}
    with learner_group(student, dropout=True, optimizer="adamw", **learner) as group:
        expected = [group.update(STEP, [], blocks(), []) for _ in range(2)]
        expected_weights = weights(group)
    with learner_group(earlier, dropout=False, **learner) as group:
        group.update(STEP, [], blocks(), [])
        processes = process_ids(group)
        config = LearnerConfig(dtype="float32", optimizer="adamw", **learner)
        group.begin_rebuild(
            LearnerSetup(
                model=student, teacher=None, vocabulary=VOCABULARY, config=config, device="cpu", threads=1, seed=0, training=TRAINING,
                objective=ObjectiveConfig(preset="paper"), dropout=True,
            )
        )  # fmt: skip
        group.wait_started()
        assert process_ids(group) == processes
        for sums in expected:
            new = group.update(STEP, [], blocks(), [])
            assert all(new[name] == sums[name] for name in ("supervised", "grad_norm"))
        for name, tensor in weights(group).items():
            assert torch.equal(tensor, expected_weights[name]), name
