"""On-policy distillation: the loop sample, score, credit, update, publish, and the requests that it samples.

    sample   the rollout group draws responses from the student, or from (1-a) student + a teacher
    score    the teacher group returns log-probs and hidden states of the sampled tokens; or the rollout group did, with the responses
    credit   rewards become future returns (`frozen`: one gradient-free pass here; `live`: inside the update)
    update   the learner group takes optimizer steps
    publish  the new weights go to the rollout group, with a version number

With `max_staleness: k` the rollout group already samples up to k further iterations while the learner trains on the current one. The
weights that sampled a rollout are then up to k publishes old when the learner trains on it. With `max_staleness: 0` the verbs run one
after the other.

The driver holds references and scalars only. It uses the groups through the protocols in `roles`.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig, GkdConfig
from minirl.objective.credit import whitening_statistics
from minirl.seeds import derive_seed, sampling_seed
from minirl.training.data_order import DataOrder
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.learning_rate import learning_rate
from minirl.training.log import MetricsLog, Stopwatch, iteration_record
from minirl.training.roles import OnPolicyLearner, PendingRollouts, PendingWeights, SampledRollout, Sampler, Scorer, SupervisedSequences
from minirl.training.selection import Selection
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import Prompt, RolloutSummary, SamplingRequest


@dataclass(frozen=True)
class PendingIteration:
    """An iteration whose rollouts were requested. order_before: the prompt order's state before it; a resume requests it again."""

    rollouts: PendingRollouts
    order_before: dict[str, Any]


@dataclass
class OnPolicyProgress(Selection):
    """Progress of a run, and its best validation so far. Together with the learner's state it is all that a checkpoint needs."""

    iteration: int = 0
    updates: int = 0
    target_tokens: int = 0  # learnt from so far; a token that is learnt twice counts twice
    weight_version: int = 0
    cursors: dict[str, Any] = field(default_factory=dict)


