"""Learner groups and items to train them on, shared by the tests of the learner and of the groups."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import ray
import torch

from actors.config import ClusterConfig, LearnerConfig, LearnerSetup
from actors.groups.learner_group import LearnerGroup
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import SftConfig
from minirl.config.student import LoraConfig
from minirl.model.output_head import read_head
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.types import Rollout, TeacherScores, TokenSequence, numpy_from_tensor
from tests.actors.conftest import hugging_face
from tests.deadlines import deadline

VOCABULARY = 256
CLUSTER = ClusterConfig(step_timeout_s=deadline(12), start_timeout_s=deadline(60))  # a first start may compile
TRAINING = SftConfig(learning_rate=1.0, max_grad_norm=None)  # no clipping


@contextmanager
def learner_group(
    student: str,
    teacher: str | None = None,
    *,
    preset: str = "paper",
    dtype: str = "float32",
    optimizer: str = "sgd",
    dropout: bool = False,
    vocabulary: int = VOCABULARY,
    deterministic: bool = False,
    device: str = "cpu",
    training: SftConfig | None = TRAINING,
    lora: LoraConfig | None = None,
    **learner,
) -> Iterator[LearnerGroup]:
    """A started group, stopped at the end of the block. learner: further fields of `LearnerConfig`."""
    setup = LearnerSetup(
        model=student, teacher=teacher, vocabulary=vocabulary, config=LearnerConfig(dtype=dtype, optimizer=optimizer, **learner),
        device=device, threads=1, seed=0, training=training,
        objective=ObjectiveConfig(preset=preset), dropout=dropout, lora=lora, deterministic=deterministic,
    )  # fmt: skip
    group = LearnerGroup(setup, CLUSTER)
    try:
        group.wait_started()
        yield group
    finally:
        group.stop()


def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
    """The weights that the group would publish, by name."""
    return {name: tensor.clone() for ref, *_ in group.pack_weights("float32") for name, tensor in ray.get(ref).tensors()}


def blocks(lengths: tuple[int, ...] = (30, 17, 9), vocabulary: int = VOCABULARY) -> list[SupervisedItem]:
    """Blocks of plain text: every token except the first is a target."""
    draw = np.random.default_rng(5)
    return [SupervisedItem(TokenSequence(draw.integers(3, vocabulary, n), np.arange(n) > 0)) for n in lengths]


def teacher_scores(teacher: str, sequences: list[TokenSequence], vocabulary: int = VOCABULARY) -> list[TeacherScores]:
    """The scores of the targets under the model in the directory `teacher`, computed by Hugging Face."""
    network, head = hugging_face(teacher), read_head(teacher, vocabulary)
    scores = []
    for sequence in sequences:
        positions = torch.from_numpy(np.flatnonzero(sequence.is_target))
        with torch.no_grad():
            hidden = network.base_model(torch.from_numpy(sequence.tokens)[None]).last_hidden_state[0, positions - 1]
            logits = head.logits(hidden)
        normalizers = logits.logsumexp(-1)
        logprobs = logits[torch.arange(len(positions)), torch.from_numpy(sequence.tokens)[positions]] - normalizers
        scores.append(TeacherScores(numpy_from_tensor(logprobs), numpy_from_tensor(normalizers), numpy_from_tensor(hidden)))
    return scores


def random_rollouts(count: int = 12, vocabulary: int = VOCABULARY) -> list[Rollout]:
    """Random prompts and responses of 2 to 19 tokens each, with random behavior log-probs. Every third response is truncated."""
    draw = np.random.default_rng(0)
    rollouts = []
    for number in range(count):
        prompt, response = (draw.integers(3, vocabulary, draw.integers(2, 20)) for _ in range(2))
        behavior = draw.normal(-4.0, 1.0, len(response)).astype(np.float32)
        rollouts.append(Rollout(prompt, response, behavior, number % 3 == 0, 1, number, 0))
    return rollouts


def on_policy_items(teacher: str, rollouts: list[Rollout] | None = None, vocabulary: int = VOCABULARY) -> list[OnPolicyItem]:
    rollouts = random_rollouts(vocabulary=vocabulary) if rollouts is None else rollouts
    scores = teacher_scores(teacher, [rollout.sequence for rollout in rollouts], vocabulary)
    return [OnPolicyItem(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]


def lengths_of(items: list[OnPolicyItem] | list[SupervisedItem]) -> list[int]:
    return [len(item.sequence.tokens) for item in items]
