"""What the driver asks of the three groups. It knows them by what they can do: Ray processes in a run, stand-ins in its unit tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minirl.training.update import OnPolicyItem, SupervisedItem, UpdateStep
from minirl.types import RolloutSummary, SamplingRequest, TokenSequence


@dataclass(frozen=True)
class SampledRollout:
    """A rollout that stays where it was made: a reference to it, and its scalars."""

    rollout: Any
    summary: RolloutSummary


class GivenSequences(Protocol):
    """Sequences whose targets are given: a corpus, or gold responses."""

    def __len__(self) -> int: ...
    def block(self, index: int) -> TokenSequence: ...


class PendingRollouts(Protocol):
    """One iteration's rollouts on their way; what `sampled` and `scores` return is in the order of the requests.

    effort: what each role spent on it so far, as `{"rollout/busy_seconds": 1.5, ...}`, for the log.
    """

    effort: dict[str, float]

    def sampled(self) -> list[SampledRollout]: ...
    def scores(self) -> list[Any]: ...


class Sampler(Protocol):
    def begin(
        self, requests: list[SamplingRequest], teacher: Any, *, teacher_share: float, max_response_tokens: int, weight_version: int
    ) -> PendingRollouts:
        """Have the requests sampled after all that was asked before, each rollout to be scored by `teacher`; returns at once."""


class Scorer(Protocol):
    def score(self, asked: list[Any], tokens: list[int]) -> list[Any]: ...


class OnPolicyLearner(Protocol):
    def frozen_advantages(self, items: list[OnPolicyItem], tokens: list[int]) -> list[np.ndarray]: ...
    def begin_update(
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: list[int]
    ) -> Callable[[], dict[str, float]]:
        """Have an optimizer step taken after those that were asked before; what it returns waits for the step's sums."""


class PendingWeights(Protocol):
    """Weights on their way into the rollout engines, ahead of whatever is sampled next. bytes: of one copy of them."""

    bytes: int

    def wait(self) -> None: ...
