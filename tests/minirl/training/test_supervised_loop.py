"""SupervisedLoop over a stand-in for the learner: its items, its validations, the best checkpoint."""

import json

import numpy as np
import pytest

from minirl.config.stages import SftConfig
from minirl.training.log import MetricsLog
from minirl.training.supervised_loop import SupervisedLoop
from minirl.types import TokenSequence


def sequence(number: int, targets: int) -> TokenSequence:
    return TokenSequence(np.full(4 + targets, number), np.arange(4 + targets) >= 4)


TRAIN = [sequence(number, 1 + number % 3) for number in range(10)]
VALIDATION = [sequence(100 + number, 2) for number in range(3)]


class Learner:
    """Records the items it receives. losses: of the validations, in order."""

    def __init__(self, losses=()):
        self.steps, self.trained, self.validated, self.scores, self.losses = [], [], [], [], iter(losses)

    def update(self, step, on_policy, supervised, tokens):
        assert on_policy == [] and tokens == []
        self.steps.append(step)
        self.trained.append([int(item.sequence.tokens[0]) for item in supervised])
        self.scores.append([item.scores for item in supervised])
        return {"supervised": 0.5, "supervised_tokens": 1.0, "grad_norm": 2.0} | self.more_sums

    more_sums = {}

    def supervised_sums(self, items):
        self.validated.append([int(item.sequence.tokens[0]) for item in items])
        self.scores.append([item.scores for item in items])
        if items[0].scores is not None:  # the KLs grow with the updates
            return {"supervised_forward_kl": 4.0 * len(self.steps), "supervised_reverse_kl": 8.0, "supervised_tokens": 4.0}
        return {"supervised": 6 * next(self.losses, 1.0), "supervised_tokens": 6.0}


class SoftLearner(Learner):
    """Its validation loss is a divergence from scores."""

    def supervised_sums(self, items):
        return super().supervised_sums(items) | {"supervised": 6.0}


def make_loop(path, learner, *, teacher=None, name="sft", train=TRAIN, seed=1, watched=(), watched_teacher=None, **settings):
    config = SftConfig(**({"learning_rate": 1.0, "epochs": 2, "sequences_per_update": 4} | settings))
    metrics = MetricsLog(path / "metrics.jsonl", "sft", "update")
    loop = SupervisedLoop(config, name=name, train=train, validation=VALIDATION, watched=watched, seed=seed, metrics=metrics)
    loop.connect(learner, teacher, watched_teacher=watched_teacher)
    return loop


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_updates_are_epochs_over_the_sequences_that_have_targets(tmp_path):
    learner = Learner()
    loop = make_loop(tmp_path, learner, train=[*TRAIN, sequence(50, 0)])
    list(loop.run())
    assert loop.total == len(learner.steps) == 6
    numbers = sum(learner.trained, [])
    assert sorted(numbers[:10]) == sorted(numbers[10:20]) == list(range(10)) and numbers[:10] != numbers[10:20]
    other = Learner()
    list(make_loop(tmp_path, other, seed=2).run())
    assert other.trained != learner.trained


def test_the_divisor_counts_the_targets_of_the_step(tmp_path):
    learner = Learner()
    list(make_loop(tmp_path, learner).run())
    for step, numbers in zip(learner.steps, learner.trained, strict=True):
        assert step.divisors.supervised == sum(1 + number % 3 for number in numbers)


