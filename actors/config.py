"""Typed, strict configuration of the groups and the Ray cluster: how many workers, on which devices, with which limits."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from minirl.config.objective import ObjectiveConfig, SoftTargetsConfig
from minirl.config.stages import OptimizerStageConfig
from minirl.config.strict import PathText, StrictModel
from minirl.config.student import LoraConfig

# `auto` is replaced before any group starts (`launch.dtypes`); groups and workers get a dtype.
Dtype = Literal["auto", "float32", "bfloat16"]


class EngineConfig(StrictModel):
    """Settings that every vLLM engine has, in the rollout group and in the teacher group."""

    workers: PositiveInt = 1  # Ray workers of the group, each with its own vLLM engine
    tensor_parallel: PositiveInt = 1  # devices of one worker, all on one node, since vLLM runs them with its `mp` executor
    # Of weights and activations. `auto`: `bfloat16` if every device of the run computes it natively, else `float32`.
    # The run's directory records the choice, and a resume keeps it.
    dtype: Dtype = "auto"
    kv_cache_gib: PositiveFloat = 1.0  # GiB of KV cache of an engine on a CPU; ignored on GPUs
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)  # share of a GPU's memory that the engine may use; ignored on CPUs
    cpus_per_worker: PositiveInt = 1  # CPUs that Ray reserves for each worker


class RolloutConfig(EngineConfig):
    """The rollout group: vLLM engines that sample responses from the student, or from its mixture with the teacher."""

    # Teacher's share `a` of the sampling mixture (1 - a) student + a teacher, in [0, 1).
    # Above 0, every rollout engine loads the teacher too.
    teacher_share: float = Field(0.0, ge=0, lt=1)
    temperature: PositiveFloat = 1.0  # sampling temperature of both networks, applied before they are mixed
    top_p: float = Field(1.0, gt=0, le=1)  # must be 1; a run refuses any other value, since it would change the distributions
    # How new weights reach the engines: through host memory or from GPU to GPU.
    # `auto`: `nccl` on GPUs, else `host_memory`.
    weight_transfer: Literal["auto", "host_memory", "nccl"] = "auto"


class TeacherMember(StrictModel):
    """One teacher of an ensemble."""

    model: PathText  # a directory or a hub name
    weight: PositiveFloat = 1.0  # relative weight in the average of the teachers' probabilities; leave it out if the teacher has an `id`
    id: str | None = None  # records select this teacher with `teacher_id`; `null` for all members: the ensemble is averaged


class TeacherConfig(EngineConfig):
    """The teacher group: one model, or an ensemble in which each teacher has its own `workers`.

    Without ids, the probabilities of an ensemble are averaged at every token. With ids, each record is scored by the one teacher that
    its `teacher_id` names.
    """

    model: PathText | None = None  # a directory, a hub name, or `embedded:smollm2-135m-instruct`; `null` with an `ensemble`
    ensemble: list[TeacherMember] | None = None  # two or more teachers in place of `model`
    micro_batch_tokens: PositiveInt = 4096  # tokens of one scoring pass of an engine
    # One in `check_every` tokens of a sequence gets its log-prob from the teacher engine itself.
    # The learner compares it with the log-prob that it computes from the hidden state.
    check_every: PositiveInt = 8
    # Where the scores of the responses that `distill` samples come from.
    # `from_sampling`: from the rollout engines, which compute the teacher's hidden state for every token that they sample with a
    # `rollout.teacher_share` above 0. `group`: from a second pass over the responses, in the teacher group.
    # `auto`: `from_sampling` where the share is above 0 and `teacher.dtype` is `rollout.dtype`, else `group`.
    scores: Literal["auto", "from_sampling", "group"] = "auto"
    # `true`: score each rollout as soon as it is finished. `false`: wait until all rollouts of the iteration are finished.
    # `deterministic: true` always waits.
    score_as_finished: bool = True

    @property
    def members(self) -> list[TeacherMember]:
        """All teachers, also when there is only one."""
        return self.ensemble or [TeacherMember(model=self.model)]

    @property
    def selected_by_record(self) -> bool:
        """Whether each record names its teacher, instead of learning from the average."""
        return self.members[0].id is not None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if (self.model is None) == (self.ensemble is None):
            raise ValueError("set either a model or an ensemble of several teachers")
        if self.ensemble is None:
            return self
        ids, models = [member.id for member in self.ensemble], [member.model for member in self.ensemble]
        if len(ids) < 2:
            raise ValueError("an ensemble needs at least two teachers; name a single one in teacher.model")
        if None in ids and any(ids):
            raise ValueError("give every teacher of the ensemble an id, and each record the teacher_id of one of them, or give no ids")
        if self.selected_by_record and len(set(ids)) < len(ids):
            raise ValueError(f"the id {_first_repeated(ids)} names two teachers of the ensemble; give each teacher a different id")
        if self.selected_by_record and any(member.weight != 1.0 for member in self.ensemble):
            raise ValueError("a teacher with an id is the only one that scores its records, so its weight would do nothing; leave it out")
        if not self.selected_by_record and len(set(models)) < len(models):
            raise ValueError(f"{_first_repeated(models)} is in the ensemble twice; name it once, with the sum of the weights")
        return self


def _first_repeated(names: list[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


class LearnerConfig(StrictModel):
    """The learner group: DeepSpeed ranks that train the student."""

    workers: PositiveInt = 1  # DeepSpeed ranks; on GPUs each has one
    zero_stage: Literal[0, 1, 2, 3] = 0  # DeepSpeed ZeRO: 0 shards nothing, 1 optimizer state, 2 also gradients, 3 also weights
    # Of the weights; the optimizer state is float32. `auto`: as for the engines.
    dtype: Dtype = "auto"
    tokens_per_microbatch: PositiveInt = 2048  # tokens of one forward and backward pass on a rank, padding included
    # Target tokens whose logits exist at once.
    # If a micro-batch has more, its logits are computed twice, in the forward and in the backward pass.
    head_chunk_tokens: PositiveInt = 2048
    # Attention kernel. `auto`: `flash_attention_2` on GPUs that can run it, else `sdpa`, else `eager`, whichever computes this model.
    # On a CPU, `auto` chooses between `sdpa` and `eager` by sequence length. The learner compares the kernel with `eager` at its start.
    # A named kernel that does not compute the model is refused.
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    # Put several sequences into one row without padding. `auto`: on with `flash_attention_2`.
    # A model whose attention does not keep packed sequences apart is padded, with a warning.
    packing: Literal["auto", "on", "off"] = "auto"
    gradient_checkpointing: bool = False  # recompute activations in the backward pass, to save memory
    # Keep the optimizer state in host memory.
    # DeepSpeed compiles its CPU optimizer on first use, which needs a C++ compiler.
    offload_optimizer: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"  # AdamW with the stage's `betas`, or plain SGD
    # Largest accepted gap between the teacher rebuilt from hidden states and the teacher's own log-probs, relative to the
    # log-normalizer (or to 1 nat, if that is larger).
    # `null`: 1e-4 for a float32 teacher, 0.03 for a bfloat16 one.
    checksum_tolerance: PositiveFloat | None = None
    publish_bucket_mib: PositiveInt = 256  # MiB of weights that are sent to the rollout engines at a time
    cpus_per_worker: PositiveInt = 1  # CPUs that Ray reserves for each rank


class ClusterConfig(StrictModel):
    """The Ray cluster: devices, deadlines and CPU threads of all groups."""

    # Device of all groups. `auto`: `cuda` if Ray counts a GPU that torch and vLLM of its node can compute on, else `cpu`.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    start_timeout_s: PositiveFloat = 600.0  # seconds that a group may take to start
    # Seconds that one call of a worker may take.
    # While responses are sampled and scored: seconds until the next result.
    step_timeout_s: PositiveFloat = 1800.0
    # CPU threads of each worker process.
    # 0: the cores that the worker's node gives it (affinity and cgroup quota), divided evenly among the processes that compute there
    # at the same time.
    threads_per_worker: NonNegativeInt = 0


@dataclass(frozen=True)
class ScoreCapture:
    """What a rollout engine needs to know to return the teacher's scores with the rollouts.

    requests: the most that are sampled at a time. response_tokens: the most of one response. check_every: as in `TeacherConfig`.
    """

    requests: int
    response_tokens: int
    check_every: int


@dataclass(frozen=True)
class LearnerSetup:
    """Everything that a learner worker needs to know before it starts.

    model: directory of the student. teacher: model directory; None if no loss needs a teacher; a tuple for an ensemble, with its
    teacher_weights. vocabulary: size of the vocabulary that student and teacher share. longest_sequence: the run's longest, in tokens, on
    which the attention kernel is checked. training: None for evaluation only, without an optimizer. soft: learn from the teacher's
    whole distribution instead of the objective. teacher_dtype, behavior_dtype: of the engines that score and sample. dropout: whether
    to train with the model's own dropout (SFT does). lora: train adapters only; None: train every weight.
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
    teacher_weights: tuple[float, ...] = ()
    teacher_dtype: str = "float32"
    behavior_dtype: str = "float32"
    dropout: bool = False
    lora: LoraConfig | None = None
    deterministic: bool = False
    longest_sequence: int = 256
