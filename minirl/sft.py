"""Supervised fine-tuning: updates on gold responses, and validations; the lowest validation loss marks the checkpoint to keep."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from minirl.config import SftConfig
from minirl.cursor import Cursor
from minirl.metrics import MetricsLog, Stopwatch
from minirl.rollout import Sequence
from minirl.schedule import learning_rate
from minirl.seeds import derive_seed
from minirl.update import SupervisedItem, UpdateScale, UpdateStep


class Learners(Protocol):
    def update(self, step: UpdateStep, on_policy: list, supervised: list[SupervisedItem], tokens: list[int]) -> dict: ...
    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]: ...


@dataclass
class SftProgress:
    """Where supervised fine-tuning stands. is_best: the validation just made is the lowest so far."""

    updates: int = 0
    best_loss: float | None = None
    best_update: int | None = None
    is_best: bool = False
    cursors: dict[str, Any] = field(default_factory=dict)


class SftDriver:
    def __init__(
        self, config: SftConfig, *, learner: Learners, train: list[Sequence], validation: list[Sequence], seed: int, metrics: MetricsLog
    ):
        self.config, self.learner, self.metrics = config, learner, metrics
        self.train, self.validation = [[SupervisedItem(s) for s in part if s.targets] for part in (train, validation)]
        self.cursor = Cursor(len(self.train), derive_seed(seed, "sft"))
        self.progress = SftProgress()
        self.watch = Stopwatch()

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.config.sequences_per_update)

    @property
    def total_updates(self) -> int:
        planned = self.config.epochs * self.updates_per_epoch
        return min(planned, self.config.max_updates or planned)

    def run(self) -> Iterator[SftProgress]:
        """Yields after every validation, so that the caller keeps the best and checkpoints."""
        interval = max(1, self.updates_per_epoch // self.config.validations_per_epoch)
        while self.progress.updates < self.total_updates:
            record = self.update()
            self.progress.updates += 1
            due = self.progress.updates % interval == 0 or self.progress.updates == self.total_updates
            if due:
                record |= self.validate()
            self.metrics.write(self.progress.updates - 1, record | {f"time/{verb}": s for verb, s in self.watch.reset().items()})
            if due:
                yield self.progress

    def update(self) -> dict[str, float]:
        items = [self.train[i] for i in self.cursor.next(self.config.sequences_per_update)]
        targets = sum(item.sequence.targets for item in items)
        rate = learning_rate(self.config, self.progress.updates, self.total_updates)
        with self.watch("update"):
            step = UpdateStep(0, self.progress.updates, rate, UpdateScale(supervised=float(targets)))
            sums = self.learner.update(step, [], items, [])
        tokens = sum(len(item.sequence.tokens) for item in items)
        return {
            "loss/supervised": sums["supervised"],
            "learner/grad_norm": sums.get("grad_norm", math.nan),
            "learner/learning_rate": rate,
            "learner/tokens_per_second": tokens / self.watch.seconds["update"],
        }

    def validate(self) -> dict[str, float]:
        with self.watch("validate"):
            sums = self.learner.supervised_sums(self.validation)
        loss = sums["supervised"] / sums["supervised_tokens"]
        progress = self.progress
        progress.is_best = progress.best_loss is None or loss < progress.best_loss
        if progress.is_best:
            progress.best_loss, progress.best_update = loss, progress.updates
        return {"eval/validation_loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return vars(self.progress) | {"cursors": {"train": self.cursor.state_dict()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = SftProgress(**state)
        self.cursor.load_state_dict(state["cursors"]["train"])
