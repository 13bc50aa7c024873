"""The groups of a run: what each is told, started side by side, gone when their block ends; and the cluster that has room for them."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

from actors.config import LearnerSetup
from actors.groups.base import Group
from actors.groups.ensemble_group import EnsembleGroup
from actors.groups.learner_group import LearnerGroup
from actors.groups.placement import CoreShare, cluster, device_of, divide_cores
from actors.groups.rollout_group import RolloutGroup
from actors.groups.teacher_group import TeacherGroup
from actors.workers.rollout import weight_transfer
from launch.config import OnPolicyStage
from launch.prepare import PreparedRun
from minirl.config.objective import SoftTargetsConfig
from minirl.config.stages import DistillConfig, GkdConfig, SftConfig
from minirl.config.student import LoraConfig

MIB = 2**20
RESPONSES_IN_FLIGHT = 512  # responses whose teacher states are on their way at once; a set may have many thousands
MOST_KEPT = 2048  # responses that an evaluation has room for; Ray keeps more on its disk


class Groups:
    """Starts groups for the stages of one prepared run; each method yields groups that run until its block ends.

    The Ray cluster is there from the first of them to the end of this object's own block: a run with nothing left to do needs none.
    """

    def __init__(self, prepared: PreparedRun):
        self.prepared, self.config = prepared, prepared.config
        self._cluster = ExitStack()

    def __enter__(self) -> "Groups":
        return self

    def __exit__(self, *error: Any) -> None:
        self._cluster.__exit__(*error)

    @cached_property
    def device(self) -> str:
        """Of the cluster, which is joined or started. Raises InputError where it cannot hold what the config says of it."""
        self._cluster.enter_context(cluster(logical_cpus(self.prepared), object_store_bytes(self.prepared)))
        device = device_of(self.config.cluster)
        weight_transfer(self.config.rollout, device)  # refuses at once, and not after the fine-tuning stages
        return device

    @contextmanager
    def learner(
        self, model: str, teachers: tuple[str, ...] | None, *, training: SftConfig, soft: SoftTargetsConfig | None, lora: LoraConfig | None
    ) -> Iterator[tuple[LearnerGroup, TeacherGroup | EnsembleGroup | None]]:
        """For learning from given responses, with the model's own dropout. teachers: whose distribution is learnt too, with `soft`."""
        setup = self._setup(model, teachers, training=training, soft=soft, dropout=True, lora=lora)
        scorers = self._teachers(teachers, 1.0) if teachers else []
        with _running(lambda: self._learner(setup), *scorers) as (learner, *scoring):
            yield learner, _as_one(scoring) if scoring else None

    @contextmanager
    def rollout(self, model: str) -> Iterator[RolloutGroup]:
        """The rollout group alone, sampling from any model at temperature 1."""
        with _running(lambda: self._rollout(model, None, 1.0)) as (rollout,):
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
    ) -> Iterator[tuple[RolloutGroup, TeacherGroup | EnsembleGroup, LearnerGroup]]:
        """Rollout, teacher and learner. on_policy None: nothing is learnt, and temperatures are 1. teacher_in_rollout: also where the
        mixture's share is 0. no_repeat_ngram: as of `RolloutWorker`.
        """
        sampling = self.config.rollout.temperature if on_policy else 1.0
        # Where nothing weighs the student's samples, the temperature that drew them is no part of what is learnt.
        temperature = sampling if on_policy and on_policy.soft is None else 1.0
        mixed = teachers[0] if teacher_in_rollout or (on_policy and on_policy.teacher_share > 0) else None
        shares = self._core_shares(on_policy.config if on_policy else None)
        settings = {} if on_policy is None else {
            "training": on_policy.config, "objective": on_policy.objective, "soft": on_policy.soft,
            "teacher_share": on_policy.teacher_share, "lora": self.config.student.lora,
        }  # fmt: skip
        with _running(
            lambda: self._rollout(student, mixed, sampling, shares.get("rollout"), no_repeat_ngram),
            lambda: self._learner(self._setup(student, teachers, temperature=temperature, **settings), shares.get("learner")),
            *self._teachers(teachers, temperature, shares.get("teacher")),
        ) as (rollout, learner, *scoring):
            yield rollout, _as_one(scoring), learner

    def _rollout(
        self, student: str, teacher: str | None, temperature: float, share: CoreShare | None = None, no_repeat_ngram: int = 0
    ) -> RolloutGroup:
        prepared = self.prepared
        return RolloutGroup(
            self.config.rollout,
            self.config.cluster,
            self.device,
            share=share,
            model=student,
            teacher=teacher,
            end_tokens=prepared.end_tokens,
            max_model_len=prepared.max_model_len,
            shared_vocabulary=prepared.vocabulary,
            temperature=temperature,
            no_repeat_ngram=no_repeat_ngram,
        )

    def _teachers(self, models: tuple[str, ...], temperature: float, share: CoreShare | None = None) -> list[Callable[[], TeacherGroup]]:
        """What starts the group of each."""
        config, prepared = self.config, self.prepared
        settings = {
            "cluster": config.cluster,
            "device": self.device,
            "share": share,
            "as_finished": config.teacher.score_as_finished and not config.deterministic,
            "max_model_len": max(prepared.max_model_len, config.corpus.block_tokens if config.corpus else 0),
            "shared_vocabulary": prepared.vocabulary,
            "temperature": temperature,
        }
        if len(models) == 1:
            return [partial(TeacherGroup, config.teacher, model=models[0], **settings)]
        return [
            partial(TeacherGroup, config.teacher, role=f"teacher {place}", model=model, place=place, teacher_id=member.id, **settings)
            for place, (model, member) in enumerate(zip(models, config.teacher.members, strict=True))
        ]

    def _learner(self, setup: LearnerSetup, share: CoreShare | None = None) -> LearnerGroup:
        return LearnerGroup(setup, self.config.cluster, share)

    def _core_shares(self, training: DistillConfig | None) -> dict[str, CoreShare]:
        """Nothing where the roles take turns, or where each has devices of its own, or where Ray spreads them over other machines."""
        config = self.config
        overlapping = training is not None and training.max_staleness > 0
        if not overlapping or self.device != "cpu" or os.environ.get("RAY_ADDRESS"):
            return {}
        roles = {"rollout": config.rollout, "teacher": config.teacher, "learner": config.learner}
        return divide_cores(config.cluster, roles, sorted(os.sched_getaffinity(0)))

    def _setup(
        self,
        model: str,
        teachers: tuple[str, ...] | None,
        **stage: Any,
    ) -> LearnerSetup:
        """stage: what else of `LearnerSetup` the stage sets."""
        config = self.config
        several = {} if not teachers or len(teachers) == 1 else {
            "teacher_weights": tuple(member.weight for member in config.teacher.members)
        }  # fmt: skip
        teacher = teachers if several or not teachers else teachers[0]
        return LearnerSetup(
            model=model, teacher=teacher, **several, vocabulary=self.prepared.vocabulary, config=config.learner, device=self.device,
            threads=1, seed=config.seed, teacher_dtype=config.teacher.dtype, behavior_dtype=config.rollout.dtype,
            deterministic=config.deterministic, **stage,
        )  # fmt: skip