@pytest.mark.parametrize(
    ("settings", "validated_after"),
    [
        ({}, [3, 6]),
        ({"max_updates": 4}, [3, 4]),
        ({"validations_per_epoch": 3}, [1, 2, 3, 4, 5, 6]),
        ({"validations_per_epoch": 9}, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_validations_come_at_regular_intervals_and_after_the_last_update(tmp_path, settings, validated_after):
    learner = Learner()
    loop = make_loop(tmp_path, learner, **settings)
    assert [progress.updates for progress in loop.run()] == validated_after
    assert learner.validated == [[100, 101, 102]] * len(validated_after)
    assert [r["update"] + 1 for r in records(tmp_path) if "eval/validation_loss" in r] == validated_after
    assert [r["update"] for r in records(tmp_path)] == list(range(validated_after[-1]))


def test_the_lowest_validation_loss_marks_the_best(tmp_path):
    loop = make_loop(tmp_path, Learner([3.0, 2.0, 2.5, 2.0, 1.5, 1.75]), validations_per_epoch=3)
    assert [progress.is_best for progress in loop.run()] == [True, True, False, False, True, False]
    assert (loop.progress.best_loss, loop.progress.best_update) == (1.5, 5)


def test_warm_up_counts_updates(tmp_path):
    learner = Learner()
    list(make_loop(tmp_path, learner, warmup_updates=4).run())
    assert [step.learning_rate for step in learner.steps] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [r["learner/learning_rate"] for r in records(tmp_path)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_a_resume_continues_with_the_next_update(tmp_path, stop):
    settings = {"validations_per_epoch": 3, "warmup_updates": 5}
    losses = [3.0, 2.0, 2.5, 2.0, 1.5, 1.75]
    whole, before, after = Learner(losses), Learner(losses), Learner(losses[stop:])
    expected = make_loop(tmp_path / "whole", whole, **settings)
    list(expected.run())
    loop = make_loop(tmp_path / "parts", before, **settings)
    validations = loop.run()
    for _ in range(stop):
        next(validations)
    state = json.loads(json.dumps(loop.state_dict()))
    next(validations)  # a kill would lose this one
    loop = make_loop(tmp_path / "parts", after, **settings)
    loop.load_state_dict(state)
    loop.metrics.resume_at(loop.progress.updates)
    list(loop.run())
    assert before.trained[:stop] + after.trained == whole.trained
    assert before.steps[:stop] + after.steps == whole.steps
    assert loop.state_dict() == expected.state_dict()
    assert [r["update"] for r in records(tmp_path / "parts")] == list(range(6))


class Teacher:
    def __init__(self):
        self.scored = []

    def score(self, sequences, tokens):
        assert tokens == [len(sequence.tokens) for sequence in sequences]
        self.scored.append([int(sequence.tokens[0]) for sequence in sequences])
        return [f"score of {number}" for number in self.scored[-1]]


def test_a_teacher_scores_every_update_and_the_validation_once(tmp_path):
    learner, teacher = SoftLearner(), Teacher()
    list(make_loop(tmp_path, learner, teacher=teacher, max_updates=4, validations_per_epoch=3).run())
    assert teacher.scored == [learner.trained[0], [100, 101, 102], *learner.trained[1:]]
    for numbers, scores in zip(learner.trained, learner.scores[::2], strict=True):
        assert scores == [f"score of {number}" for number in numbers]
    assert learner.scores[1::2] == [["score of 100", "score of 101", "score of 102"]] * 4


WATCHED = [sequence(200 + number, 2) for number in range(2)]


def watched_loop(path, learner, teacher):
    return make_loop(path, learner, watched=WATCHED, watched_teacher=teacher, validations_per_epoch=3, max_updates=3)


def test_the_kl_to_a_watched_teacher_is_measured_at_the_start_and_at_each_validation(tmp_path):
    learner, teacher = Learner(), Teacher()
    list(watched_loop(tmp_path, learner, teacher).run())
    assert teacher.scored == [[200, 201]], "it scores the watched sequences alone, once"
    assert learner.validated == [[200, 201], *[[100, 101, 102], [200, 201]] * 3]
    assert all(score is None for scores in learner.scores for score in scores if score not in ("score of 200", "score of 201"))
    logged = records(tmp_path)
    assert [r["eval/forward_kl_gold"] for r in logged] == [1.0, 2.0, 3.0] and {r["eval/reverse_kl_gold"] for r in logged} == {2.0}
    assert [r.get("eval/forward_kl_gold_at_start") for r in logged] == [0.0, None, None]
    assert all("eval/validation_loss" in r for r in logged), "which selects the best student"


def test_a_resume_does_not_measure_the_start_again(tmp_path):
    loop = watched_loop(tmp_path, Learner(), Teacher())
    next(loop.run())
    state = json.loads(json.dumps(loop.state_dict()))
    learner, teacher = Learner(), Teacher()
    loop = watched_loop(tmp_path, learner, teacher)
    loop.load_state_dict(state)
    list(loop.run())
    assert teacher.scored == [[200, 201]] and learner.validated == [[100, 101, 102], [200, 201]] * 2
    assert ["eval/forward_kl_gold_at_start" in r for r in records(tmp_path)] == [True, False, False]


def test_without_a_teacher_nothing_is_scored(tmp_path):
    learner = Learner()
    list(make_loop(tmp_path, learner).run())
    assert {score for scores in learner.scores for score in scores} == {None}


def test_the_sums_of_a_divergence_are_logged_per_target(tmp_path):
    learner = SoftLearner()
    learner.more_sums = {"divergence": 6.0, "hard": 3.0}
    list(make_loop(tmp_path, learner, teacher=Teacher(), max_updates=1).run())
    targets = learner.steps[0].divisors.supervised
    record = records(tmp_path)[0]
    assert (record["loss/divergence"], record["loss/hard"]) == (6.0 / targets, 3.0 / targets)


def test_every_stage_has_another_data_order(tmp_path):
    sft, kd = Learner(), Learner()
    list(make_loop(tmp_path, sft, name="sft").run())
    list(make_loop(tmp_path, kd, name="kd").run())
    assert sft.trained != kd.trained


def test_a_token_budget_ends_the_stage_with_the_update_that_reaches_it(tmp_path):
    learner = Learner()
    loop = make_loop(tmp_path, learner, max_target_tokens=15)
    yielded = [progress.updates for progress in loop.run()]
    learnt = [int(step.divisors.supervised) for step in learner.steps]
    assert sum(learnt[:-1]) < 15 <= sum(learnt) == loop.progress.target_tokens
    assert yielded[-1] == len(learnt) == len(records(tmp_path)) < loop.total
    assert [r["learner/target_tokens"] for r in records(tmp_path)] == [sum(learnt[: n + 1]) for n in range(len(learnt))]
