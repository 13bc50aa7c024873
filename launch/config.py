"""The one YAML of a run: models, data, groups, stages."""

from dataclasses import dataclass
from typing import Self

from pydantic import NonNegativeInt, model_validator

from actors.config import ClusterConfig, LearnerConfig, RolloutConfig, TeacherConfig
from minirl.config.data import CorpusConfig, DataConfig
from minirl.config.evaluation import EvaluateConfig
from minirl.config.objective import ObjectiveConfig, SoftTargetsConfig
from minirl.config.stages import DistillConfig, GkdConfig, KdConfig, SeqkdConfig, SftConfig
from minirl.config.strict import StrictModel
from minirl.config.student import StudentConfig

STUDENT_STAGES = ("sft", "kd", "seqkd", "gkd", "opd", "distill")


class StagesConfig(StrictModel):
    """The stages that run, in this order; null leaves one out."""

    sft_teacher: SftConfig | None = None
    sft: SftConfig | None = None
    kd: KdConfig | None = None
    seqkd: SeqkdConfig | None = None
    gkd: GkdConfig | None = None
    opd: DistillConfig | None = None  # the loop of `distill` with `objective.preset: opd`, sampling from the student alone
    distill: DistillConfig | None = None
    evaluate: EvaluateConfig | None = None

    def students(self) -> dict[str, str]:
        """The training stages of the student that run, in order, each with the directory of the student that it leaves."""
        stages = {name: getattr(self, name) for name in STUDENT_STAGES}
        return {name: f"{name}/{getattr(stage, 'leaves', 'best')}" for name, stage in stages.items() if stage}


class RunConfig(StrictModel):
    directory: str
    seed: NonNegativeInt = 10
    deterministic: bool = False
    teacher: TeacherConfig
    student: StudentConfig
    data: DataConfig
    corpus: CorpusConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    cluster: ClusterConfig = ClusterConfig()
    stages: StagesConfig

    @model_validator(mode="after")
    def _refuse_what_one_teacher_is_needed_for(self) -> Self:
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
            what = (
                "with mixing a token of the teacher may have probability 0 under the student"
                if self.rollout.teacher_share > 0
                else "it bends p and q"
            )
            raise ValueError(f"rollout.top_p must be 1: {what}; set rollout.top_p: 1.0")
        if self.stages.distill and self.objective.pretrain_coefficient > 0 and self.corpus is None:
            raise ValueError("the pre-training loss needs a corpus: give corpus.source, or set objective.pretrain_coefficient: 0.0")
        return self

    def with_evaluation(self) -> Self:
        """The same with a stage `evaluate`, as it is by default where there was none."""
        stages = self.stages if self.stages.evaluate else self.stages.model_copy(update={"evaluate": EvaluateConfig()})
        return self.model_copy(update={"stages": stages})


@dataclass(frozen=True)
class OnPolicyStage:
    """What sets one on-policy stage apart. soft: a divergence in place of the objective; only `distill` mixes the teacher in."""

    name: str
    config: DistillConfig
    objective: ObjectiveConfig
    teacher_share: float = 0.0
    soft: SoftTargetsConfig | None = None


def on_policy_stage(config: RunConfig, name: str) -> OnPolicyStage:
    stages = config.stages
    if name == "gkd":
        return OnPolicyStage(name, stages.gkd, ObjectiveConfig(preset="gkd"), soft=SoftTargetsConfig(divergence=stages.gkd.divergence))
    if name == "opd":
        return OnPolicyStage(name, stages.opd, ObjectiveConfig(preset="opd"))
    return OnPolicyStage(name, stages.distill, config.objective, config.rollout.teacher_share)
