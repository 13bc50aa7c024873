"""Tests of all groups with real Ray, vLLM and DeepSpeed: publishing, the order of results, and whole iterations of the driver."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import ray
import torch

from actors.config import RolloutConfig, TeacherConfig
from actors.groups.publishing import make_publisher
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.object_batches import batched_refs, fetch
from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig
from minirl.data.corpus import Corpus
from minirl.errors import RunError
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import Prompt, Rollout, TokenSequence
from tests.actors.conftest import MAX_LENGTH, hugging_face, requests, worst_gap
from tests.actors.learners import CLUSTER, blocks, learner_group, lengths_of, random_rollouts, teacher_scores
from tests.deadlines import deadline
from tests.tiny import END_TOKEN

pytestmark = pytest.mark.slow

VOCABULARY = 512
ENGINE = {"max_model_len": MAX_LENGTH, "shared_vocabulary": VOCABULARY, "temperature": 1.0}
SHARE = 0.2


@contextmanager
def started(group) -> Iterator:
    try:
        group.wait_started()
        yield group
    finally:
        group.stop()


def rollout_group(student: str, teacher: str | None, workers: int) -> RolloutGroup:
    config = RolloutConfig(workers=workers, dtype="float32", kv_cache_gib=0.0625, teacher_share=SHARE if teacher else 0.0)
    return RolloutGroup(config, CLUSTER, "cpu", model=student, teacher=teacher, end_tokens=(END_TOKEN,), **ENGINE)


def teacher_group(teacher: str, workers: int) -> TeacherGroup:
    config = TeacherConfig(model=teacher, workers=workers, dtype="float32", kv_cache_gib=0.0625, check_every=1)
    return TeacherGroup(config, CLUSTER, "cpu", model=teacher, **ENGINE)


@pytest.fixture(scope="module")
def pair(model_directory) -> tuple[str, str]:
    """A student with a tied head and a wider teacher."""
    return model_directory("llama", seed=21), model_directory("llama", hidden=96, heads=3, seed=22)


@pytest.fixture(scope="module")
def engines(ray_cluster, pair) -> Iterator[tuple[RolloutGroup, TeacherGroup]]:
    """A rollout and a teacher group of two workers each. The rollout engines hold both networks."""
    with ExitStack() as stack:
        groups = rollout_group(*pair, 2), teacher_group(pair[1], 2)
        yield tuple(stack.enter_context(started(group)) for group in groups)


@pytest.fixture(scope="module")
def learner(ray_cluster, pair):
    with learner_group(*pair, workers=2, vocabulary=VOCABULARY) as group:
        yield group


def sample(rollout: RolloutGroup, prompts, version: int, share: float) -> list[Rollout]:
    return rollout.fetch(rollout.sample(prompts, teacher_share=share, max_response_tokens=30, weight_version=version))


def tokens_of(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.response_tokens.tolist() for rollout in rollouts]


def test_the_number_of_workers_changes_neither_tokens_nor_order(engines, pair):
    """Samples five requests with two workers and with one."""
    prompts = requests(5, seed=3)
    with_two = sample(engines[0], prompts, 0, SHARE)
    with started(rollout_group(*pair, 1)) as single:
        with_one = sample(single, prompts, 0, SHARE)
        # Other requests in the same call change nothing either.
        assert tokens_of(sample(single, prompts[4:], 0, SHARE)) == tokens_of(with_two[4:])
    assert [(r.prompt_index, r.sample_index) for r in with_two] == [(r.prompt_index, r.sample_index) for r in prompts]
    assert tokens_of(with_two) == tokens_of(with_one)
    assert len(set(map(tuple, tokens_of(with_two)))) == 5
    assert worst_gap(with_two, *map(hugging_face, pair), SHARE) < 1e-5
    assert tokens_of(sample(engines[0], prompts[:1], 0, SHARE)) == tokens_of(with_two[:1])  # fewer requests than workers
    assert engines[0].sample([], teacher_share=SHARE, max_response_tokens=30, weight_version=0) == []


def test_teacher_scores_are_in_the_order_of_the_inputs(engines, pair):
    """Scores seven sequences of different lengths with two workers, by value and by reference, and with one worker."""
    rollouts = random_rollouts(7, VOCABULARY)
    sequences = [rollout.sequence for rollout in rollouts]
    tokens = [len(sequence.tokens) for sequence in sequences]
    refs = batched_refs([ray.put(rollouts[:4]), ray.put(rollouts[4:])], 7)
    by_value = fetch(engines[1].score(sequences, tokens), deadline(6))
    by_reference = fetch(engines[1].score(refs, tokens), deadline(6))
    with started(teacher_group(pair[1], 1)) as single:
        with_one = fetch(single.score(sequences, tokens), deadline(6))
    for *items, expected in zip(by_value, by_reference, with_one, teacher_scores(pair[1], sequences, VOCABULARY), strict=True):
        for item in items:
            for name in ("logprobs", "log_normalizers", "hidden"):
                np.testing.assert_allclose(getattr(item.scores, name), getattr(expected, name), atol=2e-5)
    for item, rollout in zip(by_reference, rollouts, strict=True):
        np.testing.assert_array_equal(item.rollout.response_tokens, rollout.response_tokens)


def visible_update(learner, teacher: str) -> None:
    """An update that is large enough to change log-probs by more than 1e-2 nats."""
    rollouts = random_rollouts(4, VOCABULARY)
    items = [OnPolicyItem(r, s) for r, s in zip(rollouts, teacher_scores(teacher, [r.sequence for r in rollouts], VOCABULARY), strict=True)]
    count = sum(len(rollout.response_tokens) for rollout in rollouts)
    plain = blocks(vocabulary=VOCABULARY)
    learner.update(UpdateStep(0, 0, 0.3, LossDivisors(count, 53.0)), items, plain, lengths_of(items))


def assert_published(rollout, learner, student: str, teacher: str, shares: tuple[float, ...], directory) -> None:
    """Engines and learner agree after each publish and differ after the next update. Another version than the loaded one is refused."""
    learner.load_model(student)
    network, prompts = hugging_face(teacher), requests(5, seed=4)
    for version in (1, 2):
        make_publisher(learner, rollout).publish(version).wait()
        learner.export(student, str(directory / str(version)))
        exported = hugging_face(directory / str(version))
        for share in shares:
            sampled = sample(rollout, prompts, version, share)
            assert worst_gap(sampled, exported, network if share else None, share) < 1e-5
            assert {r.weight_version for r in sampled} == {version}
        visible_update(learner, teacher)
        learner.export(student, str(directory / "next"))
        assert worst_gap(sampled, hugging_face(directory / "next"), network if share else None, share) > 1e-2
    with pytest.raises(RunError, match="sampling was requested with weight version 1, but version 2 is loaded"):
        sample(rollout, prompts, 1, 0.0)


def test_publish_to_mixed_engines_from_whole_weights_with_a_tied_head(engines, learner, pair, tmp_path):
    assert_published(engines[0], learner, *pair, (SHARE, 0.0), tmp_path)


def test_publish_to_plain_engines_from_sharded_weights_with_an_untied_head(ray_cluster, model_directory, tmp_path):
    student, teacher = model_directory("qwen2", tied=False, seed=23), model_directory("qwen2", hidden=96, heads=3, seed=24)
    with ExitStack() as stack:
        rollout = stack.enter_context(started(rollout_group(student, None, 2)))
        learner = stack.enter_context(learner_group(student, teacher, workers=2, zero_stage=3, vocabulary=VOCABULARY))
        assert_published(rollout, learner, student, teacher, (0.0,), tmp_path)


def test_diagnostics_are_in_the_order_of_the_items(learner, pair):
    learner.load_model(pair[0])
    assert_diagnostics(learner, pair)


def test_diagnostics_from_sharded_weights_that_are_only_evaluated(ray_cluster, pair):
    with learner_group(pair[1], pair[1], workers=2, zero_stage=3, vocabulary=VOCABULARY, training=None) as group:
        group.load_model(pair[0])
        assert_diagnostics(group, pair)


def assert_diagnostics(learner, pair) -> None:
    """Compares all diagnostics of five responses on two ranks with values from whole rows of log-probs by Hugging Face."""
    sequences = [rollout.sequence for rollout in random_rollouts(5, VOCABULARY)]
    items = [SupervisedItem(s, score) for s, score in zip(sequences, teacher_scores(pair[1], sequences, VOCABULARY), strict=True)]
    student, teacher = map(hugging_face, pair)
    for diagnostics, sequence in zip(learner.diagnostics(items, lengths_of(items), top_k=4), sequences, strict=True):
        q, p = (next_logprobs(network, sequence) for network in (student, teacher))
        targets = torch.from_numpy(sequence.tokens[sequence.is_target])
        best = [rows.topk(4).indices.tolist() for rows in (q, p)]
        expected = {
            "student_logprobs": q.gather(1, targets[:, None])[:, 0], "reverse_kl": (q.exp() * (q - p)).sum(1),
            "forward_kl": (p.exp() * (p - q)).sum(1), "confidence": q.exp().amax(1), "correct": q.argmax(1) == targets,
            "overlap": torch.tensor([len(set(a) & set(b)) / 4 for a, b in zip(*best, strict=True)]),
        }  # fmt: skip
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(diagnostics, name), values.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@torch.no_grad()
def next_logprobs(network, sequence: TokenSequence) -> torch.Tensor:
    """The rows of log-probs that predict the targets, float64 [N, V]."""
    logits = network(torch.from_numpy(sequence.tokens)[None]).logits[0].double().log_softmax(-1)
    return logits[np.flatnonzero(sequence.is_target) - 1]


def driver_of(preset: str, directory) -> OnPolicyLoop:
    config = DistillConfig(
        iterations=2, learning_rate=0.05, prompts_per_iteration=3, samples_per_prompt=2, epochs_per_iteration=2, updates_per_epoch=1
    )
    draw = np.random.default_rng(1)
    return OnPolicyLoop(
        config,
        ObjectiveConfig(preset=preset),
        prompts=[Prompt(draw.integers(3, VOCABULARY, 5 + 3 * i), i) for i in range(7)],
        supervised_sequences=Corpus(draw.integers(3, VOCABULARY, (5, 24)).astype(np.int32), np.empty((0, 24), np.int32), {}),
        supervised_per_update=3,
        max_response_tokens=20,
        teacher_share=SHARE,
        seed=0,
        metrics=MetricsLog(directory / "metrics.jsonl", "distill", "iteration"),
    )


@pytest.mark.parametrize("preset", ["paper", "lmops"])
def test_whole_iterations_of_the_driver(preset, engines, learner, pair, tmp_path):
    """Runs two workers in each group. Hugging Face recomputes the logged values of the first update from the rollouts."""
    rollout, teacher = engines
    driver = driver_of(preset, tmp_path)
    with ExitStack() as stack:
        if preset == "paper":
            learner.load_model(pair[0])
        else:
            learner = stack.enter_context(learner_group(*pair, preset=preset, workers=2, zero_stage=2, vocabulary=VOCABULARY))
        driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
        iterations, updates = [], []  # what `sample` and `update` returned in each iteration
        sample_method, update_method = driver.sample, driver.update
        driver.sample = lambda: iterations.append(sample_method()) or iterations[-1]
        driver.update = lambda *arguments: updates.append(update_method(*arguments)) or updates[-1]
        progress = list(driver.run())[-1]
        learner.export(pair[0], str(tmp_path / "last"))

    assert (progress.iteration, progress.updates, progress.weight_version) == (2, 4, 3)
    rollouts = rollout.fetch(iterations[0])
    first = updates[0][0]
    q, p = (torch.cat([next_logprobs(hugging_face(path), r.sequence) for r in rollouts]) for path in pair)
    assert first["response_tokens"] == len(q)
    assert first["reverse_kl"] == pytest.approx((q.exp() * (q - p)).sum().item(), rel=1e-4)
    assert first["behavior_gap"] / len(q) < 1e-5  # the engines sampled from the learner's mixture
    assert first["teacher_gap_max"] < 1e-5
    assert worst_gap(sample(rollout, requests(4), 3, SHARE), hugging_face(tmp_path / "last"), hugging_face(pair[1]), SHARE) < 1e-5

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["weight_version"] for record in records] == [2, 3]
    assert {sampled.summary.weight_version for sampled in iterations[1]} == {2}
    assert all(np.isfinite(value) for record in records for value in record.values() if not isinstance(value, str))
    for record in records:
        assert record["rollout/behavior_gap"] < 1e-5
        assert record["loss/pretrain"] > 0
    if preset == "lmops":  # half of the pre-training loss is the soft cross-entropy to the teacher, which scores the blocks for it
        assert updates[0][0]["supervised"] == pytest.approx(half_soft_loss(pair, driver), rel=1e-4)


@pytest.mark.parametrize("as_finished", [True, False])
def test_iterations_sampled_ahead_are_stale_and_keep_their_behavior_logprobs(as_finished, engines, learner, pair, tmp_path):
    """While the learner updates, the engines sample with the previous weights and report log-probs under those weights."""
    rollout, teacher = engines
    learner.load_model(pair[0])
    driver = driver_of("paper", tmp_path)
    driver.config = driver.config.model_copy(update={"max_staleness": 1, "iterations": 3, "epochs_per_iteration": 1})
    driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
    iterations, sample_method, teacher.as_finished = [], driver.sample, as_finished
    driver.sample = lambda: iterations.append(sample_method()) or iterations[-1]
    try:
        for progress in driver.run():
            learner.export(pair[0], str(tmp_path / str(progress.iteration)))
    finally:
        teacher.as_finished = True
    assert [{rollout.summary.weight_version for rollout in sampled} for sampled in iterations] == [{1}, {1}, {2}]
    network = hugging_face(pair[1])
    for sampled, weights in zip(iterations, (pair[0], pair[0], tmp_path / "1"), strict=True):
        assert worst_gap(rollout.fetch(sampled), hugging_face(weights), network, SHARE) < 1e-5
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["rollout/staleness"] for record in records] == [0, 1, 1]
    assert records[0]["rollout/behavior_gap"] < 1e-5 < 1e-3 < records[1]["rollout/behavior_gap"]


def half_soft_loss(pair: tuple[str, str], driver: OnPolicyLoop) -> float:
    """0.5 hard + 0.5 soft cross-entropy of the first update's blocks, mean over their targets."""
    same_driver = driver_of("lmops", driver.metrics.path.parent)
    sequences = [same_driver.supervised_sequences.block(i) for i in same_driver.supervised_order.next(3)]
    q, p = (torch.cat([next_logprobs(hugging_face(path), s) for s in sequences]) for path in pair)
    targets = torch.from_numpy(np.concatenate([s.tokens[s.is_target] for s in sequences]))
    hard = -q[torch.arange(len(targets)), targets].mean()
    return (0.5 * hard - 0.5 * (p.exp() * q).sum(-1).mean()).item()
