"""Training on given responses: gold ones, or those that the teacher wrote. Updates, and validations that mark the checkpoint to keep.

With a teacher, each update's sequences are scored first and learnt from its whole distribution (`kd`); without, from their tokens alone
(`sft`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from minirl.config.stages import SftConfig
from minirl.seeds import derive_seed
from minirl.training.data_order import DataOrder
from minirl.training.learning_rate import learning_rate
from minirl.training.log import MetricsLog, Stopwatch
from minirl.training.roles import Scorer
from minirl.training.update import LossDivisors, SupervisedItem, UpdateStep
from minirl.types import TokenSequence

PER_TOKEN = ("divergence", "hard")


class SupervisedLearner(Protocol):
    def update(self, step: UpdateStep, on_policy: list, supervised: list[SupervisedItem], tokens: list[int]) -> dict: ...
    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]: ...


@dataclass
class SupervisedProgress:
    """Where the stage stands. is_best: the validation just made is the lowest so far; target_tokens: learnt from, each time it was."""

    updates: int = 0
    target_tokens: int = 0
    best_loss: float | None = None
    best_update: int | None = None
    is_best: bool = False
    cursors: dict[str, Any] = field(default_factory=dict)


class SupervisedLoop:
    """The loop over fixed sequences; `connect` it to the groups, then `run`. name: of the stage, whose data order is its own."""

    def __init__(
        self, config: SftConfig, *, name: str, train: list[TokenSequence], validation: list[TokenSequence], seed: int, metrics: MetricsLog
    ):
        self.config, self.metrics = config, metrics
        self.train, self.validation = ([sequence for sequence in part if sequence.targets] for part in (train, validation))
        self.cursor = DataOrder(len(self.train), derive_seed(seed, name))
        self.progress = SupervisedProgress()
        self.watch = Stopwatch()

    def connect(self, learner: SupervisedLearner, teacher: Scorer | None = None) -> None:
        self.learner, self.teacher = learner, teacher
        self._validation_items: list[SupervisedItem] = []

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.config.sequences_per_update)

    @property
    def total(self) -> int:
        """Updates that are planned; a token budget may end the stage before."""
        planned = self.config.epochs * self.updates_per_epoch
        return min(planned, self.config.max_updates or planned)

    @property
    def position(self) -> int:
        return self.progress.updates

    @property
    def finished(self) -> bool:
        return self.position >= self.total or self.progress.target_tokens >= (self.config.max_target_tokens or math.inf)

    def run(self) -> Iterator[SupervisedProgress]:
        """Yields after every validation, so that the caller keeps the best and checkpoints."""
        interval = max(1, self.updates_per_epoch // self.config.validations_per_epoch)
        while not self.finished:
            record = self.update()
            self.progress.updates += 1
            due = self.progress.updates % interval == 0 or self.finished
            if due:
                record |= self.validate()
            self.metrics.write(self.progress.updates - 1, record | {f"time/{verb}": s for verb, s in self.watch.reset().items()})
            if due:
                yield self.progress

    def update(self) -> dict[str, float]:
        items = self._scored([self.train[i] for i in self.cursor.next(self.config.sequences_per_update)])
        targets = sum(item.sequence.targets for item in items)
        rate = learning_rate(self.config, self.progress.updates, self.total)
        with self.watch("update"):
            step = UpdateStep(0, self.progress.updates, rate, LossDivisors(supervised=float(targets)))
            sums = self.learner.update(step, [], items, [])
        self.progress.target_tokens += targets
        tokens = sum(len(item.sequence.tokens) for item in items)
        return {
            "loss/supervised": sums["supervised"],
            **{f"loss/{name}": sums[name] / targets for name in PER_TOKEN if name in sums},
            "learner/grad_norm": sums.get("grad_norm", math.nan),
            "learner/learning_rate": rate,
            "learner/target_tokens": self.progress.target_tokens,
            "learner/tokens_per_second": tokens / self.watch.seconds["update"],
        }

    def validate(self) -> dict[str, float]:
        """The stage's own loss on the validation sequences, which the teacher scores once."""
        if not self._validation_items:
            self._validation_items = self._scored(self.validation)
        with self.watch("validate"):
            sums = self.learner.supervised_sums(self._validation_items)
        loss = sums["supervised"] / sums["supervised_tokens"]
        progress = self.progress
        progress.is_best = progress.best_loss is None or loss < progress.best_loss
        if progress.is_best:
            progress.best_loss, progress.best_update = loss, progress.updates
        return {"eval/validation_loss": loss}

    def _scored(self, sequences: list[TokenSequence]) -> list[SupervisedItem]:
        if self.teacher is None:
            return [SupervisedItem(sequence) for sequence in sequences]
        with self.watch("score"):
            scores = self.teacher.score(sequences, [len(sequence.tokens) for sequence in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return vars(self.progress) | {"cursors": {"train": self.cursor.state_dict()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = SupervisedProgress(**state)
        self.cursor.load_state_dict(state["cursors"]["train"])
