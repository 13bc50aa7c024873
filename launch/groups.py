"""Starts the rollout, teacher and learner groups of a stage, and the Ray cluster, sized so that they fit.

The groups of a stage start at the same time. They stay up for the next stage where it needs the same processes (`actors.groups.pool`).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

from actors.config import LearnerSetup, ScoreCapture
from actors.engine.engine import check_environment, check_head_size
from actors.groups.ensemble_group import EnsembleGroup
from actors.groups.learner_group import LearnerGroup
from actors.groups.nodes import choose_device, usable_nodes
from actors.groups.placement import Places, cluster, reserved_together
from actors.groups.pool import GroupPool, GroupRequest
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.workers.rollout import weight_transfer
from launch.config import OnPolicyStage
from launch.prepare import PreparedRun
from minirl.config.objective import SoftTargetsConfig
from minirl.config.stages import DistillConfig, GkdConfig, SftConfig
from minirl.config.student import LoraConfig
from minirl.model.loading import architecture_signature

MIB = 2**20
RESPONSES_IN_FLIGHT = 512  # responses whose teacher states are in the object store at once; an evaluation set may have many thousands
MAX_STORED_RESPONSES = 2048  # responses of an evaluation that the object store has room for; Ray spills further ones to its disk


class Groups:
    """Starts groups for the stages of one prepared run. Each method yields groups for one stage.

    The Ray cluster starts with the first group and ends with this object's own block, as do the groups: a run with nothing left to do
    starts none.
    """

    def __init__(self, prepared: PreparedRun):
        self.prepared, self.config = prepared, prepared.config
        self._cluster, self._pool = ExitStack(), GroupPool()
        self._latest_capture: ScoreCapture | None = None  # of the engines that may still be running

    def __enter__(self) -> "Groups":
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._pool.stop()
        finally:
            self._cluster.__exit__(*error)

    @cached_property
    def device(self) -> str:
        """The cluster's device, "cpu" or "cuda". Joins or starts the cluster. Raises InputError if it does not fit the config."""
        check_environment()
        self._cluster.enter_context(cluster(logical_cpus(self.prepared), object_store_bytes(self.prepared)))
        device, notice = choose_device(self.config.cluster.device, usable_nodes(self.config.cluster.start_timeout_s))
        if notice:
            warnings.warn(notice, stacklevel=2)
        # These raise InputError now instead of after the fine-tuning stages, which need no engine.
        weight_transfer(self.config.rollout, device)
        if self.config.stages.model_dump(exclude_none=True).keys() - {"sft_teacher", "sft"}:
            for model in (*self.prepared.teachers, self.prepared.student):
                check_head_size(model, device)
        return device

    @contextmanager
    def learner(
        self, model: str, teachers: tuple[str, ...] | None, *, training: SftConfig, soft: SoftTargetsConfig | None, lora: LoraConfig | None
    ) -> Iterator[tuple[LearnerGroup, TeacherGroup | EnsembleGroup | None]]:
        """The learner group, and the teacher group if there are teachers, for supervised training with the model's own dropout.

        teachers: models whose distribution is learnt too, as `soft` says, or without `soft` only compared with the student's; None starts
        no teacher group.
        """
        setup = self._learner_setup(model, teachers, training=training, soft=soft, dropout=True, lora=lora)
        teacher_requests = self._teacher_requests(teachers, 1.0) if teachers else []
        with self._pool.running(self._learner_request(setup), *teacher_requests) as (learner, *teacher_groups):
            yield learner, _one_teacher_group(teacher_groups) if teacher_groups else None

    @contextmanager
    def rollout(self, model: str) -> Iterator[RolloutGroup]:
        """The rollout group alone, which samples from the weights of any model directory at temperature 1."""
        request = GroupRequest(("rollout", model), partial(self._start_rollout, model, None, 1.0))
        with self._pool.running(request) as (rollout,):
            yield rollout

    @contextmanager
    def rollout_teacher_learner(
        self,
        student: str,
        teachers: tuple[str, ...],
        *,
        on_policy: OnPolicyStage | None = None,
        teacher_in_rollout: bool = False,
        no_repeat_ngram: int = 0,
    ) -> Iterator[tuple[RolloutGroup, TeacherGroup | EnsembleGroup | None, LearnerGroup]]:
        """The rollout, teacher and learner groups. There is no teacher group if the stage needs none.

        on_policy: the stage to train; None trains nothing and sets all temperatures to 1. teacher_in_rollout: the rollout engines hold
        the teacher even if the stage's teacher share is 0. no_repeat_ngram: see `RolloutWorker`.
        """
        sampling_temperature = self.config.rollout.temperature if on_policy else 1.0
        # A divergence does not weight the student's samples, so their temperature is not part of the loss.
        loss_temperature = sampling_temperature if on_policy and on_policy.soft is None else 1.0
        rollout_teacher = teachers[0] if teacher_in_rollout or (on_policy and on_policy.teacher_share > 0) else None
        scoring_teachers = teachers if on_policy is None or on_policy.needs_teacher_group else ()
        capture = self._score_capture(on_policy.config) if on_policy and on_policy.scores_from_sampling else None
        settings = {} if on_policy is None else {
            "training": on_policy.config, "objective": on_policy.objective, "soft": on_policy.soft, "lora": self.config.student.lora,
        }  # fmt: skip
        setup = self._learner_setup(student, teachers, temperature=loss_temperature, **settings)
        with (
            self._places(on_policy.config if on_policy else None, scoring_teachers) as places,
            self._pool.running(
                self._learner_request(setup, places["learner"][0]),
                self._rollout_request(student, rollout_teacher, sampling_temperature, no_repeat_ngram, capture, places["rollout"][0]),
                *self._teacher_requests(scoring_teachers, loss_temperature, places["teacher"]),
            ) as (learner, rollout, *teacher_groups),
        ):
            yield rollout, _one_teacher_group(teacher_groups) if teacher_groups else None, learner

    def _score_capture(self, stage: DistillConfig) -> ScoreCapture:
        """The room of one rollout engine for the scores of the stage's rollouts and of its validation."""
        share = -(-max(stage.responses_per_iteration, stage.validation_prompts) // self.config.rollout.workers)
        return ScoreCapture(share, self.config.data.max_response_tokens, self.config.teacher.check_every)

    def _rollout_request(
        self,
        student: str,
        teacher: str | None,
        temperature: float,
        no_repeat_ngram: int,
        capture: ScoreCapture | None,
        places: Places | None,
    ) -> GroupRequest:
        """Engines that get the student's weights by publishing, so that they serve every student of one architecture."""
        settings = ("rollout", architecture_signature(student), teacher, temperature, no_repeat_ngram, self._channel)
        if capture is None and (*settings, self._latest_capture) in self._pool:
            capture = self._latest_capture  # engines with room for scores also sample without
        self._latest_capture = capture
        start = partial(self._start_rollout, student, teacher, temperature, places, no_repeat_ngram=no_repeat_ngram, capture=capture)
        return GroupRequest((*settings, capture), start, lambda rollout: rollout.begin_call("forget_weights"))

    def _start_rollout(
        self, student: str, teacher: str | None, temperature: float, places: Places | None = None, **engine: Any
    ) -> RolloutGroup:
        """engine: further arguments of `RolloutWorker`."""
        prepared = self.prepared
        return RolloutGroup(
            self.config.rollout,
            self.config.cluster,
            self.device,
            places=places,
            fixed_shares=self.config.deterministic,
            model=student,
            teacher=teacher,
            end_tokens=prepared.end_tokens,
            max_model_len=prepared.max_model_len,
            shared_vocabulary=prepared.vocabulary,
            temperature=temperature,
            **engine,
        )

    def _teacher_requests(
        self, models: tuple[str, ...], temperature: float, places: Sequence[Places | None] | None = None
    ) -> list[GroupRequest]:
        """The requests of each teacher's group."""
        starts = self._teacher_starts(models, temperature, places or [None] * len(models))
        return [
            GroupRequest(("teacher", index, model, temperature), start)
            for index, (model, start) in enumerate(zip(models, starts, strict=True))
        ]

    def _teacher_starts(
        self, models: tuple[str, ...], temperature: float, places: Sequence[Places | None]
    ) -> list[Callable[[], TeacherGroup]]:
        """For each teacher, the function that starts its group."""
        config, prepared = self.config, self.prepared
        settings = {
            "cluster": config.cluster,
            "device": self.device,
            "as_finished": config.teacher.score_as_finished and not config.deterministic,
            "max_model_len": self._longest_sequence,
            "shared_vocabulary": prepared.vocabulary,
            "temperature": temperature,
        }
        if len(models) <= 1:
            starts = zip(models, places, strict=True)
            return [partial(TeacherGroup, config.teacher, model=model, places=place, **settings) for model, place in starts]
        return [
            partial(
                TeacherGroup, config.teacher, role=f"teacher {index}", model=model, member_index=index, teacher_id=member.id,
                places=places[index], **settings,
            )
            for index, (model, member) in enumerate(zip(models, config.teacher.members, strict=True))
        ]  # fmt: skip

    @property
    def _longest_sequence(self) -> int:
        """Tokens of the longest sequence that teacher and learner compute."""
        return max(self.prepared.max_model_len, self.config.corpus.block_tokens if self.config.corpus else 0)

    def _learner_request(self, setup: LearnerSetup, places: Places | None = None) -> GroupRequest:
        start = partial(LearnerGroup, setup, self.config.cluster, places)
        return GroupRequest(("learner", self._channel), start, lambda learner: learner.begin_rebuild(setup))

    @property
    def _channel(self) -> object | None:
        """The part of a key that differs in every stage where weights travel by NCCL: nothing closes the channel but the processes' end."""
        return object() if weight_transfer(self.config.rollout, self.device) == "nccl" else None

    @contextmanager
    def _places(self, training: DistillConfig | None, teachers: tuple[str, ...]) -> Iterator[dict[str, list[Places | None]]]:
        """The places of each role's groups where the roles compute at the same time on CPUs, and therefore divide the cores.

        None for every group if the roles take turns, or if each has its own devices: it then reserves its place itself.
        """
        config, alone = self.config, len(teachers) == 1
        teacher_groups = [("teacher" if alone else f"teacher {index}", config.teacher) for index in range(len(teachers))]
        roles = {"rollout": [("rollout", config.rollout)], "teacher": teacher_groups, "learner": [("learner", config.learner)]}
        if training is None or training.max_staleness == 0 or self.device != "cpu":
            yield {role: [None] * len(groups) for role, groups in roles.items()}
            return
        self._pool.stop()  # cores are divided anew, and workers keep theirs for life
        with reserved_together(roles, config.cluster, self.device) as places, ExitStack() as stack:
            stack.callback(self._pool.stop)
            yield places

    def _learner_setup(self, model: str, teachers: tuple[str, ...] | None, **stage: Any) -> LearnerSetup:
        """stage: the fields of `LearnerSetup` that differ between stages."""
        config = self.config
        weights = {} if not teachers or len(teachers) == 1 else {
            "teacher_weights": tuple(member.weight for member in config.teacher.members)
        }  # fmt: skip
        teacher = teachers if weights or not teachers else teachers[0]
        return LearnerSetup(
            model=model, teacher=teacher, **weights, vocabulary=self.prepared.vocabulary, config=config.learner, device=self.device,
            threads=1, seed=config.seed, teacher_dtype=config.teacher.dtype, behavior_dtype=config.rollout.dtype,
            deterministic=config.deterministic, longest_sequence=self._longest_sequence, **stage,
        )  # fmt: skip


def _one_teacher_group(groups: list[TeacherGroup]) -> TeacherGroup | EnsembleGroup:
    return groups[0] if len(groups) == 1 else EnsembleGroup(groups)


def logical_cpus(prepared: PreparedRun) -> int:
    """CPUs that a cluster of the run's own declares to Ray: as many as the groups reserve, whatever the machine has."""
    config = prepared.config
    roles = (config.rollout, config.learner, *[config.teacher] * len(prepared.teachers))
    return sum(role.workers * role.cpus_per_worker for role in roles)


def object_store_bytes(prepared: PreparedRun) -> int:
    """Size of the object store: the teacher states of the largest stage and the weight versions in transit, with a margin.

    A token counts 4 bytes per element of its hidden states and 64 bytes for everything else.
    """
    config, longest, weight_versions = prepared.config, prepared.max_model_len, 3
    stage_tokens, stages = [0], config.stages
    for stage in (stages.kd, stages.seqkd):
        if stage is not None and stage.soft is not None:
            stage_tokens.append(2 * stage.sequences_per_update * longest + sum(len(e.sequence.tokens) for e in prepared.data.validation))
    stage_tokens.append(sum(len(sequence.tokens) for sequence in prepared.watched_sequences))
    for stage in filter(None, (stages.gkd, stages.opd, stages.distill)):
        supervised = longest * stage.gold_per_update if isinstance(stage, GkdConfig) else 0
        if config.corpus and config.objective.pretrain_kd_share > 0:
            supervised = config.corpus.blocks_per_update * config.corpus.block_tokens
        responses = stage.responses_per_iteration * config.data.max_response_tokens * (1 + stage.max_staleness)
        stage_tokens.append(responses + supervised * stage.updates_per_iteration + stage.validation_prompts * longest)
        weight_versions = max(weight_versions, 3 + stage.max_staleness)
    if stages.evaluate:
        set_sizes = [len(evaluation_set.examples) for evaluation_set in prepared.sets]
        responses = sum(set_sizes) * (1 + stages.evaluate.exposure_bias * len(stages.evaluate.seeds))
        stage_tokens.append((min(responses, MAX_STORED_RESPONSES) + 2 * min(max(set_sizes), RESPONSES_IN_FLIGHT)) * longest)
    payload = max(stage_tokens) * (prepared.teacher_width * 4 + 64)
    return int(1.25 * payload + weight_versions * prepared.student_bytes + 256 * MIB)
