"""The learner under real DeepSpeed: the same gradient and the same weights however the step is divided."""

import numpy as np
import pytest
import ray
import torch

from actors.config import ClusterConfig, LearnerConfig, LearnerSetup
from actors.roles import LearnerGroup
from minirl.config import DistillConfig, ObjectiveConfig
from minirl.models import read_head
from minirl.rollout import Rollout, Sequence, TeacherScores, array_of
from minirl.update import OnPolicyItem, SupervisedItem, UpdateScale, UpdateStep
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

VOCABULARY = 256
LEARNING_RATE = 1.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    student = tiny_model(tmp_path_factory.mktemp("student"), "llama", vocab=VOCABULARY, hidden=32, seed=1)
    teacher = tiny_model(tmp_path_factory.mktemp("teacher"), "llama", vocab=VOCABULARY, hidden=48, seed=2)
    return str(student), str(teacher)


@pytest.fixture(scope="module")
def items(models):
    """Twelve rollouts of different lengths with teacher scores as the teacher itself gives them, and three blocks of plain text."""
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(models[1]).eval()
    head = read_head(models[1], VOCABULARY)
    generator = np.random.default_rng(0)
    on_policy = []
    for number in range(12):
        prompt, response = (generator.integers(3, VOCABULARY, generator.integers(2, 20)) for _ in range(2))
        behavior = generator.normal(-4.0, 1.0, len(response)).astype(np.float32)
        rollout = Rollout(prompt, response, behavior, number % 3 == 0, 1, number, 0)
        with torch.no_grad():
            hidden = teacher.model(torch.from_numpy(rollout.sequence.tokens)[None]).last_hidden_state[0, len(prompt) - 1 : -1]
            logits = head.logits(hidden)
        normalizers = logits.logsumexp(-1)
        logprobs = logits[torch.arange(len(response)), torch.from_numpy(response)] - normalizers
        on_policy.append(OnPolicyItem(rollout, TeacherScores(array_of(logprobs), array_of(normalizers), array_of(hidden))))
    blocks = [generator.integers(3, VOCABULARY, length) for length in (30, 17, 9)]
    return on_policy, [SupervisedItem(Sequence(block, np.arange(len(block)) > 0)) for block in blocks]


def weights_after_update(models, items, *, workers=1, stage=0, tokens_per_microbatch=4096, preset="paper", optimizer="sgd", **learner):
    config = LearnerConfig(
        workers=workers, zero_stage=stage, dtype="float32", tokens_per_microbatch=tokens_per_microbatch, optimizer=optimizer, **learner
    )
    training = DistillConfig(iterations=1, learning_rate=LEARNING_RATE, max_grad_norm=None)
    setup = LearnerSetup(
        model=models[0], teacher=models[1], vocabulary=VOCABULARY, config=config, device="cpu", threads=1, seed=0, training=training,
        objective=ObjectiveConfig(preset=preset), teacher_share=0.2,
    )  # fmt: skip
    group = LearnerGroup(setup, ClusterConfig(step_timeout_s=120, start_timeout_s=120))
    try:
        group.wait_started()
        before = weights(group)
        on_policy, supervised = items
        tokens = [len(item.rollout.sequence.tokens) for item in on_policy]
        if preset == "lmops":
            advantages = group.frozen_advantages(on_policy, tokens)
            on_policy = [OnPolicyItem(i.rollout, i.scores, a) for i, a in zip(on_policy, advantages, strict=True)]
            supervised = []
        count = sum(len(item.rollout.response_tokens) for item in on_policy)
        scale = UpdateScale(count, 53.0, (-0.1, 0.5) if preset == "lmops" else None)
        sums = group.update(UpdateStep(0, 0, LEARNING_RATE, scale), on_policy, supervised, tokens)
        return before, weights(group), sums
    finally:
        group.stop()


def weights(group) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for ref, _ in group.put_weights("float32") for name, tensor in ray.get(ref).tensors()}


def gradient(result) -> torch.Tensor:
    before, after, _ = result
    return torch.cat([(before[name] - after[name]).flatten().double() for name in before]) / LEARNING_RATE


@pytest.fixture(scope="module")
def reference(ray_cluster, models, items):
    return weights_after_update(models, items)


@pytest.mark.parametrize(
    ("workers", "stage", "tokens_per_microbatch"),
    [(2, 0, 4096), (1, 2, 64), (2, 2, 100), (4, 2, 4096), (2, 3, 64)],
)
def test_gradient_does_not_depend_on_the_division(reference, models, items, workers, stage, tokens_per_microbatch):
    result = weights_after_update(models, items, workers=workers, stage=stage, tokens_per_microbatch=tokens_per_microbatch)
    expected = gradient(reference)
    assert expected.norm() > 0.1
    assert (gradient(result) - expected).norm() <= 1e-5 * expected.norm()
    for name, value in reference[2].items():
        if name != "grad_norm":
            assert result[2][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
