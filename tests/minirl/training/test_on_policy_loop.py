"""OnPolicyLoop over stand-ins for the three groups: its calls, their order, and that a resume makes the same calls."""

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig, GkdConfig
from minirl.data.corpus import Corpus
from minirl.training.log import MetricsLog
from minirl.training.on_policy_loop import OnPolicyLoop, sampling_requests
from minirl.training.roles import SampledRollout
from minirl.types import Prompt, RolloutSummary

PROMPTS = [Prompt(np.arange(3, 6 + number % 4), 100 + number) for number in range(14)]
CORPUS = Corpus(np.arange(7 * 5, dtype=np.int32).reshape(7, 5), np.empty((0, 5), np.int32), {})
LIMIT = 9


@dataclass
class StandInWeights:
    """Weights that are loaded at once. awaited_versions: every version that the loop waited for."""

    awaited_versions: list[int]
    version: int
    bytes: int = 800

    def wait(self):
        self.awaited_versions.append(self.version)


class StandInRollouts:
    call_costs = {"rollout/busy_seconds": 2.0, "teacher/busy_seconds": 4.0, "rollout/payload_bytes": 10, "teacher/payload_bytes": 20}

    def __init__(self, groups, sampled, with_scores):
        self.groups, self._sampled, self._with_scores = groups, sampled, with_scores

    def sampled(self):
        return self._sampled

    def scores(self):
        rollouts = [s.rollout for s in self._sampled]
        return rollouts if self._with_scores else self.groups.score(rollouts, [])


class Groups:
    """Rollout, teacher and learner group in one. Records every call, and answers as the seeds of the requests determine.

    `weights` is a chain of hashes over the arguments of all updates: two runs with equal weights had the same updates.
    """

    def __init__(self, weights: str = "first"):
        self.weights, self.calls, self.requests, self.steps, self.shares, self.versions = weights, [], [], [], [], []
        self.items, self.supervised, self.tokens, self.awaited_versions = [], [], [], []

    def publish(self, version):
        self.calls.append("publish")
        self.versions.append(version)
        return StandInWeights(self.awaited_versions, version)

    def begin(self, requests, teacher, *, with_scores, teacher_share, max_response_tokens, weight_version):
        self.calls.append("sample")
        assert weight_version == self.versions[-1]
        assert teacher is (None if with_scores else self)
        self.requests.append(requests)
        self.shares.append((teacher_share, max_response_tokens))
        return StandInRollouts(self, self.sample(requests, max_response_tokens, weight_version), with_scores)

    def sample(self, requests, limit, weight_version):
        return [
            SampledRollout(
                f"prompt {r.prompt_index} seed {r.seed}",
                RolloutSummary(len(r.prompt_tokens), 1 + r.seed % limit, 1 + r.seed % limit == limit, weight_version),
            )
            for r in requests
        ]

    def score(self, sequences, tokens):
        self.calls.append("score")
        return [f"score of {sequence}" for sequence in sequences]

    def frozen_advantages(self, items, tokens):
        self.calls.append("credit")
        return [np.linspace(-1, 1, 1 + int(item.rollout.split()[-1]) % LIMIT, dtype=np.float32) for item in items]

    def begin_update(self, step, on_policy, supervised, tokens):
        self.calls.append("update")
        self.steps.append(step)
        self.items.append(on_policy)
        self.supervised.append(supervised)
        self.tokens.append(tokens)
        rollouts = [f"{item.rollout} {item.scores} {item.advantages}" for item in on_policy]
        texts = [str(item.sequence.tokens) for item in supervised]
        self.weights = hashlib.sha256("\n".join([self.weights, str(step), *rollouts, *texts]).encode()).hexdigest()
        count = float(len(self.steps))
        sums = {"policy_gradient": count, "single_step": 2 * count, "behavior_gap": 3.0 * count, "response_tokens": 4.0, "reward": -6.0}
        sums |= {"teacher_gap_max": 1e-7 * count, "grad_norm": 0.5 * count, "busy_seconds": 0.25}
        return lambda: self.soft_target_sums or sums

    soft_target_sums = None


