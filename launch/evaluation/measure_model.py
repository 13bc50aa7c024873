"""Judging one model after another with three started groups: its own samples, gold responses, the teacher's samples, plain text."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from actors.groups.ensemble_group import EnsembleGroup
from actors.groups.learner_group import LearnerGroup
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from launch.groups import RESPONSES_IN_FLIGHT
from launch.prepare import PreparedRun
from minirl.data.examples import Example
from minirl.evaluation.samples import EvaluatedSamples, PerSample
from minirl.evaluation.sets import EvaluationSet
from minirl.model.token_diagnostics import SequenceDiagnostics
from minirl.training.on_policy_loop import sampling_requests
from minirl.training.roles import SampledRollout
from minirl.training.update import SupervisedItem
from minirl.types import Rollout, TokenSequence

T = TypeVar("T")


class ModelMeasurer:
    """What the groups hold is judged: the learner's model, and for samples the engines' at `weight_version`."""

    def __init__(self, prepared: PreparedRun, groups: tuple[RolloutGroup, TeacherGroup | EnsembleGroup, LearnerGroup]):
        self.prepared, self.config = prepared, prepared.config.stages.evaluate
        self.rollout, self.teacher, self.learner = groups
        self._kept: dict[str, list[SupervisedItem]] = {}

    def judge(
        self, asked: EvaluationSet, *, teacher_share: float, weight_version: int, teachers_samples: list[list[TokenSequence]] | None
    ) -> EvaluatedSamples:
        """teachers_samples: [seeds][prompts], what ExAccErr compares with; None leaves it out."""
        rollouts, own = [], []
        for seed in self.config.seeds:
            one_seed, found = self._samples(asked.examples, seed, teacher_share, weight_version)
            rollouts.append(one_seed)
            own.append(found)
        gold = [example.sequence for example in asked.examples if example.sequence.targets]
        return EvaluatedSamples(
            texts=[texts_of(self.prepared, one_seed) for one_seed in rollouts],
            rollouts=rollouts,
            own=None if self.config.no_repeat_ngram else own,
            gold=self._diagnosed(f"{asked.name} gold", gold),
            on_teacher=teachers_samples and self._on_teacher(asked, teachers_samples),
        )

    def corpus_loss(self) -> float | None:
        """Mean nats per token of the plain text that is held out; None where there is none."""
        held_out = self.prepared.corpus.held_out() if self.prepared.corpus else []
        if not held_out:
            return None
        sums = self.learner.supervised_sums([SupervisedItem(block) for block in held_out])
        return sums["supervised"] / sums["supervised_tokens"]

    def _samples(
        self, examples: list[Example], seed: int, teacher_share: float, weight_version: int
    ) -> tuple[list[Rollout], list[SequenceDiagnostics]]:
        rollouts, found = [], []
        for part in _parts(examples):
            sampled = sample(self.prepared, self.rollout, part, seed=seed, teacher_share=teacher_share, weight_version=weight_version)
            fetched, tokens = self.rollout.fetch(sampled), [one.summary.tokens for one in sampled]
            rollouts += fetched
            if not self.config.no_repeat_ngram:
                scores = self.teacher.score([one.rollout for one in sampled], tokens)
                items = [SupervisedItem(one.sequence, score) for one, score in zip(fetched, scores, strict=True)]
                found += self.learner.diagnostics(items, tokens, top_k=self.config.top_k)
        return rollouts, found

    def _on_teacher(self, asked: EvaluationSet, samples: list[list[TokenSequence]]) -> PerSample:
        return [self._diagnosed(f"{asked.name} {seed}", one_seed) for seed, one_seed in zip(self.config.seeds, samples, strict=True)]

    def _diagnosed(self, key: str, sequences: list[TokenSequence]) -> list[SequenceDiagnostics]:
        """Of sequences that are the same for every model: the teacher scores them once, what Ray has no room for goes to its disk."""
        if key not in self._kept:
            scores = [score for part in _parts(sequences) for score in self.teacher.score(part, _lengths(part))]
            self._kept[key] = [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]
        found = []
        for part in _parts(self._kept[key]):
            found += self.learner.diagnostics(part, _lengths([item.sequence for item in part]), top_k=self.config.top_k)
        return found


def with_references(examples: list[Example]) -> list[Example]:
    """Those that Rouge-L can judge."""
    return [example for example in examples if example.prompt.references]


def sample(
    prepared: PreparedRun, rollout: RolloutGroup, examples: list[Example], *, seed: int, teacher_share: float, weight_version: int
) -> list[SampledRollout]:
    """One response to each example, at the engine's temperature."""
    return rollout.sample(
        sampling_requests([example.prompt for example in examples], 1, seed, 0),
        teacher_share=teacher_share,
        max_response_tokens=prepared.config.data.max_response_tokens,
        weight_version=weight_version,
    )


def texts_of(prepared: PreparedRun, rollouts: list[Rollout]) -> list[str]:
    """The responses as a person reads them, end tokens left out."""
    return prepared.tokenizer.batch_decode([one.response_tokens for one in rollouts], skip_special_tokens=True)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), RESPONSES_IN_FLIGHT):
        yield items[start : start + RESPONSES_IN_FLIGHT]


def _lengths(sequences: Sequence[TokenSequence]) -> list[int]:
    return [len(sequence.tokens) for sequence in sequences]
