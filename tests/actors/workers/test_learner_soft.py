"""Soft targets and two teachers under real DeepSpeed on two workers: one update against plain autograd on full logits."""

import numpy as np
import pytest
import torch

from actors.config import LearnerConfig, LearnerSetup
from actors.groups.learner_group import LearnerGroup
from minirl.config.objective import DivergenceConfig, SoftTargetsConfig
from minirl.model.loading import load_causal_lm
from minirl.model.output_head import read_head
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import EnsembleScores, TokenSequence, tensor_from_numpy
from tests.actors.learners import CLUSTER, TRAINING, VOCABULARY, blocks, lengths_of, random_rollouts, teacher_scores, weights

pytestmark = pytest.mark.slow

WEIGHTS, HARD, TAU, BETA = (1.0, 3.0), 0.25, 2.0, 0.3
SOFT = SoftTargetsConfig(divergence=DivergenceConfig(kind="jsd", beta=BETA, temperature=TAU), hard_weight=HARD)


@pytest.fixture(scope="module")
def models(model_directory):
    student = model_directory("llama", vocab=VOCABULARY, hidden=32, seed=1)
    return student, tuple(model_directory("llama", vocab=VOCABULARY, hidden=hidden, seed=seed) for hidden, seed in ((48, 2), (32, 5)))


@pytest.fixture(scope="module")
def items(models):
    """Rollouts and plain text. Of every three sequences, one has scores of the first teacher, one of the second, one of both."""
    rollouts, plain = random_rollouts(6), [block.sequence for block in blocks()]
    scores_by_teacher = [teacher_scores(teacher, [*(r.sequence for r in rollouts), *plain]) for teacher in models[1]]
    scores = [
        EnsembleScores(tuple(None if number % 3 == 1 - k else score for k, score in enumerate(pair)))
        for number, pair in enumerate(zip(*scores_by_teacher, strict=True))
    ]
    on_policy = [OnPolicyItem(rollout, score) for rollout, score in zip(rollouts, scores[:6], strict=True)]
    return on_policy, [SupervisedItem(sequence, score) for sequence, score in zip(plain, scores[6:], strict=True)]


def teacher_rows(score: EnsembleScores, heads) -> torch.Tensor:
    """[n, V] log-probs of the average of the teachers that scored the sequence."""
    members = [k for k, member in enumerate(score.scores) if member is not None]
    rows = [WEIGHTS[k] * heads[k].logits(tensor_from_numpy(score.scores[k].hidden)).double().softmax(-1) for k in members]
    return (sum(rows) / sum(WEIGHTS[k] for k in members)).log()


def soft_loss(model, sequence: TokenSequence, score: EnsembleScores, heads) -> torch.Tensor:
    """jsd at a temperature, plus cross-entropy, from the full logits of one sequence, with torch's own functions."""
    tokens, positions = torch.from_numpy(sequence.tokens), torch.from_numpy(np.flatnonzero(sequence.is_target))
    logits = model(tokens[None]).logits[0, positions - 1].double()
    p, q = ((rows / TAU).softmax(-1) for rows in (teacher_rows(score, heads), logits))
    middle = BETA * p + (1 - BETA) * q
    jsd = BETA * (p * (p / middle).log()).sum() + (1 - BETA) * (q * (q / middle).log()).sum()
    hard = torch.nn.functional.cross_entropy(logits, tokens[positions], reduction="sum")
    return HARD * hard + (1 - HARD) * TAU**2 * jsd


def test_an_update_equals_plain_autograd(ray_cluster, models, items):
    student, teachers = models
    setup = LearnerSetup(
        model=student, teacher=teachers, teacher_weights=WEIGHTS, vocabulary=VOCABULARY, device="cpu", threads=1, seed=0, training=TRAINING,
        config=LearnerConfig(dtype="float32", optimizer="sgd", workers=2, zero_stage=3, tokens_per_microbatch=64, head_chunk_tokens=16),
        soft=SOFT,
    )  # fmt: skip
    on_policy, supervised = items
    count = sum(item.sequence.targets for item in [*on_policy, *supervised])
    group = LearnerGroup(setup, CLUSTER)
    try:
        group.wait_started()
        before = weights(group)
        validated = group.supervised_sums(supervised)
        step = UpdateStep(0, 0, TRAINING.learning_rate, LossDivisors(float(count), float(count)))
        sums = group.update(step, on_policy, supervised, lengths_of(on_policy))
        after = weights(group)
    finally:
        group.stop()
    model, heads = load_causal_lm(student, torch.float32, dropout=False), [read_head(teacher, VOCABULARY) for teacher in teachers]
    losses = [soft_loss(model, item.sequence, item.scores, heads) for item in [*on_policy, *supervised]]
    (sum(losses) / count).backward()
    named = model.state_dict(keep_vars=True)
    expected = torch.cat([named[name].grad.flatten().double() for name in sorted(before)])
    moved = torch.cat([(before[name] - after[name]).flatten().double() for name in sorted(before)]) / TRAINING.learning_rate
    assert expected.norm() > 0.1
    assert (moved - expected).norm() <= 1e-5 * expected.norm()
    assert sums["supervised"] == pytest.approx(sum(losses).item() / count, rel=1e-4)
    assert HARD * sums["hard"] + (1 - HARD) * sums["divergence"] == pytest.approx(sum(losses).item(), rel=1e-4)
    assert sums["supervised_tokens"] == count and sums["teacher_gap_max"] < 1e-5
    assert validated["supervised"] == pytest.approx(sum(losses[6:]).item(), rel=1e-4)
    assert validated["supervised_tokens"] == sum(item.sequence.targets for item in supervised)
