"""Typed, strict configuration of the three groups: how many workers, on what, with which limits."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.objective import ObjectiveConfig, SoftTargetsConfig
from minirl.config.stages import OptimizerStageConfig
from minirl.config.strict import StrictModel
from minirl.config.student import LoraConfig

Dtype = Literal["float32", "bfloat16"]


class EngineConfig(StrictModel):
    """What every vLLM engine needs, in the rollout group and in the teacher group."""

    workers: PositiveInt = 1
    tensor_parallel: PositiveInt = 1  # devices of one worker; its executor is vLLM's `mp`, so they stand on one node
    dtype: Dtype = "bfloat16"
    kv_cache_gib: PositiveFloat = 1.0  # on a CPU
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    cpus_per_worker: PositiveInt = 1


class RolloutConfig(EngineConfig):
    """The rollout group. `teacher_share` is the mixture's a; sampling with it loads the teacher into every rollout engine."""

    teacher_share: float = Field(0.0, ge=0, lt=1)
    temperature: PositiveFloat = 1.0  # of both networks, before they are mixed
    top_p: float = Field(1.0, gt=0, le=1)
    weight_transfer: Literal["auto", "host_memory", "nccl"] = "auto"  # auto: nccl on GPUs


class TeacherMember(StrictModel):
    """One of several teachers. weight: its share of their average in probability; id: that records call it by instead."""

    model: str
    weight: PositiveFloat = 1.0
    id: str | None = None


class TeacherConfig(EngineConfig):
    """The teacher group and the model that it holds, or the models, each in workers of its own.

    An ensemble without ids is averaged at every token, with ids each record has the one teacher that its `teacher_id` names.
    """

    model: str | None = None  # a directory, a hub name, or "embedded:smollm2-135m-instruct"
    ensemble: list[TeacherMember] | None = None
    micro_batch_tokens: PositiveInt = 4096  # a scoring pass of the engine
    check_every: PositiveInt = 8  # of a sequence's tokens one has its log-prob told by the teacher itself, as the learner's checksum
    score_as_finished: bool = True  # each rollout when it is there, not when the batch is; `deterministic: true` waits for the batch

    @property
    def members(self) -> list[TeacherMember]:
        """Every teacher, whether there are several or one."""
        return self.ensemble or [TeacherMember(model=self.model)]

    @property
    def by_record(self) -> bool:
        return self.members[0].id is not None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if (self.model is None) == (self.ensemble is None):
            raise ValueError("give the teacher either a model or an ensemble of several")
        if self.ensemble is None:
            return self
        ids, models = [member.id for member in self.ensemble], [member.model for member in self.ensemble]
        if len(ids) < 2:
            raise ValueError("an ensemble has at least two teachers; name a single one in teacher.model")
        if None in ids and any(ids):
            raise ValueError("give every teacher of the ensemble an id, and each record the teacher_id of one, or none of them")
        if self.by_record and len(set(ids)) < len(ids):
            raise ValueError(f"the id {_repeated(ids)} names two teachers of the ensemble; give each its own")
        if self.by_record and any(member.weight != 1.0 for member in self.ensemble):
            raise ValueError("a teacher with an id speaks alone for its records, so its weight would do nothing: leave it out")
        if not self.by_record and len(set(models)) < len(models):
            raise ValueError(f"{_repeated(models)} is in the ensemble twice; name it once, with the sum of the weights")
        return self


def _repeated(names: list[str]) -> str:
    return next(name for place, name in enumerate(names) if name in names[:place])


class LearnerConfig(StrictModel):
    """The learner group: DeepSpeed ranks."""

    workers: PositiveInt = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    dtype: Dtype = "bfloat16"  # of the weights; the optimizer state is float32
    tokens_per_microbatch: PositiveInt = 2048  # padding included
    head_chunk_tokens: PositiveInt = 2048  # target tokens whose logits exist at once; below a micro-batch's they are computed twice
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"  # flash_attention_2 where CUDA has it; on a CPU by length
    packing: Literal["auto", "on", "off"] = "auto"  # sequences in one row without padding; auto: with flash_attention_2
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False  # to host memory; DeepSpeed compiles its CPU optimizer with a C++ compiler on first use
    optimizer: Literal["adamw", "sgd"] = "adamw"
    checksum_tolerance: PositiveFloat | None = None  # nats; null: by dtype
    publish_bucket_mib: PositiveInt = 256
    cpus_per_worker: PositiveInt = 1


class ClusterConfig(StrictModel):
    """Where the groups stand."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_s: PositiveFloat = 600.0
    step_timeout_s: PositiveFloat = 1800.0
    threads_per_worker: NonNegativeInt = 0  # 0: the machine's cores shared out evenly among workers that run at once


@dataclass(frozen=True)
class LearnerSetup:
    """What a learner worker is told before it starts.

    model, teacher: model directories; teacher None where no loss asks for it, several with their teacher_weights. vocabulary: the
    shared one. training None: evaluation only, no optimizer. soft: items are learnt from the teacher's whole distribution, and the
    objective is not asked. teacher_dtype, behavior_dtype: of the engines that scored and sampled. dropout: train with the model's own
    dropout (SFT) or without. lora: adapters alone are trained; None: every weight.
    """

    model: str
    teacher: str | tuple[str, ...] | None
    vocabulary: int
    config: LearnerConfig
    device: str
    threads: int
    seed: int
    training: OptimizerStageConfig | None = None
    objective: ObjectiveConfig | None = None
    soft: SoftTargetsConfig | None = None
    temperature: float = 1.0
    teacher_share: float = 0.0
    teacher_weights: tuple[float, ...] = ()
    teacher_dtype: str = "float32"
    behavior_dtype: str = "float32"
    dropout: bool = False
    lora: LoraConfig | None = None
    deterministic: bool = False
