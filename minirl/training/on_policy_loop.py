"""On-policy distillation: five verbs, over and over.

    sample   the rollout group draws responses from the student, or from (1-a) student + a teacher
    score    the teacher group returns log-probs and hidden states of the sampled tokens
    credit   rewards become future returns (`frozen`: one gradient-free pass here; `live`: inside the update)
    update   the learner group takes optimizer steps
    publish  the new weights go to the rollout group, with a version number

With `max_staleness: k` the rollouts of up to k further iterations are on their way while this one is learnt from, sampled by weights
that are up to k publishes old when their turn comes. At 0 the verbs follow one another.

The driver holds references and scalars; it knows the groups by what they can do and not by what they are.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minirl.config.objective import ObjectiveConfig
from minirl.config.stages import DistillConfig, GkdConfig
from minirl.objective.credit import whitening_statistics
from minirl.seeds import derive_seed, sampling_seed
from minirl.training.data_order import DataOrder
from minirl.training.learning_rate import learning_rate
from minirl.training.log import MetricsLog, Stopwatch, iteration_record
from minirl.training.roles import GivenSequences, OnPolicyLearner, PendingRollouts, PendingWeights, SampledRollout, Sampler, Scorer
from minirl.training.update import LossDivisors, OnPolicyItem, SupervisedItem, UpdateStep
from minirl.types import Prompt, RolloutSummary, SamplingRequest


@dataclass(frozen=True)
class PendingIteration:
    """An iteration on its way, and where the prompts stood before it: a resume asks for it anew."""

    collection: PendingRollouts
    prompt_cursor: dict[str, Any]


@dataclass
class OnPolicyProgress:
    """Where a run stands; with the learner's own state, all that a checkpoint needs."""

    iteration: int = 0
    updates: int = 0
    target_tokens: int = 0  # that were learnt from, each time they were
    weight_version: int = 0
    best_rouge_l: float | None = None
    best_iteration: int | None = None
    cursors: dict[str, Any] = field(default_factory=dict)


