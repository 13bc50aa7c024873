"""Measures models with three running groups: on own samples, gold responses, teacher's samples, plain text."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from actors.groups.ensemble_group import EnsembleGroup
from actors.groups.learner_group import LearnerGroup
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from launch.groups import RESPONSES_IN_FLIGHT
from launch.prepare import PreparedRun
from minirl.data.examples import Example
from minirl.evaluation.agreement import GreedyAnswers
from minirl.evaluation.samples import DiagnosticsBySeed, EvaluatedSamples
from minirl.evaluation.sets import EvaluationSet
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.inputs import SupervisedItem
from minirl.training.on_policy_loop import sampling_requests
from minirl.training.roles import SampledRollout
from minirl.types import Rollout, SamplingRequest, TokenSequence

T = TypeVar("T")


class ModelMeasurer:
    """Measures the model in the groups: the learner's weights, and for sampling the engines' weights at `weight_version`."""

    def __init__(self, prepared: PreparedRun, groups: tuple[RolloutGroup, TeacherGroup | EnsembleGroup, LearnerGroup]):
        self.prepared, self.config = prepared, prepared.config.stages.evaluate
        self.rollout, self.teacher, self.learner = groups
        self._scored_sequences: dict[str, list[SupervisedItem]] = {}

    def measure(
        self,
        evaluation_set: EvaluationSet,
        *,
        teacher_share: float,
        weight_version: int,
        teachers_samples: list[list[TokenSequence]] | None,
    ) -> EvaluatedSamples:
        """teachers_samples: [seeds][prompts], for ExAccErr; None leaves it out."""
        rollouts, on_samples = self._sample_and_diagnose(evaluation_set.examples, teacher_share, weight_version)
        gold = [example.sequence for example in evaluation_set.examples if example.sequence.targets]
        return EvaluatedSamples(
            texts=[response_texts(self.prepared, one_seed) for one_seed in rollouts],
            rollouts=rollouts,
            on_model_samples=None if self.config.no_repeat_ngram else on_samples,
            on_gold=self._diagnose_fixed(f"{evaluation_set.name} gold", gold),
            on_teacher_samples=teachers_samples and self._diagnose_teachers_samples(evaluation_set, teachers_samples),
        )

    def greedy_answers(self, evaluation_set: EvaluationSet, *, teacher_share: float, weight_version: int) -> GreedyAnswers:
        """The model's most likely token each time; nothing is scored."""
        rollouts, options = [], {"teacher_share": teacher_share, "weight_version": weight_version, "greedy": True}
        for chunk in _chunks(response_requests(evaluation_set.examples, [0])):
            rollouts += self.rollout.fetch(sample_responses(self.prepared, self.rollout, chunk, **options))
        return GreedyAnswers([rollout.response_tokens for rollout in rollouts], response_texts(self.prepared, rollouts))

    def corpus_loss(self) -> float | None:
        """Mean loss on the held-out plain text, in nats per token; None without such text."""
        held_out = self.prepared.corpus.held_out() if self.prepared.corpus else []
        if not held_out:
            return None
        sums = self.learner.supervised_sums([SupervisedItem(block) for block in held_out])
        return sums["supervised"] / sums["supervised_tokens"]

    def _sample_and_diagnose(
        self, examples: list[Example], teacher_share: float, weight_version: int
    ) -> tuple[list[list[Rollout]], list[list[SequenceDiagnostics]]]:
        """[seeds][examples]: rollouts and their diagnostics; no diagnostics where n-grams are blocked.

        All seeds are sampled together: the time of a decoding step grows little with the number of responses.
        """
        rollouts, diagnostics = [], []
        for chunk in _chunks(response_requests(examples, self.config.seeds)):
            sampled = sample_responses(self.prepared, self.rollout, chunk, teacher_share=teacher_share, weight_version=weight_version)
            fetched = self.rollout.fetch(sampled)
            rollouts += fetched
            if not self.config.no_repeat_ngram:
                diagnostics += diagnose_rollouts(self.teacher, self.learner, sampled, fetched, top_k=self.config.top_k)
        return self._by_seed(rollouts, len(examples)), self._by_seed(diagnostics, len(examples))

    def _by_seed(self, values: list[T], size: int) -> list[list[T]]:
        """[seeds][size], from the values of all seeds, one after the other; a list for each seed also where there are no values."""
        return [values[seed * size : (seed + 1) * size] for seed in range(len(self.config.seeds))]

    def _diagnose_teachers_samples(self, evaluation_set: EvaluationSet, samples: list[list[TokenSequence]]) -> DiagnosticsBySeed:
        by_seed = zip(self.config.seeds, samples, strict=True)
        return [self._diagnose_fixed(f"{evaluation_set.name} {seed}", sequences) for seed, sequences in by_seed]

    def _diagnose_fixed(self, key: str, sequences: list[TokenSequence]) -> list[SequenceDiagnostics]:
        """Diagnostics on sequences that all models share. The teacher scores them once; Ray spills scores beyond its memory to disk."""
        if key not in self._scored_sequences:
            scores = [score for chunk in _chunks(sequences) for score in self.teacher.score(chunk, _lengths(chunk))]
            self._scored_sequences[key] = [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]
        diagnostics = []
        for chunk in _chunks(self._scored_sequences[key]):
            diagnostics += self.learner.diagnostics(chunk, _lengths([item.sequence for item in chunk]), top_k=self.config.top_k)
        return diagnostics


def with_references(examples: list[Example]) -> list[Example]:
    """The examples that have a reference, which Rouge-L needs."""
    return [example for example in examples if example.prompt.references]


def response_requests(examples: list[Example], seeds: Sequence[int]) -> list[SamplingRequest]:
    """One request for each example and seed: first all examples with the first seed."""
    prompts = [example.prompt for example in examples]
    return [request for seed in seeds for request in sampling_requests(prompts, 1, seed, 0)]


def sample_responses(prepared: PreparedRun, rollout: RolloutGroup, requests: list[SamplingRequest], **options: Any) -> list[SampledRollout]:
    """One response to each request, at the engine's temperature. options: those of `RolloutWorker.sample_each`."""
    return rollout.sample(requests, max_response_tokens=prepared.config.data.max_response_tokens, **options)


def diagnose_rollouts(
    teacher: TeacherGroup | EnsembleGroup | None,
    learner: LearnerGroup,
    sampled: list[SampledRollout],
    rollouts: list[Rollout],
    *,
    top_k: int,
) -> list[SequenceDiagnostics]:
    """Diagnostics of sampled responses: the teacher scores them, then the learner compares. rollouts: those of `sampled`, fetched.

    teacher: None if they were sampled with scores.
    """
    tokens, scores = [each.summary.tokens for each in sampled], [each.rollout for each in sampled]
    if teacher is not None:
        scores = teacher.score(scores, tokens)
    items = [SupervisedItem(rollout.sequence, score) for rollout, score in zip(rollouts, scores, strict=True)]
    return learner.diagnostics(items, tokens, top_k=top_k)


def response_texts(prepared: PreparedRun, rollouts: list[Rollout]) -> list[str]:
    """The decoded responses, without end tokens."""
    return decoded(prepared, [rollout.response_tokens for rollout in rollouts])


def decoded(prepared: PreparedRun, responses: list[np.ndarray]) -> list[str]:
    return prepared.tokenizer.batch_decode(responses, skip_special_tokens=True)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), RESPONSES_IN_FLIGHT):
        yield items[start : start + RESPONSES_IN_FLIGHT]


def _lengths(sequences: Sequence[TokenSequence]) -> list[int]:
    return [len(sequence.tokens) for sequence in sequences]
