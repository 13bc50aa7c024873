"""Validation of an on-policy stage by its running groups: Rouge-L, reverse KL and loss on validation prompts."""

from actors.groups.ensemble_group import EnsembleGroup
from actors.groups.learner_group import LearnerGroup
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from launch.evaluation.measure_model import (
    diagnose_rollouts,
    response_requests,
    response_texts,
    sample_responses,
    with_references,
)
from launch.prepare import PreparedRun
from minirl.config.stages import DistillConfig
from minirl.evaluation.text import rouge_l
from minirl.training.inputs import SupervisedItem


class OnPolicyValidation:
    """Measures the student in the groups on the first `validation_prompts` validation prompts; one response of the student for each.

    Prompts with a reference are preferred, because Rouge-L needs one. groups: if the teacher's is None, the rollout engines score.
    """

    def __init__(
        self,
        prepared: PreparedRun,
        config: DistillConfig,
        groups: tuple[RolloutGroup, TeacherGroup | EnsembleGroup | None, LearnerGroup],
    ):
        self.prepared, self.config = prepared, config
        self.rollout, self.teacher, self.learner = groups
        validation = prepared.data.validation
        self.examples = (with_references(validation) or validation)[: config.validation_prompts]

    def measure(self, weight_version: int) -> dict[str, float]:
        """The metrics that the data allow: `rouge_l` with references, `reverse_kl` in nats per token, `validation_loss` if it selects.

        The reverse KL is exact, on the student's own responses and at the temperature of the loss. It costs one forward pass of teacher and
        learner over these responses, which are sampled for Rouge-L in any case.
        """
        requests = response_requests(self.examples, [self.prepared.config.seed])
        options = {"teacher_share": 0.0, "weight_version": weight_version, "with_scores": self.teacher is None}
        sampled = sample_responses(self.prepared, self.rollout, requests, **options)
        rollouts = self.rollout.fetch(sampled)
        divergences = [each.reverse_kl for each in diagnose_rollouts(self.teacher, self.learner, sampled, rollouts, top_k=1)]
        metrics = {"reverse_kl": float(sum(row.sum(dtype="float64") for row in divergences) / sum(map(len, divergences)))}
        if self.examples[0].prompt.references:
            texts = response_texts(self.prepared, rollouts)
            ratings = [rouge_l(text, example.prompt.references) for text, example in zip(texts, self.examples, strict=True)]
            metrics["rouge_l"] = sum(ratings) / len(ratings)
        if self.config.select_by == "validation_loss":
            metrics["validation_loss"] = self._gold_loss()
        return metrics

    def _gold_loss(self) -> float:
        """Cross-entropy of the gold responses, in nats per token."""
        gold = [example.sequence for example in self.prepared.data.validation if example.sequence.targets]
        sums = self.learner.supervised_sums([SupervisedItem(sequence) for sequence in gold[: self.config.validation_prompts]])
        return sums["supervised"] / sums["supervised_tokens"]