def make_loop(
    groups, path, *, kind=DistillConfig, iterations=2, objective=None, corpus=CORPUS, seed=5, scores_from_sampling=False, **settings
) -> OnPolicyLoop:
    defaults = {"prompts_per_iteration": 6, "samples_per_prompt": 2, "updates_per_epoch": 3, "learning_rate": 1.0}
    config = kind(iterations=iterations, **(defaults | settings))
    loop = OnPolicyLoop(
        config,
        objective or ObjectiveConfig(),
        prompts=PROMPTS,
        supervised_sequences=corpus,
        supervised_per_update=config.gold_per_update if kind is GkdConfig else 2,
        max_response_tokens=LIMIT,
        teacher_share=0.2,
        seed=seed,
        metrics=MetricsLog(path / "metrics.jsonl", "distill", "iteration"),
        scores_from_sampling=scores_from_sampling,
    )
    loop.connect(groups, groups, groups, publish=groups.publish)
    return loop


def run(path, groups=None, **settings) -> Groups:
    groups = groups or Groups()
    for _ in make_loop(groups, path, **settings).run():
        pass
    return groups


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


# --- the five verbs ---


def test_the_five_verbs_in_their_order(tmp_path):
    groups = run(tmp_path, updates_per_epoch=2)
    assert groups.calls == ["publish", *2 * ["sample", "score", "update", "update", "publish"]]
    assert groups.shares == [(0.2, LIMIT)] * 2


def test_frozen_credit_is_one_pass_before_the_updates_and_its_advantages_stay_with_their_rollouts(tmp_path):
    groups = run(tmp_path, iterations=1, objective=ObjectiveConfig(credit="frozen"), updates_per_epoch=2)
    assert groups.calls == ["publish", "sample", "score", "credit", "update", "update", "publish"]
    for item in (item for step in groups.items for item in step):
        assert item.scores == f"score of {item.rollout}"
        assert len(item.advantages) == 1 + int(item.rollout.split()[-1]) % LIMIT
    assert all(item.advantages is None for step in run(tmp_path).items for item in step)


def test_with_a_share_of_soft_targets_the_teacher_scores_the_corpus(tmp_path):
    groups = run(tmp_path, iterations=1, objective=ObjectiveConfig(pretrain_kd_share=0.5), updates_per_epoch=1)
    assert groups.calls == ["publish", "sample", "score", "score", "update", "publish"]
    assert all(item.scores is not None for item in groups.supervised[0])


def test_scores_out_of_sampling_come_with_the_rollouts_and_no_teacher_scores_them(tmp_path):
    groups = run(tmp_path, iterations=1, updates_per_epoch=1, scores_from_sampling=True)
    assert groups.calls == ["publish", "sample", "update", "publish"]
    assert all(item.scores == item.rollout for item in groups.items[0])  # one reference to both
    both = run(tmp_path, iterations=1, objective=ObjectiveConfig(pretrain_kd_share=0.5), updates_per_epoch=1, scores_from_sampling=True)
    assert both.calls == ["publish", "sample", "score", "update", "publish"], "the corpus is scored as before"


def test_every_publish_has_a_new_version_and_sampling_requests_the_newest(tmp_path):
    assert run(tmp_path, iterations=4).versions == [1, 2, 3, 4, 5]  # `Groups.begin` compares them with the requested ones


def test_only_the_first_update_of_an_iteration_checks_the_behavior_log_probs(tmp_path):
    groups = run(tmp_path, updates_per_epoch=2, epochs_per_iteration=2)
    assert [step.check_behavior for step in groups.steps] == 2 * [True, False, False, False]


# --- requests and seeds ---


def test_requests_follow_from_run_seed_iteration_prompt_and_sample(tmp_path):
    groups = run(tmp_path, iterations=3)
    seeds = [(r.prompt_index, r.sample_index, r.seed) for requests in groups.requests for r in requests]
    assert len({seed for _, _, seed in seeds}) == len(seeds) == 3 * 6 * 2
    assert seeds == [(r.prompt_index, r.sample_index, r.seed) for requests in run(tmp_path, iterations=3).requests for r in requests]
    other = run(tmp_path, iterations=3, seed=6)
    assert not {seed for _, _, seed in seeds} & {r.seed for requests in other.requests for r in requests}


