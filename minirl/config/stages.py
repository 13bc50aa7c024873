"""The training stages."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.objective import DivergenceConfig, SoftTargetsConfig
from minirl.config.strict import StrictModel


class OptimizerStageConfig(StrictModel):
    """What every training stage sets."""

    learning_rate: PositiveFloat
    min_learning_rate: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_updates: NonNegativeInt = 0
    weight_decay: float = Field(0.0, ge=0)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    max_grad_norm: PositiveFloat | None = 1.0
    max_target_tokens: PositiveInt | None = None  # the stage ends with the update that has learnt from so many, repeats counted

    @model_validator(mode="after")
    def _knows_its_end(self) -> Self:
        if self.max_target_tokens and self.schedule == "cosine":
            raise ValueError("schedule: cosine must know its last update, which max_target_tokens leaves open; set schedule: constant")
        return self


class SftConfig(OptimizerStageConfig):
    """Supervised fine-tuning on gold responses; the checkpoint with the lowest validation loss is kept."""

    epochs: PositiveInt = 3
    sequences_per_update: PositiveInt = 32
    max_updates: PositiveInt | None = None
    validations_per_epoch: PositiveInt = 1


class KdConfig(SftConfig):
    """Knowledge distillation on gold responses: the teacher's whole distribution at each of their tokens."""

    soft: SoftTargetsConfig = SoftTargetsConfig()


class SeqkdConfig(SftConfig):
    """Sequence-level distillation: the teacher writes a response to every training prompt, then fine-tuning on these.

    gold_share: of the prompts, those that keep their gold response. soft: the teacher's whole distribution too, as in `kd`.
    """

    samples_per_prompt: PositiveInt = 1
    gold_share: float = Field(0.0, ge=0, lt=1)
    soft: SoftTargetsConfig | None = None


class DistillConfig(OptimizerStageConfig):
    """On-policy distillation: `iterations` times sample, score, credit, update, publish."""

    iterations: PositiveInt
    prompts_per_iteration: PositiveInt = 256
    samples_per_prompt: PositiveInt = 1
    epochs_per_iteration: PositiveInt = 1
    updates_per_epoch: PositiveInt = 1
    max_staleness: int = Field(0, ge=0, le=2)  # iterations that are sampled ahead; 0 is exact, above it the importance ratio corrects
    validate_every: PositiveInt = 10
    validation_prompts: PositiveInt = 64
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 1
    leaves: Literal["best", "last"] = "best"  # the student that goes on: best by validation Rouge-L, as the paper selects, or the final one

    @property
    def student_prompts(self) -> int:
        """Prompts of an iteration that get the student's responses."""
        return self.prompts_per_iteration

    @property
    def responses_per_iteration(self) -> int:
        """Of the student."""
        return self.student_prompts * self.samples_per_prompt

    @property
    def updates_per_iteration(self) -> int:
        return self.epochs_per_iteration * self.updates_per_epoch

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.responses_per_iteration % self.updates_per_epoch:
            raise ValueError(
                f"{self.responses_per_iteration} responses per iteration do not divide into {self.updates_per_epoch} updates per epoch; "
                "change prompts_per_iteration, samples_per_prompt or updates_per_epoch"
            )
        if self.max_target_tokens and self.max_staleness:
            raise ValueError("max_target_tokens may end the stage while further iterations are on their way; set max_staleness: 0")
        return self


class GkdConfig(DistillConfig):
    """Generalised knowledge distillation: a divergence at each token of the student's own responses, and of gold ones.

    student_share: of the prompts, those that get student responses; the others are learnt from with their gold response.
    """

    divergence: DivergenceConfig = DivergenceConfig(kind="reverse_kl")
    student_share: float = Field(1.0, gt=0, le=1)

    @property
    def student_prompts(self) -> int:
        return round(self.student_share * self.prompts_per_iteration)

    @property
    def gold_per_update(self) -> int:
        return (self.prompts_per_iteration - self.student_prompts) * self.samples_per_prompt // self.updates_per_epoch

    @model_validator(mode="after")
    def _shares(self) -> Self:
        gold = (self.prompts_per_iteration - self.student_prompts) * self.samples_per_prompt
        if not self.student_prompts or gold % self.updates_per_epoch:
            raise ValueError(
                f"student_share: {self.student_share} makes {self.student_prompts} student prompts and {gold} gold responses an iteration; "
                "there must be some of the first, and the second must divide into the updates of an epoch"
            )
        return self