class OnPolicyLoop:
    """The loop over the training prompts: `connect` it to the groups, then iterate over `run`.

    supervised_sequences: each update also learns from `supervised_per_update` of them. They are blocks of plain text for the pre-training
    loss. In the stage `gkd` they are gold responses, which are learnt with the same divergence as the student's responses.
    scores_from_sampling: the rollout group returns the teacher's scores with the rollouts.
    """

    def __init__(
        self,
        config: DistillConfig,
        objective: ObjectiveConfig,
        *,
        prompts: list[Prompt],
        supervised_sequences: SupervisedSequences | None,
        supervised_per_update: int,
        max_response_tokens: int,
        teacher_share: float,
        seed: int,
        metrics: MetricsLog,
        scores_from_sampling: bool = False,
    ):
        self.config, self.objective = config, objective
        self.soft_targets = isinstance(config, GkdConfig)
        self.prompts = prompts
        self.supervised_sequences, self.supervised_per_update = supervised_sequences, supervised_per_update
        self.max_response_tokens, self.teacher_share, self.seed, self.metrics = max_response_tokens, teacher_share, seed, metrics
        self.scores_from_sampling = scores_from_sampling
        self.progress = OnPolicyProgress()
        self.prompt_order = DataOrder(len(prompts), derive_seed(seed, "prompts"))
        self.supervised_order = (
            DataOrder(len(supervised_sequences), derive_seed(seed, "given")) if supervised_sequences and supervised_per_update else None
        )
        self.stopwatch = Stopwatch()
        self.uninterrupted: Callable[[], AbstractContextManager] = nullcontext  # a block that an interruption may not cut in two
        self.pending_iterations: deque[PendingIteration] = deque()
        self.pending_weights: PendingWeights | None = None
        self.call_costs: dict[str, float] = {}

    def connect(
        self, rollout: Sampler, teacher: Scorer | None, learner: OnPolicyLearner, *, publish: Callable[[int], PendingWeights]
    ) -> None:
        """publish: `publish(version)` starts to send the learner's weights to the rollout group. teacher: None if nothing needs it."""
        self.rollout, self.teacher, self.learner, self._publish = rollout, teacher, learner, publish

    @property
    def total(self) -> int:
        """Planned iterations. A token budget may end the stage earlier."""
        return self.config.iterations

    @property
    def position(self) -> int:
        return self.progress.iteration

    @property
    def finished(self) -> bool:
        return self.position >= self.total or self.progress.target_tokens >= (self.config.max_target_tokens or math.inf)

    def run(self) -> Iterator[OnPolicyProgress]:
        """Yields after every iteration, so that the caller decides when to validate and to write a checkpoint.

        Whenever an interruption ends it, `state_dict` and the learner are those of the last finished iteration.
        """
        self.publish()
        while not self.finished:
            start = time.monotonic()
            sampled = self.sample()
            scores = self.score()
            with self.uninterrupted():  # the learner is ahead of `progress` from its first optimizer step to the end of the iteration
                advantages = self.credit(sampled, scores)
                update_sums = self.update(sampled, scores, advantages)
                staleness = self._staleness(sampled)
                self.publish()
                self.log(sampled, update_sums, staleness, time.monotonic() - start)
                self.pending_iterations.popleft()
                self.progress.iteration += 1
                yield self.progress

    def sample(self) -> list[SampledRollout]:
        """The rollouts of this iteration. Also requests those of the next `max_staleness` iterations."""
        with self.stopwatch("sample"):
            last = min(self.progress.iteration + self.config.max_staleness, self.config.iterations - 1)
            for iteration in range(self.progress.iteration + len(self.pending_iterations), last + 1):
                with self.uninterrupted():
                    self._request_rollouts(iteration)
            return self.pending_iterations[0].rollouts.sampled()

    def _request_rollouts(self, iteration: int) -> None:
        order_before = self.prompt_order.state_dict()
        prompts = [self.prompts[i] for i in self.prompt_order.next(self.config.student_prompts)]
        rollouts = self.rollout.begin(
            sampling_requests(prompts, self.config.samples_per_prompt, self.seed, iteration),
            None if self.scores_from_sampling else self.teacher,
            with_scores=self.scores_from_sampling,
            teacher_share=self.teacher_share,
            max_response_tokens=self.max_response_tokens,
            weight_version=self.progress.weight_version,
        )
        self.pending_iterations.append(PendingIteration(rollouts, order_before))

    def score(self) -> list[Any]:
        with self.stopwatch("score"):
            rollouts = self.pending_iterations[0].rollouts
            scores = rollouts.scores()
        self.call_costs = rollouts.call_costs
        return scores

    def credit(self, sampled: list[SampledRollout], scores: list[Any]) -> list[np.ndarray] | None:
        with self.stopwatch("credit"):
            if self.objective.credit == "live":
                return None
            items = [OnPolicyItem(s.rollout, score) for s, score in zip(sampled, scores, strict=True)]
            return self.learner.frozen_advantages(items, [s.summary.tokens for s in sampled])

    def update(self, sampled: list[SampledRollout], scores: list[Any], advantages: list[np.ndarray] | None) -> list[dict]:
        items = [OnPolicyItem(s.rollout, score) for s, score in zip(sampled, scores, strict=True)]
        if advantages is not None:
            items = [replace(item, advantages=a) for item, a in zip(items, advantages, strict=True)]
        pending_updates = []  # all are submitted before the first is awaited, so that no update waits while the driver prepares the next
        for indices in self._minibatches(len(items)):
            supervised = self._supervised_items()
            with self.stopwatch("update"):
                summaries = [sampled[i].summary for i in indices]
                step = UpdateStep(
                    iteration=self.progress.iteration,
                    update=self.progress.updates,
                    learning_rate=learning_rate(
                        self.config, self.progress.updates, self.config.iterations * self.config.updates_per_iteration
                    ),
                    divisors=self._divisors(summaries, [items[i].advantages for i in indices], supervised),
                    check_behavior=not pending_updates and not self.soft_targets and self._staleness(sampled) == 0,
                    teacher_share=self.teacher_share,
                )
                tokens = [s.tokens for s in summaries]
                pending_updates.append(self.learner.begin_update(step, [items[i] for i in indices], supervised, tokens))
            self.progress.updates += 1
            self.progress.target_tokens += sum(s.response_tokens for s in summaries) + sum(i.sequence.targets for i in supervised)
        with self.stopwatch("update"):
            return [wait() for wait in pending_updates]

    def publish(self) -> None:
        """Start to send the weights as a new version; the engines load them behind the sampling that was already requested.

        Waits for this version with `max_staleness: 0`, else only for the version before.
        """
        with self.stopwatch("publish"):
            self.progress.weight_version += 1
            previous, self.pending_weights = self.pending_weights, self._publish(self.progress.weight_version)
            awaited = self.pending_weights if self.config.max_staleness == 0 else previous
            if awaited:
                awaited.wait()

    def _staleness(self, sampled: list[SampledRollout]) -> int:
        """The number of publishes since the oldest of these rollouts was sampled."""
        return self.progress.weight_version - min(s.summary.weight_version for s in sampled)

    def _minibatches(self, count: int) -> Iterator[list[int]]:
        """Indices of the responses of each optimizer step. Each epoch is a new permutation, split into `updates_per_epoch` equal parts."""
        for epoch in range(self.config.epochs_per_iteration):
            order = np.random.default_rng(derive_seed(self.seed, "minibatches", self.progress.iteration, epoch)).permutation(count)
            yield from (part.tolist() for part in np.split(order, self.config.updates_per_epoch))

    def _supervised_items(self) -> list[SupervisedItem]:
        """The supervised sequences of the next update, with the teacher's scores where the loss needs them."""
        if self.supervised_order is None or not (self.soft_targets or self.objective.pretrain_coefficient):
            return []
        sequences = [self.supervised_sequences.block(i) for i in self.supervised_order.next(self.supervised_per_update)]
        if not self.soft_targets and self.objective.pretrain_kd_share == 0:
            return [SupervisedItem(sequence) for sequence in sequences]
        with self.stopwatch("score"):
            scores = self.teacher.score(sequences, [len(sequence.tokens) for sequence in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def _divisors(self, summaries: list[RolloutSummary], advantages: list, supervised: list[SupervisedItem]) -> LossDivisors:
        supervised_tokens = sum(i.sequence.targets for i in supervised)
        if self.soft_targets:  # one mean over the tokens of sampled and gold responses
            count = float(max(1, supervised_tokens + sum(s.response_tokens for s in summaries)))
            return LossDivisors(count, count)
        counted = [s for s in summaries if self.objective.truncated == "keep" or not s.truncated]
        count = len(counted) if self.objective.reduction == "response" else sum(s.response_tokens for s in counted)
        whitening = None
        if self.objective.whiten:
            whitening = whitening_statistics(advantages, self.max_response_tokens)
        return LossDivisors(float(max(1, count)), float(max(1, supervised_tokens)), whitening)

    def log(self, sampled: list[SampledRollout], update_sums: list[dict], staleness: int, elapsed: float) -> None:
        """Write the record of this iteration. elapsed: its seconds."""
        progress = self.progress
        call_costs = self.call_costs | {"publish/bytes": self.pending_weights.bytes}
        record = iteration_record([s.summary for s in sampled], update_sums, call_costs, self.config.epochs_per_iteration)
        counters = {
            "rollout/staleness": staleness,
            "learner/updates": progress.updates,
            "learner/target_tokens": progress.target_tokens,
            "weight_version": progress.weight_version,
        }
        times = {f"time/{verb}": seconds for verb, seconds in self.stopwatch.reset().items()}
        self.metrics.write(progress.iteration, record | counters | times | {"time/iteration": elapsed})

    def state_dict(self) -> dict[str, Any]:
        """The state after the last finished iteration. A resume requests pending iterations again, from the student as it is then."""
        cursors = {"prompts": self.pending_iterations[0].order_before if self.pending_iterations else self.prompt_order.state_dict()}
        if self.supervised_order:
            cursors["given"] = self.supervised_order.state_dict()
        return vars(self.progress) | {"cursors": cursors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = OnPolicyProgress(**state)
        self.progress.weight_version -= 1  # `run` publishes the same weights again, under the same version
        self.prompt_order.load_state_dict(state["cursors"]["prompts"])
        if self.supervised_order:
            self.supervised_order.load_state_dict(state["cursors"]["given"])


def sampling_requests(prompts: list[Prompt], samples_per_prompt: int, seed: int, iteration: int) -> list[SamplingRequest]:
    """One request for each response. Its seed depends on run, iteration, prompt and sample alone.

    A prompt that comes twice (where the iteration crosses an epoch of the data) continues its sample numbers: the same number would give
    the same response again.
    """
    requests: list[SamplingRequest] = []
    samples_so_far: Counter[int] = Counter()
    for prompt in prompts:
        first = samples_so_far[prompt.index]
        for sample in range(first, first + samples_per_prompt):
            request_seed = sampling_seed(seed, iteration, prompt.index, sample)
            requests.append(SamplingRequest(prompt.tokens, prompt.index, sample, request_seed, prompt.teacher))
        samples_so_far[prompt.index] += samples_per_prompt
    return requests