def _as_one(scoring: list[TeacherGroup]) -> TeacherGroup | EnsembleGroup:
    return scoring[0] if len(scoring) == 1 else EnsembleGroup(scoring)


@contextmanager
def _running(*starts: Callable[[], Group]) -> Iterator[tuple[Group, ...]]:
    """Start groups side by side; whatever happens, none outlives the block."""
    with ExitStack() as stack:
        groups = []
        for start in starts:
            groups.append(start())
            stack.callback(groups[-1].stop)
        for group in groups:
            group.wait_started()
        yield tuple(groups)


def logical_cpus(prepared: PreparedRun) -> int:
    """CPUs for Ray's bookkeeping, when the run starts a cluster of its own: what the three groups reserve."""
    config = prepared.config
    roles = (config.rollout, config.learner, *[config.teacher] * len(prepared.teachers))
    return sum(role.workers * role.cpus_per_worker for role in roles)


def object_store_bytes(prepared: PreparedRun) -> int:
    """Room for the teacher states of the largest stage and the versions of the weights between its groups, with a margin."""
    config, longest, versions = prepared.config, prepared.max_model_len, 3
    tokens, stages = [0], config.stages
    for stage in (stages.kd, stages.seqkd):
        if stage is not None and stage.soft is not None:
            tokens.append(2 * stage.sequences_per_update * longest + sum(len(e.sequence.tokens) for e in prepared.data.validation))
    for stage in filter(None, (stages.gkd, stages.opd, stages.distill)):
        given = longest * stage.gold_per_update if isinstance(stage, GkdConfig) else 0
        if config.corpus and config.objective.pretrain_kd_share > 0:
            given = config.corpus.blocks_per_update * config.corpus.block_tokens
        responses = stage.responses_per_iteration * config.data.max_response_tokens * (1 + stage.max_staleness)
        tokens.append(responses + given * stage.updates_per_iteration)
        versions = max(versions, 3 + stage.max_staleness)
    if stages.evaluate:
        responses = sum(len(one.examples) * (1 + stages.evaluate.exposure_bias * len(stages.evaluate.seeds)) for one in prepared.sets)
        tokens.append((min(responses, MOST_KEPT) + 2 * min(max(len(one.examples) for one in prepared.sets), RESPONSES_IN_FLIGHT)) * longest)
    payload = max(tokens) * (prepared.teacher_width * 4 + 64)
    return int(1.25 * payload + versions * prepared.student_bytes + 256 * MIB)