def test_a_prompts_samples_are_adjacent_and_a_prompt_that_comes_twice_continues_its_sample_numbers():
    twice = [PROMPTS[0], PROMPTS[1], PROMPTS[0]]
    requests = sampling_requests(twice, 2, seed=1, iteration=0)
    assert [(r.prompt_index, r.sample_index) for r in requests] == [(100, 0), (100, 1), (101, 0), (101, 1), (100, 2), (100, 3)]
    assert len({r.seed for r in requests}) == 6
    alone = sampling_requests([PROMPTS[1]], 2, seed=1, iteration=0)
    assert [r.seed for r in alone] == [r.seed for r in requests if r.prompt_index == 101], "a seed depends on the other prompts"


def test_prompts_and_blocks_come_in_epochs(tmp_path):
    groups = run(tmp_path, iterations=7, prompts_per_iteration=6, samples_per_prompt=1)
    indices = [r.prompt_index for requests in groups.requests for r in requests]
    for start in range(0, len(indices), 14):
        assert sorted(indices[start : start + 14]) == [p.index for p in PROMPTS]
    blocks = [int(item.sequence.tokens[0]) for items in groups.supervised for item in items]
    assert sorted(blocks[:7]) == CORPUS.blocks[:, 0].tolist()


# --- minibatches ---


def test_every_epoch_uses_each_response_once_in_a_new_order(tmp_path):
    groups = run(tmp_path, iterations=2, updates_per_epoch=3, epochs_per_iteration=2)
    orders = []
    for iteration, requests in enumerate(groups.requests):
        everything = sorted(f"prompt {r.prompt_index} seed {r.seed}" for r in requests)
        for epoch in range(2):
            steps = groups.items[6 * iteration + 3 * epoch :][:3]
            assert [len(step) for step in steps] == [4, 4, 4]
            order = [item.rollout for step in steps for item in step]
            assert sorted(order) == everything
            orders.append([everything.index(rollout) for rollout in order])
    assert all(a != b for a, b in pairwise(orders))


def test_the_learner_receives_the_length_of_every_rollout(tmp_path):
    groups = run(tmp_path)
    prompts = {p.index: len(p.tokens) for p in PROMPTS}
    for items, tokens in zip(groups.items, groups.tokens, strict=True):
        words = [item.rollout.split() for item in items]
        assert tokens == [prompts[int(index)] + 1 + int(seed) % LIMIT for _, index, _, seed in words]


# --- divisors ---


def lengths_of(items) -> list[int]:
    return [1 + int(item.rollout.split()[-1]) % LIMIT for item in items]


@pytest.mark.parametrize("truncated", ["keep", "drop"])
@pytest.mark.parametrize("reduction", ["token", "response"])
def test_divisors_are_counts_of_the_whole_optimizer_step(tmp_path, reduction, truncated):
    groups = run(tmp_path, iterations=6, objective=ObjectiveConfig(reduction=reduction, truncated=truncated))
    assert any(LIMIT in lengths_of(items) for items in groups.items)
    for step, items in zip(groups.steps, groups.items, strict=True):
        counted = [n for n in lengths_of(items) if truncated == "keep" or n < LIMIT]
        assert step.divisors.on_policy == (sum(counted) if reduction == "token" else len(counted))
        assert step.divisors.supervised == 2 * 4  # two blocks of five tokens; the first token of a block is no target
        assert step.divisors.whitening is None


def test_no_divisor_is_zero(tmp_path):
    groups = Groups()
    groups.sample = lambda requests, *_: [SampledRollout(f"seed {r.seed}", RolloutSummary(2, LIMIT, True, 1)) for r in requests]
    run(tmp_path, groups, iterations=1, objective=ObjectiveConfig(truncated="drop", pretrain_coefficient=0.0))
    assert {(step.divisors.on_policy, step.divisors.supervised) for step in groups.steps} == {(1.0, 1.0)}
    assert groups.supervised == [[], [], []]


