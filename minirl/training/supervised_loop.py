"""The supervised training loop (SFT, KD): updates on fixed responses, and validations that select the best checkpoint.

The responses are gold responses or responses that the teacher sampled. With a teacher (`kd`), the teacher scores each update's sequences
first, and the student learns from its whole distribution. Without a teacher (`sft`), the student learns from the tokens alone. With a
teacher that is only watched (`task_sft`), it does so too, and each validation also measures the KL to that teacher.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from minirl.config.stages import SftConfig
from minirl.seeds import derive_seed
from minirl.training.data_order import DataOrder
from minirl.training.inputs import SupervisedItem
from minirl.training.learning_rate import learning_rate
from minirl.training.log import MetricsLog, Stopwatch
from minirl.training.roles import Scorer
from minirl.training.update import LossDivisors, UpdateStep
from minirl.types import TokenSequence

PER_TOKEN = ("divergence", "hard")


class SupervisedLearner(Protocol):
    def update(self, step: UpdateStep, on_policy: list, supervised: list[SupervisedItem], tokens: list[int]) -> dict: ...
    def supervised_sums(self, items: list[SupervisedItem]) -> dict[str, float]: ...


@dataclass
class SupervisedProgress:
    """Progress of the stage, as the checkpoint holds it."""

    updates: int = 0
    target_tokens: int = 0  # learnt from so far; a token that is learnt twice counts twice
    best_loss: float | None = None
    best_update: int | None = None
    is_best: bool = False  # the last validation had the lowest loss so far
    cursors: dict[str, Any] = field(default_factory=dict)


class SupervisedLoop:
    """The loop over fixed sequences: `connect` it to the groups, then iterate over `run`.

    name: the stage's name; each stage has its own data order. Sequences without targets are left out. watched: the sequences on which each
    validation measures the KL to the watched teacher.
    """

    def __init__(
        self,
        config: SftConfig,
        *,
        name: str,
        train: list[TokenSequence],
        validation: list[TokenSequence],
        watched: Sequence[TokenSequence] = (),
        seed: int,
        metrics: MetricsLog,
    ):
        self.config, self.metrics, self.watched = config, metrics, list(watched)
        self.train, self.validation = ([sequence for sequence in part if sequence.targets] for part in (train, validation))
        self.data_order = DataOrder(len(self.train), derive_seed(seed, name))
        self.progress = SupervisedProgress()
        self.stopwatch = Stopwatch()
        self.uninterrupted: Callable[[], AbstractContextManager] = nullcontext  # a block that an interruption may not cut in two

    def connect(self, learner: SupervisedLearner, teacher: Scorer | None = None, *, watched_teacher: Scorer | None = None) -> None:
        """teacher: its distribution is learnt. watched_teacher: it scores the watched sequences alone."""
        self.learner, self.teacher, self.watched_teacher = learner, teacher, watched_teacher
        self._validation_items: list[SupervisedItem] = []
        self._watched_items: list[SupervisedItem] = []

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.train) / self.config.sequences_per_update)

    @property
    def total(self) -> int:
        """Planned updates. A token budget may end the stage earlier."""
        planned = self.config.epochs * self.updates_per_epoch
        return min(planned, self.config.max_updates or planned)

    @property
    def position(self) -> int:
        return self.progress.updates

    @property
    def finished(self) -> bool:
        return self.position >= self.total or self.progress.target_tokens >= (self.config.max_target_tokens or math.inf)

    def run(self) -> Iterator[SupervisedProgress]:
        """Yields after every validation, so that the caller saves the best student and writes a checkpoint.

        Whenever an interruption ends it, `state_dict` and the learner are those of the last finished update.

        The first record also has the KL to a watched teacher before the first update, as `eval/..._at_start`.
        """
        interval = max(1, self.updates_per_epoch // self.config.validations_per_epoch)
        while not self.finished:
            at_start = {} if self.progress.updates else {f"{name}_at_start": value for name, value in self.teacher_kl().items()}
            with self.uninterrupted():  # the learner, the progress and the best student that is exported belong together
                record = at_start | self.update()
                self.progress.updates += 1
                validation_due = self.progress.updates % interval == 0 or self.finished
                if validation_due:
                    record |= self.validate() | self.teacher_kl()
                self.metrics.write(self.progress.updates - 1, record | {f"time/{verb}": s for verb, s in self.stopwatch.reset().items()})
                if validation_due:
                    yield self.progress

    def update(self) -> dict[str, float]:
        """Take one optimizer step, wait for it and return its log record."""
        items = self._items([self.train[i] for i in self.data_order.next(self.config.sequences_per_update)], self.teacher)
        targets = sum(item.sequence.targets for item in items)
        rate = learning_rate(self.config, self.progress.updates, self.total)
        with self.stopwatch("update"):
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
            "learner/tokens_per_second": tokens / self.stopwatch.seconds["update"],
        }

    def validate(self) -> dict[str, float]:
        """The stage's training loss on the validation sequences. The teacher scores them once, before the first validation."""
        if not self._validation_items:
            self._validation_items = self._items(self.validation, self.teacher)
        with self.stopwatch("validate"):
            sums = self.learner.supervised_sums(self._validation_items)
        loss = sums["supervised"] / sums["supervised_tokens"]
        progress = self.progress
        progress.is_best = progress.best_loss is None or loss < progress.best_loss
        if progress.is_best:
            progress.best_loss, progress.best_update = loss, progress.updates
        return {"eval/validation_loss": loss}

    def teacher_kl(self) -> dict[str, float]:
        """The KLs between student and watched teacher, in nats per target token of the watched sequences; empty without such a teacher.

        The teacher scores the sequences once, before the first measurement.
        """
        if self.watched_teacher is None:
            return {}
        if not self._watched_items:
            self._watched_items = self._items(self.watched, self.watched_teacher)
        with self.stopwatch("validate"):
            sums = self.learner.supervised_sums(self._watched_items)
        return {f"eval/{name}_gold": sums[f"supervised_{name}"] / sums["supervised_tokens"] for name in ("forward_kl", "reverse_kl")}

    def _items(self, sequences: list[TokenSequence], teacher: Scorer | None) -> list[SupervisedItem]:
        """Items with the teacher's scores, or without scores if there is no teacher."""
        if teacher is None:
            return [SupervisedItem(sequence) for sequence in sequences]
        with self.stopwatch("score"):
            scores = teacher.score(sequences, [len(sequence.tokens) for sequence in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return vars(self.progress) | {"cursors": {"train": self.data_order.state_dict()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress = SupervisedProgress(**state)
        self.data_order.load_state_dict(state["cursors"]["train"])
