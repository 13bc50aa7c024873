"""Config sections of the training stages: `sft`, `kd`, `seqkd`, `gkd`, `opd`, `distill` and `task_sft`."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.data import RecordsConfig
from minirl.config.objective import DivergenceConfig, SoftTargetsConfig
from minirl.config.strict import StrictModel

SelectBy = Literal["rouge_l", "reverse_kl", "validation_loss"]


class OptimizerStageConfig(StrictModel):
    """The settings that all training stages share. An update is one optimizer step."""

    learning_rate: PositiveFloat  # the highest learning rate, reached after the warm-up
    min_learning_rate: float = Field(0.0, ge=0)  # where `schedule: cosine` ends; `constant` ignores it
    schedule: Literal["constant", "cosine"] = "constant"  # the learning rate after the warm-up
    warmup_updates: NonNegativeInt = 0  # updates in which the learning rate rises linearly; 0: none
    weight_decay: float = Field(0.0, ge=0)  # the optimizer's weight decay (AdamW: decoupled)
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)  # the two decay rates of AdamW; SGD ignores them
    max_grad_norm: PositiveFloat | None = 1.0  # gradients are clipped to this global norm; `null`: no clipping
    # Ends the stage with the update that reaches this number of target tokens, repeats counted; `null`: no such limit. It needs
    # `schedule: constant` and, in on-policy stages, `max_staleness: 0`.
    max_target_tokens: PositiveInt | None = None

    @model_validator(mode="after")
    def _refuse_cosine_without_end(self) -> Self:
        if self.max_target_tokens and self.schedule == "cosine":
            raise ValueError("schedule: cosine must know its last update, which max_target_tokens leaves open; set schedule: constant")
        return self


class SftConfig(OptimizerStageConfig):
    """Supervised fine-tuning on gold responses. The stage keeps the checkpoint with the lowest validation loss."""

    epochs: PositiveInt = 3  # passes over the training data
    sequences_per_update: PositiveInt = 32  # sequences that one update learns from, over all learner workers
    max_updates: PositiveInt | None = None  # ends the stage after this many updates at most; `null`: `epochs` alone decides
    validations_per_epoch: PositiveInt = 1  # how often in an epoch the validation loss is measured and a checkpoint is written


class KdConfig(SftConfig):
    """Knowledge distillation on gold responses: the student learns the teacher's whole distribution at each of their tokens."""

    soft: SoftTargetsConfig = SoftTargetsConfig()  # the divergence from the teacher, and the weight of cross-entropy beside it


class SeqkdConfig(SftConfig):
    """Sequence-level distillation: the teacher writes responses to the training prompts, and the student is fine-tuned on them."""

    samples_per_prompt: PositiveInt = 1  # responses that the teacher writes for each prompt
    gold_share: float = Field(0.0, ge=0, lt=1)  # the share of the prompts that keep their gold response
    soft: SoftTargetsConfig | None = None  # learns the teacher's whole distribution too, as `kd` does; `null`: cross-entropy alone


class TaskSftConfig(SftConfig):
    """Fine-tuning of the distilled student on the data of one task, as `sft` does, while the KL to the teacher is measured.

    `evaluate` measures all models on the test split of this data too, as a set named `task_sft`, unless the config has a set of that name.
    """

    data: RecordsConfig  # the task's records; template, limits and ignored columns are those of the run's own `data`
    # On how many validation sequences of the run's own `data` (the first ones) each validation measures the KL to the teacher, which grows
    # as the student forgets what it was distilled to. 0: the KL is not measured, and the stage starts no teacher.
    teacher_kl_sequences: NonNegativeInt = 128


class DistillConfig(OptimizerStageConfig):
    """On-policy distillation: one iteration samples, scores, credits, updates and publishes."""

    iterations: PositiveInt  # how many iterations the stage runs
    prompts_per_iteration: PositiveInt = 256  # prompts that one iteration draws
    samples_per_prompt: PositiveInt = 1  # responses that the student samples for each prompt
    epochs_per_iteration: PositiveInt = 1  # passes over the responses of an iteration
    updates_per_epoch: PositiveInt = 1  # updates in each such pass; must divide the number of responses of an iteration
    # Iterations that are sampled ahead, 0 to 2, by weights that are up to as many publishes old. 0 is exact; above 0 the importance ratio
    # corrects.
    max_staleness: int = Field(0, ge=0, le=2)
    validate_every: PositiveInt = 10  # iterations between two validations, which measure Rouge-L and reverse KL
    validation_prompts: PositiveInt = 64  # how many validation prompts a validation uses
    checkpoint_every: PositiveInt = 10  # iterations between two checkpoints
    keep_checkpoints: PositiveInt = 1  # how many checkpoints stay on the disk, the newest ones
    # The student that the stage passes on: the `best` by `select_by`, or the `last` one.
    leaves: Literal["best", "last"] = "best"
    # The validation metric that decides which student is the best. `rouge_l`: the highest Rouge-L, which is how the paper selects.
    # `reverse_kl`: the lowest KL to the teacher on the student's own responses; no reference is needed. `validation_loss`: the lowest
    # cross-entropy of the gold responses. Equal validations are compared by reverse KL.
    select_by: SelectBy = "rouge_l"

    @property
    def student_prompts(self) -> int:
        """Prompts of an iteration for which the student samples responses."""
        return self.prompts_per_iteration

    @property
    def responses_per_iteration(self) -> int:
        """Responses that the student samples in an iteration."""
        return self.student_prompts * self.samples_per_prompt

    @property
    def updates_per_iteration(self) -> int:
        return self.epochs_per_iteration * self.updates_per_epoch

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.responses_per_iteration % self.updates_per_epoch:
            raise ValueError(
                f"{self.responses_per_iteration} responses per iteration do not divide into {self.updates_per_epoch} updates per epoch; "
                "change prompts_per_iteration, samples_per_prompt or updates_per_epoch"
            )
        if self.max_target_tokens and self.max_staleness:
            raise ValueError("max_target_tokens may end the stage while later iterations are already being sampled; set max_staleness: 0")
        return self


class GkdConfig(DistillConfig):
    """Generalised knowledge distillation: a divergence at each token of the student's own responses, and of gold ones."""

    divergence: DivergenceConfig = DivergenceConfig(kind="reverse_kl")  # the divergence between student and teacher
    # The share of an iteration's prompts, above 0 up to 1, for which the student samples responses. The others use their gold response.
    student_share: float = Field(1.0, gt=0, le=1)

    @property
    def student_prompts(self) -> int:
        return round(self.student_share * self.prompts_per_iteration)

    @property
    def gold_per_update(self) -> int:
        """Gold responses that one update learns from, beside those of the student."""
        return self._gold_per_epoch // self.updates_per_epoch

    @property
    def _gold_per_epoch(self) -> int:
        return (self.prompts_per_iteration - self.student_prompts) * self.samples_per_prompt

    @model_validator(mode="after")
    def _refuse_undivisible_gold(self) -> Self:
        if not self.student_prompts or self._gold_per_epoch % self.updates_per_epoch:
            raise ValueError(
                f"student_share: {self.student_share} gives {self.student_prompts} student prompts and {self._gold_per_epoch} gold "
                "responses in an iteration; choose a share that leaves at least one student prompt, and a number of gold responses that "
                f"updates_per_epoch = {self.updates_per_epoch} divides"
            )
        return self