class OnPolicyLoop:
    """The loop over the training prompts; `connect` it to the groups, then `run`.

    given: sequences that each update learns from besides, `given_per_update` of them: blocks of plain text for the pre-training loss, or
    in the stage `gkd` gold responses, for the same divergence as the student's own.
    """

    def __init__(
        self,
        config: DistillConfig,
        objective: ObjectiveConfig,
        *,
        prompts: list[Prompt],
        given: GivenSequences | None,
        given_per_update: int,
        max_response_tokens: int,
        teacher_share: float,
        seed: int,
        metrics: MetricsLog,
    ):
        self.config, self.objective = config, objective
        self.soft = isinstance(config, GkdConfig)
        self.prompts, self.given, self.given_per_update = prompts, given, given_per_update
        self.max_response_tokens, self.teacher_share, self.seed, self.metrics = max_response_tokens, teacher_share, seed, metrics
        self.progress = OnPolicyProgress()
        self.prompt_cursor = DataOrder(len(prompts), derive_seed(seed, "prompts"))
        self.given_cursor = DataOrder(len(given), derive_seed(seed, "given")) if given and given_per_update else None
        self.watch = Stopwatch()
        self.begun: deque[PendingIteration] = deque()
        self.publication: PendingWeights | None = None
        self.effort: dict[str, float] = {}

    def connect(self, rollout: Sampler, teacher: Scorer, learner: OnPolicyLearner, *, publish: Callable[[int], PendingWeights]) -> None:
        """`publish(version)` sends the learner's weights on their way into the rollout group."""
        self.rollout, self.teacher, self.learner, self._publish = rollout, teacher, learner, publish

    @property
    def total(self) -> int:
        """Iterations that are planned; a token budget may end the stage before."""
        return self.config.iterations

    @property
    def position(self) -> int:
        return self.progress.iteration

    @property
    def finished(self) -> bool:
        return self.position >= self.total or self.progress.target_tokens >= (self.config.max_target_tokens or math.inf)

    def run(self) -> Iterator[OnPolicyProgress]:
        """Yields after every iteration, so that the caller validates and checkpoints where it likes."""
        self.publish()
        while not self.finished:
            began = time.monotonic()
            sampled = self.sample()
            scores = self.score()
            advantages = self.credit(sampled, scores)
            logged = self.update(sampled, scores, advantages)
            staleness = self._staleness(sampled)
            self.publish()
            self.log(sampled, logged, staleness, time.monotonic() - began)
            self.progress.iteration += 1
            yield self.progress

    def sample(self) -> list[SampledRollout]:
        """The rollouts of this iteration; those of the next `max_staleness` ones are begun too."""
        with self.watch("sample"):
            last = min(self.progress.iteration + self.config.max_staleness, self.config.iterations - 1)
            for iteration in range(self.progress.iteration + len(self.begun), last + 1):
                self._begin(iteration)
            return self.begun[0].collection.sampled()

    def _begin(self, iteration: int) -> None:
        cursor = self.prompt_cursor.state_dict()
        prompts = [self.prompts[i] for i in self.prompt_cursor.next(self.config.student_prompts)]
        collection = self.rollout.begin(
            sampling_requests(prompts, self.config.samples_per_prompt, self.seed, iteration),
            self.teacher,
            teacher_share=self.teacher_share,
            max_response_tokens=self.max_response_tokens,
            weight_version=self.progress.weight_version,
        )
        self.begun.append(PendingIteration(collection, cursor))

    def score(self) -> list[Any]:
        with self.watch("score"):
            collection = self.begun.popleft().collection
            scores = collection.scores()
        self.effort = collection.effort
        return scores

    def credit(self, sampled: list[SampledRollout], scores: list[Any]) -> list[np.ndarray] | None:
        with self.watch("credit"):
            if self.objective.credit == "live":
                return None
            items = [OnPolicyItem(s.rollout, score) for s, score in zip(sampled, scores, strict=True)]
            return self.learner.frozen_advantages(items, [s.summary.tokens for s in sampled])

    def update(self, sampled: list[SampledRollout], scores: list[Any], advantages: list[np.ndarray] | None) -> list[dict]:
        items = [OnPolicyItem(s.rollout, score) for s, score in zip(sampled, scores, strict=True)]
        if advantages is not None:
            items = [replace(item, advantages=a) for item, a in zip(items, advantages, strict=True)]
        asked = []  # all of them at once: no update waits for what the driver does about the next one
        for chosen in self._minibatches(len(items)):
            supervised = self._given_items()
            with self.watch("update"):
                summaries = [sampled[i].summary for i in chosen]
                step = UpdateStep(
                    iteration=self.progress.iteration,
                    update=self.progress.updates,
                    learning_rate=learning_rate(
                        self.config, self.progress.updates, self.config.iterations * self.config.updates_per_iteration
                    ),
                    scale=self._scale(summaries, [items[i].advantages for i in chosen], supervised),
                    check_behavior=not asked and not self.soft and self._staleness(sampled) == 0,
                )
                asked.append(self.learner.begin_update(step, [items[i] for i in chosen], supervised, [s.tokens for s in summaries]))
            self.progress.updates += 1
            self.progress.target_tokens += sum(s.response_tokens for s in summaries) + sum(i.sequence.targets for i in supervised)
        with self.watch("update"):
            return [finish() for finish in asked]

    def publish(self) -> None:
        """The engines take the new weights in turn with what they were asked to sample; waited for where nothing else can go on."""
        with self.watch("publish"):
            self.progress.weight_version += 1
            before, self.publication = self.publication, self._publish(self.progress.weight_version)
            awaited = self.publication if self.config.max_staleness == 0 else before
            if awaited:
                awaited.wait()

    def _staleness(self, sampled: list[SampledRollout]) -> int:
        """How many publishes ago the oldest of these rollouts was sampled."""
        return self.progress.weight_version - min(s.summary.weight_version for s in sampled)

    def _minibatches(self, count: int) -> Iterator[list[int]]:
        """The responses of each optimizer step: every epoch a new permutation, cut into `updates_per_epoch` equal parts."""
        for epoch in range(self.config.epochs_per_iteration):
            order = np.random.default_rng(derive_seed(self.seed, "minibatches", self.progress.iteration, epoch)).permutation(count)
            yield from (part.tolist() for part in np.split(order, self.config.updates_per_epoch))

    def _given_items(self) -> list[SupervisedItem]:
        if self.given_cursor is None or not (self.soft or self.objective.pretrain_coefficient):
            return []
        sequences = [self.given.block(i) for i in self.given_cursor.next(self.given_per_update)]
        if not self.soft and self.objective.pretrain_kd_share == 0:
            return [SupervisedItem(sequence) for sequence in sequences]
        with self.watch("score"):
            scores = self.teacher.score(sequences, [len(sequence.tokens) for sequence in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def _scale(self, summaries: list[RolloutSummary], advantages: list, supervised: list[SupervisedItem]) -> LossDivisors:
        given = sum(i.sequence.targets for i in supervised)
        if self.soft:  # one mean over the tokens of both
            count = float(max(1, given + sum(s.response_tokens for s in summaries)))
            return LossDivisors(count, count)
        kept = [s for s in summaries if self.objective.truncated == "keep" or not s.truncated]
        count = len(kept) if self.objective.reduction == "response" else sum(s.response_tokens for s in kept)
        whitening = None
        if self.objective.whiten:
            whitening = whitening_statistics(advantages, self.max_response_tokens)
        return LossDivisors(float(max(1, count)), float(max(1, given)), whitening)

    def log(self, sampled: list[SampledRollout], logged: list[dict], staleness: int, elapsed: float) -> None:
        progress = self.progress
        effort = self.effort | {"publish/bytes": self.publication.bytes}
        record = iteration_record([s.summary for s in sampled], logged, effort, self.config.epochs_per_iteration)
        standing = {
            "rollout/staleness": staleness,
            "learner/updates": progress.updates,
            "learner/target_tokens": progress.target_tokens,
            "weight_version": progress.weight_version,
        }
        times = {f"time/{verb}": spent for verb, spent in self.watch.reset().items()}
        self.metrics.write(progress.iteration, record | standing | times | {"time/iteration": elapsed})

    def state_dict(self) -> dict[str, Any]:
        """What has been learnt from is behind it; iterations that are on their way are asked for anew, of the student as it is then."""
        cursors = {"prompts": self.begun[0].prompt_cursor if self.begun else self.prompt_cursor.state_dict()}
        if self.given_cursor:
            cursors["given"] = self.given_cursor.state_dict()
        return vars(self.progress) | {"cursors": cursors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = OnPolicyProgress(**state)
        self.progress.weight_version -= 1  # `run` publishes once more what that version was
        self.prompt_cursor.load_state_dict(state["cursors"]["prompts"])
        if self.given_cursor:
            self.given_cursor.load_state_dict(state["cursors"]["given"])


def sampling_requests(prompts: list[Prompt], samples_per_prompt: int, seed: int, iteration: int) -> list[SamplingRequest]:
    """One request a response; its seed follows from run, iteration, prompt and sample alone.

    A prompt that comes twice (the iteration crosses an epoch of the data) goes on counting its samples, else they would be the same.
    """
    requests: list[SamplingRequest] = []
    seen: Counter[int] = Counter()
    for prompt in prompts:
        for sample in range(seen[prompt.index], seen[prompt.index] + samples_per_prompt):
            own = sampling_seed(seed, iteration, prompt.index, sample)
            requests.append(SamplingRequest(prompt.tokens, prompt.index, sample, own, prompt.teacher))
        seen[prompt.index] += samples_per_prompt
    return requests
