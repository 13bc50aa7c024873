"""Protocols that the training loops require of the three groups: Ray processes in a run, stand-ins in unit tests."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import UpdateStep
from minirl.types import RolloutSummary, SamplingRequest, TokenSequence


@dataclass(frozen=True)
class SampledRollout:
    """A rollout that stays in the worker that sampled it: `rollout` is a reference to it, `summary` its scalars."""

    rollout: Any
    summary: RolloutSummary


class SupervisedSequences(Protocol):
    """Sequences with fixed targets: a corpus, or gold responses."""

    def __len__(self) -> int: ...
    def block(self, index: int) -> TokenSequence: ...


class PendingRollouts(Protocol):
    """One iteration's rollouts while they are sampled and scored. `sampled` and `scores` return values in the order of the requests.

    call_costs: each role's seconds and bytes so far, as `{"rollout/busy_seconds": 1.5, ...}`, for the log.
    """

    call_costs: dict[str, float]

    def sampled(self) -> list[SampledRollout]: ...
    def scores(self) -> list[Any]: ...


class Sampler(Protocol):
    def begin(
        self,
        requests: list[SamplingRequest],
        teacher: Any,
        *,
        with_scores: bool,
        teacher_share: float,
        max_response_tokens: int,
        weight_version: int,
    ) -> PendingRollouts:
        """Queue the requests behind all earlier ones and return at once. `teacher` scores each rollout, or `with_scores` the sampler."""


class Scorer(Protocol):
    def score(self, sequences: list[Any], tokens: list[int]) -> list[Any]:
        """Scores of rollouts (references) or sequences, in their order. tokens: the length of each."""


class OnPolicyLearner(Protocol):
    def frozen_advantages(self, items: list[OnPolicyItem], tokens: list[int]) -> list[np.ndarray]: ...
    def begin_update(
        self, step: UpdateStep, on_policy: list[OnPolicyItem], supervised: list[SupervisedItem], tokens: list[int]
    ) -> Callable[[], dict[str, float]]:
        """Queue an optimizer step behind the earlier ones. Returns a function that waits for the step's sums."""


class PendingWeights(Protocol):
    """Weights that the rollout engines will load before they sample the next requests. bytes: the size of one copy."""

    bytes: int

    def wait(self) -> None: ...