def test_whitening_is_over_all_positions_of_the_step_with_padding(tmp_path):
    groups = run(tmp_path, objective=ObjectiveConfig(preset="lmops", pretrain_coefficient=0.0))
    for step, items in zip(groups.steps, groups.items, strict=True):
        grid = np.zeros((len(items), LIMIT))
        for row, item in zip(grid, items, strict=True):
            row[: len(item.advantages)] = item.advantages
        assert step.divisors.whitening == pytest.approx((grid.mean(), grid.var()), rel=1e-6, abs=1e-9)


# --- the learning rate ---


def test_warm_up_counts_updates(tmp_path):
    groups = run(tmp_path, iterations=2, updates_per_epoch=3, warmup_updates=4)
    assert [step.learning_rate for step in groups.steps] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [(step.iteration, step.update) for step in groups.steps] == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]


# --- records ---


def test_a_record_holds_means_over_tokens_updates_and_responses(tmp_path):
    groups = run(tmp_path, iterations=2)
    first, second = records(tmp_path)
    assert (first["stage"], first["iteration"], second["iteration"]) == ("distill", 0, 1)
    assert first["loss/policy_gradient"] == 2.0 and first["loss/single_step"] == 4.0 and first["loss/total"] == 6.0
    assert first["rollout/reward"] == -18 / 12 and first["rollout/behavior_gap"] == 3 / 4, "the gap is the first update's alone"
    assert first["learner/grad_norm"] == 1.0 and second["learner/grad_norm"] == 2.5
    assert second["learner/teacher_gap"] == pytest.approx(6e-7)
    lengths = [1 + r.seed % LIMIT for r in groups.requests[1]]
    assert second["rollout/mean_response_tokens"] == pytest.approx(np.mean(lengths))
    assert second["rollout/truncated"] == pytest.approx(np.mean([n == LIMIT for n in lengths]))
    assert second["rollout/response_tokens"] == sum(lengths)
    assert (second["learner/updates"], second["weight_version"]) == (6, 3)
    assert {name for name in second if name.startswith("time/")} == {
        f"time/{v}" for v in ("sample", "score", "credit", "update", "publish", "iteration")
    }
    assert second["time/iteration"] >= sum(second[f"time/{v}"] for v in ("sample", "score", "credit", "update", "publish"))
    assert second["rollout/tokens_per_second"] == sum(lengths) / 2.0 and second["teacher/tokens_per_second"] == second["rollout/tokens"] / 4
    assert second["learner/busy_seconds"] == 3 * 0.25 and second["publish/bytes"] == 800 and second["teacher/payload_bytes"] == 20
    assert second["rollout/staleness"] == 0


# --- sampling ahead ---


@pytest.mark.parametrize(
    "ahead, order",
    [
        (1, "publish sample sample score update publish sample score update publish sample score update publish score update publish"),
        (2, "publish sample sample sample score update publish sample score update publish score update publish score update publish"),
    ],
)
def test_sampling_ahead_begins_iterations_early_and_publishes_between_them(tmp_path, ahead, order):
    groups = run(tmp_path, iterations=4, updates_per_epoch=1, max_staleness=ahead)
    assert groups.calls == order.split()
    assert [r["rollout/staleness"] for r in records(tmp_path)] == [min(i, ahead) for i in range(4)]
    assert [step.check_behavior for step in groups.steps] == [True, False, False, False], "a stale rollout need not agree with the student"
    assert groups.awaited_versions == groups.versions[:-1], "the driver waited for weights that the engines load after sampling"
    assert run(tmp_path / "exact", iterations=4).awaited_versions == [1, 2, 3, 4, 5]


def test_sampling_ahead_does_not_change_the_requests(tmp_path):
    requests_by_run = [run(tmp_path / str(ahead), iterations=4, max_staleness=ahead).requests for ahead in (0, 1, 2)]
    seeds = [[[r.seed for r in requests] for requests in iterations] for iterations in requests_by_run]
    assert seeds[0] == seeds[1] == seeds[2]


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_resume_requests_pending_iterations_again(tmp_path, ahead):
    whole = run(tmp_path / "whole", iterations=5, max_staleness=ahead)
    loop = make_loop(Groups(), tmp_path / "parts", iterations=5, max_staleness=ahead)
    iterations = loop.run()
    next(iterations), next(iterations)
    state = json.loads(json.dumps(loop.state_dict()))
    after = Groups()
    loop = make_loop(after, tmp_path / "parts", iterations=5, max_staleness=ahead)
    loop.load_state_dict(state)
    assert [p.iteration for p in loop.run()] == [3, 4, 5]
    assert [[r.seed for r in requests] for requests in after.requests] == [[r.seed for r in requests] for requests in whole.requests[2:]]


