"""The config of a run (one YAML file): models, data, groups and stages, and the settings of each on-policy stage."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import NonNegativeInt, model_validator

from actors.config import ClusterConfig, LearnerConfig, RolloutConfig, TeacherConfig
from minirl.config.data import CorpusConfig, DataConfig
from minirl.config.evaluation import EvaluateConfig
from minirl.config.objective import ObjectiveConfig, SoftTargetsConfig
from minirl.config.stages import DistillConfig, GkdConfig, KdConfig, SeqkdConfig, SftConfig, TaskSftConfig
from minirl.config.strict import PathText, StrictModel
from minirl.config.student import StudentConfig

STUDENT_STAGES = ("sft", "kd", "seqkd", "gkd", "opd", "distill", "task_sft")
STAGES = ("sft_teacher", *STUDENT_STAGES, "evaluate")  # in their default order


class StagesConfig(StrictModel):
    """The stages of a run, in this order. Each starts from the student that the previous stage left; `null` skips a stage.

    For another order, give a list with one stage an item, such as `[{distill: {...}}, {sft: {...}}, {evaluate: {}}]`. Overrides are the
    same: `stages.distill.iterations=3`.
    """

    sft_teacher: SftConfig | None = None  # fine-tunes the teacher on gold responses first; needs a single teacher
    sft: SftConfig | None = None  # fine-tunes the student on gold responses
    kd: KdConfig | None = None  # trains the student on gold responses, with the teacher's distribution at every target token
    seqkd: SeqkdConfig | None = None  # samples responses from the teacher, then fine-tunes the student on them
    gkd: GkdConfig | None = None  # the loop of `distill` with a divergence in place of the objective; may mix in gold responses
    opd: DistillConfig | None = None  # the loop of `distill` with `objective.preset: opd`, sampling from the student alone
    distill: DistillConfig | None = None  # MiniLLM: on-policy distillation with `objective`, sampling with `rollout.teacher_share`
    task_sft: TaskSftConfig | None = None  # fine-tunes the student on the data of one task, and watches how far it leaves the teacher
    evaluate: EvaluateConfig | None = None  # measures the teacher, the initial student and the student of every stage above
    order: list[str] | None = None  # the names of all stages in another order, `evaluate` last; a list of stages sets it. `null`: as here

    @model_validator(mode="before")
    @classmethod
    def _sections_from_list(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        for number, item in enumerate(value, start=1):
            if not isinstance(item, dict) or len(item) != 1:
                content = f"the keys {', '.join(map(str, item))}" if isinstance(item, dict) else repr(item)
                raise ValueError(f"each item of the list must be one stage, such as `- sft: {{...}}`; item {number} has {content}")
        names = [str(name) for item in value for name in item]
        return {str(name): section for item in value for name, section in item.items()} | {"order": names}

    @model_validator(mode="after")
    def _refuse_impossible_order(self) -> Self:
        order = self.order or STAGES
        for name in order:
            if name not in STAGES:
                raise ValueError(f"{name} is no stage; the stages are {', '.join(STAGES)}")
            if order.count(name) > 1:
                raise ValueError(f"{name} comes {order.count(name)} times in the order of the stages; a stage runs once, so name it once")
        if "evaluate" in order[:-1]:
            raise ValueError("evaluate measures the students of all stages, so it must be the last one; move it to the end")
        for name in STAGES[:-1]:
            if getattr(self, name) and name not in order:
                raise ValueError(f"the order of the stages lacks {name}; add it to stages.order, or set stages.{name}: null")
        return self

    def in_order(self) -> list[str]:
        """The names of the stages to run, in their order."""
        training = [name for name in self.order or STAGES if name != "evaluate"]
        return [name for name in (*training, "evaluate") if getattr(self, name)]

    def student_directories(self) -> dict[str, str]:
        """Stage name -> directory of the student that it leaves, such as "sft/best"; the student's training stages, in order."""
        stages = {name: getattr(self, name) for name in self.in_order() if name in STUDENT_STAGES}
        return {name: f"{name}/{getattr(stage, 'leaves', 'best')}" for name, stage in stages.items()}