# --- resume ---

RESUMED = {
    "paper": {},
    "lmops": {"objective": ObjectiveConfig(preset="lmops"), "warmup_updates": 7},
    "no corpus": {"objective": ObjectiveConfig(pretrain_coefficient=0.0), "corpus": None},
    "many updates": {"epochs_per_iteration": 2, "samples_per_prompt": 1},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_run_that_stops_and_resumes_equals_a_run_without_a_stop(tmp_path, stop, settings):
    whole = run(tmp_path / "whole", iterations=5, **settings)
    before = Groups()
    loop = make_loop(before, tmp_path / "parts", iterations=stop, **settings)
    for progress in loop.run():
        last = progress
    assert last.iteration == stop
    state = json.loads(json.dumps(loop.state_dict()))
    after = Groups(before.weights)
    loop = make_loop(after, tmp_path / "parts", iterations=5, **settings)
    loop.load_state_dict(state)
    loop.metrics.resume_at(loop.progress.iteration)
    assert [p.iteration for p in loop.run()] == list(range(stop + 1, 6))

    assert after.weights == whole.weights
    assert [step.update for step in before.steps + after.steps] == list(range(len(whole.steps)))
    assert before.versions + after.versions[1:] == whole.versions and after.versions[0] == before.versions[-1]
    resumed, expected = records(tmp_path / "parts"), records(tmp_path / "whole")
    assert [sorted(r) for r in resumed] == [sorted(r) for r in expected]
    for name in ("iteration", "learner/updates", "weight_version", "rollout/tokens", "rollout/truncated"):
        assert [r[name] for r in resumed] == [r[name] for r in expected], name


class InterruptedGroups(Groups):
    """Interrupts the loop in its call number `interrupted_call`, or at the end of the block that holds the call."""

    def __init__(self, interrupted_call: int):
        super().__init__()
        self.calls = self  # `append` sees every call
        self.count, self.interrupted_call, self.in_block, self.pending = 0, interrupted_call, False, False

    def append(self, call: str) -> None:
        self.count += 1
        if self.count == self.interrupted_call:
            if not self.in_block:
                raise KeyboardInterrupt
            self.pending = True

    @contextmanager
    def uninterrupted(self):
        self.in_block = True
        yield
        self.in_block = False
        if self.pending:
            raise KeyboardInterrupt


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_resumes_from_an_interruption_in_any_call(tmp_path, ahead):
    settings = {"iterations": 3, "max_staleness": ahead, "objective": ObjectiveConfig(preset="lmops")}
    whole = run(tmp_path / "whole", **settings)
    for call in range(1, len(whole.calls) + 1):
        before = InterruptedGroups(call)
        loop = make_loop(before, tmp_path / "parts", **settings)
        loop.uninterrupted = before.uninterrupted
        reached = 0
        with pytest.raises(KeyboardInterrupt):
            for progress in loop.run():
                reached = progress.iteration
        assert loop.position == reached and len(before.steps) == 3 * reached, "the learner is ahead of the state that is saved"
        if not reached:
            continue  # nothing to save
        after = Groups(before.weights)
        loop_after = make_loop(after, tmp_path / "parts", **settings)
        loop_after.load_state_dict(json.loads(json.dumps(loop.state_dict())))
        assert [progress.iteration for progress in loop_after.run()] == list(range(reached + 1, 4))
        assert [[r.seed for r in requests] for requests in after.requests] == [
            [r.seed for r in requests] for requests in whole.requests[reached:]
        ]
        assert before.versions[: reached + 1] + after.versions[1:] == whole.versions
        if ahead == 0:
            assert after.weights == whole.weights


def test_a_resume_after_a_kill_in_the_middle_repeats_the_iteration_and_no_update_counts_twice(tmp_path):
    whole = run(tmp_path / "whole", iterations=3)
    killed = Groups()
    loop = make_loop(killed, tmp_path / "killed", iterations=3)
    iterations = loop.run()
    next(iterations)
    state, weights = json.loads(json.dumps(loop.state_dict())), killed.weights
    next(iterations)  # an iteration after the last checkpoint
    after = Groups(weights)
    loop = make_loop(after, tmp_path / "killed", iterations=3)
    loop.load_state_dict(state)
    loop.metrics.resume_at(loop.progress.iteration)
    assert [p.iteration for p in loop.run()] == [2, 3] and after.weights == whole.weights
    assert [r["learner/updates"] for r in records(tmp_path / "killed")] == [3, 6, 9]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    loop = make_loop(Groups(), tmp_path, iterations=2)
    list(loop.run())
    again = make_loop(groups := Groups(), tmp_path, iterations=2)
    again.load_state_dict(loop.state_dict())
    assert list(again.run()) == [] and "update" not in groups.calls


# --- gkd: a divergence at each token of the student's responses and of gold responses ---


def gkd(path, groups=None, **settings) -> Groups:
    groups = groups or Groups()
    groups.soft_target_sums = {
        "supervised": 0.5,
        "divergence": 6.0,
        "hard": 9.0,
        "supervised_tokens": 12.0,
        "teacher_gap_max": 0.0,
        "busy_seconds": 1.0,
    }
    for _ in make_loop(groups, path, kind=GkdConfig, objective=ObjectiveConfig(preset="gkd"), **settings).run():
        pass
    return groups


def test_gkd_samples_a_share_of_the_prompts_and_learns_scored_gold_responses_of_the_others(tmp_path):
    groups = gkd(tmp_path, student_share=0.5)
    assert [len(requests) for requests in groups.requests] == [6, 6]
    assert [len(items) for items in groups.items] == [2] * 6 and [len(items) for items in groups.supervised] == [2] * 6
    assert all(item.scores is not None for items in groups.supervised for item in items)


def test_gkd_divides_both_by_all_their_tokens(tmp_path):
    groups = gkd(tmp_path, student_share=0.5)
    for step, items, supervised in zip(groups.steps, groups.items, groups.supervised, strict=True):
        tokens = sum(1 + int(item.rollout.split()[-1]) % LIMIT for item in items) + sum(i.sequence.targets for i in supervised)
        assert step.divisors.on_policy == step.divisors.supervised == tokens
        assert not step.check_behavior


def test_gkd_with_student_responses_alone_uses_no_gold_responses(tmp_path):
    groups = gkd(tmp_path)
    assert [len(requests) for requests in groups.requests] == [12, 12]
    assert groups.supervised == [[]] * 6


def test_gkd_logs_its_divergence_per_token(tmp_path):
    gkd(tmp_path, student_share=0.5)
    record = records(tmp_path)[0]
    assert record["loss/divergence"] == record["loss/total"] == 0.5
    assert not any(name.startswith("rollout/behavior") for name in record)


@pytest.mark.parametrize(("share", "updates"), [(0.05, 1), (0.66, 4)])
def test_gkd_refuses_shares_that_leave_no_student_or_do_not_divide(share, updates):
    with pytest.raises(ValueError, match="student_share"):
        GkdConfig(iterations=1, learning_rate=1.0, prompts_per_iteration=6, updates_per_epoch=updates, student_share=share)


# --- a budget of tokens ---


def test_a_token_budget_ends_the_stage_with_the_iteration_that_reaches_it(tmp_path):
    whole = run(tmp_path / "whole", iterations=6)
    logged = [record["learner/target_tokens"] for record in records(tmp_path / "whole")]
    expected = [sum(1 + int(i.rollout.split()[-1]) % LIMIT for i in items) for items in whole.items]
    expected = [count + sum(item.sequence.targets for item in items) for count, items in zip(expected, whole.supervised, strict=True)]
    assert logged == [sum(expected[: 3 * (n + 1)]) for n in range(6)]
    ended = run(tmp_path / "ended", iterations=6, max_target_tokens=logged[2])
    assert len(ended.requests) == 3 and ended.steps == whole.steps[:9]