class RunConfig(StrictModel):
    """The top level of a run's YAML file: models, data, the three groups of processes and the stages."""

    directory: PathText  # where the run writes all its files; a directory belongs to one run
    seed: NonNegativeInt = 10  # of every random stream: data order, sampling, dropout
    # Use PyTorch's deterministic algorithms, give each engine an equal share of the prompts and score whole batches, so that repeated runs
    # give the same bits. `false`: each engine takes prompts when it has room.
    deterministic: bool = False
    teacher: TeacherConfig  # the teacher group and its model, or several models
    student: StudentConfig  # the student that the first training stage starts from
    data: DataConfig  # prompts and gold responses
    corpus: CorpusConfig | None = None  # plain text for the pre-training loss; `null` if `objective.pretrain_coefficient` is 0
    objective: ObjectiveConfig = ObjectiveConfig()  # the losses of the stage `distill`
    rollout: RolloutConfig = RolloutConfig()  # the rollout group, and how it samples
    learner: LearnerConfig = LearnerConfig()  # the learner group
    cluster: ClusterConfig = ClusterConfig()  # devices, threads and time limits of all groups
    stages: StagesConfig  # the stages to run

    @model_validator(mode="after")
    def _refuse_ensemble_where_one_teacher_is_needed(self) -> Self:
        if self.teacher.ensemble is None:
            return self
        if self.stages.sft_teacher:
            raise ValueError("stages.sft_teacher trains one teacher, and there is an ensemble; fine-tune each in a run of its own")
        if self.stages.distill and self.rollout.teacher_share > 0:
            raise ValueError("rollout.teacher_share mixes one teacher into the sampling, and there is an ensemble; set it to 0.0")
        if self.stages.evaluate and self.stages.evaluate.exposure_bias:
            raise ValueError("stages.evaluate.exposure_bias samples from one teacher, and there is an ensemble; set it to false")
        if self.student.layers is not None:
            raise ValueError("student.layers cuts the student out of one teacher, and there is an ensemble; name a student.model")
        return self

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.rollout.top_p < 1:
            reason = (
                "with mixing a token of the teacher may have probability 0 under the student"
                if self.rollout.teacher_share > 0
                else "a smaller value changes the distributions that the losses compare"
            )
            raise ValueError(f"rollout.top_p must be 1: {reason}; set rollout.top_p: 1.0")
        if self.stages.distill and self.objective.pretrain_coefficient > 0 and self.corpus is None:
            raise ValueError("the pre-training loss needs a corpus: give corpus.source, or set objective.pretrain_coefficient: 0.0")
        return self

    @model_validator(mode="after")
    def _refuse_scores_that_sampling_does_not_have(self) -> Self:
        if self.teacher.scores == "from_sampling" and (obstacle := self.obstacle_to_scores_from_sampling):
            raise ValueError(f"teacher.scores: from_sampling is impossible, because {obstacle}; set teacher.scores: auto")
        return self

    @property
    def obstacle_to_scores_from_sampling(self) -> str | None:
        """Why the rollout engines cannot return the teacher's scores with the rollouts of `distill`; None if they can."""
        if self.teacher.ensemble is not None:
            return "there is an ensemble, and the rollout engines hold one teacher"
        if self.stages.distill is None:
            return "there is no stage distill, and the other stages sample from the student alone"
        if self.rollout.teacher_share == 0:
            return "rollout.teacher_share is 0, so that the rollout engines hold no teacher"
        if self.teacher.dtype != self.rollout.dtype:
            return f"teacher.dtype is {self.teacher.dtype} and rollout.dtype {self.rollout.dtype}, and both would compute one teacher"
        return None

    def with_evaluation(self) -> Self:
        """This config with a stage `evaluate`: its own, or the default one if it has none."""
        stages = self.stages if self.stages.evaluate else self.stages.model_copy(update={"evaluate": EvaluateConfig()})
        return self.model_copy(update={"stages": stages})


@dataclass(frozen=True)
class OnPolicyStage:
    """The settings in which the on-policy stages differ.

    teacher_share: the teacher's share of the sampling mixture; 0 except in `distill`. soft: a divergence that replaces the objective.
    scores_from_sampling: the rollout engines return the teacher's scores with the rollouts.
    """

    name: str
    config: DistillConfig
    objective: ObjectiveConfig
    teacher_share: float = 0.0
    soft: SoftTargetsConfig | None = None
    scores_from_sampling: bool = False

    @property
    def needs_teacher_group(self) -> bool:
        """Whether the teacher group scores the rollouts, or the plain text of the pre-training loss."""
        scores_text = self.objective.pretrain_coefficient > 0 and self.objective.pretrain_kd_share > 0
        return not self.scores_from_sampling or scores_text


def on_policy_stage(config: RunConfig, name: str) -> OnPolicyStage:
    """The settings of the stage `gkd`, `opd` or `distill`. Other modules take the teacher share from here, not from the config."""
    stages = config.stages
    if name == "gkd":
        return OnPolicyStage(name, stages.gkd, ObjectiveConfig(preset="gkd"), soft=SoftTargetsConfig(divergence=stages.gkd.divergence))
    if name == "opd":
        return OnPolicyStage(name, stages.opd, ObjectiveConfig(preset="opd"))
    from_sampling = config.teacher.scores != "group" and config.obstacle_to_scores_from_sampling is None
    return OnPolicyStage(name, stages.distill, config.objective, config.rollout.teacher_share, scores_from_sampling=from_sampling)
