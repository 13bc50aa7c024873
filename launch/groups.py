"""The groups of a run: what each is told, started side by side, gone when their block ends; and the room that they need."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from actors.config import LearnerSetup
from actors.placement import CoreShare, at_once
from actors.roles import LearnerGroup, RolloutGroup, TeacherGroup
from launch.prepare import Prepared
from minirl.config import DistillConfig, ObjectiveConfig, OptimizerStageConfig, SftConfig

MIB = 2**20


class Groups:
    """Starts groups for the stages of one prepared run, on `device`."""

    def __init__(self, prepared: Prepared, device: str):
        self.prepared, self.config, self.device = prepared, prepared.config, device

    @contextmanager
    def learner(self, model: str, training: SftConfig) -> Iterator[LearnerGroup]:
        """The learner alone, for supervised fine-tuning, with the model's own dropout."""
        learner = LearnerGroup(self._setup(model, None, training=training, dropout=True), self.config.cluster)
        try:
            learner.wait_started()
            yield learner
        finally:
            learner.stop()

    @contextmanager
    def all(
        self,
        student: str,
        teacher: str,
        *,
        training: OptimizerStageConfig | None = None,
        teacher_in_rollout: bool = False,
        temperature: float | None = None,
    ) -> Iterator[tuple[RolloutGroup, TeacherGroup, LearnerGroup]]:
        """Rollout, teacher and learner. training None: nothing is learnt. teacher_in_rollout: also where the mixture's share is 0."""
        config, prepared = self.config, self.prepared
        temperature = temperature or config.rollout.temperature
        engine = {"max_model_len": prepared.max_model_len, "shared_vocabulary": prepared.vocabulary, "temperature": temperature}
        scored = engine | {"max_model_len": max(prepared.max_model_len, config.corpus.block_tokens if config.corpus else 0)}
        mixed = teacher if teacher_in_rollout or config.rollout.teacher_share > 0 else None
        objective = config.objective if training else None
        where = {"cluster": config.cluster, "device": self.device}
        shares = self._core_shares(training)
        with ExitStack() as started:

            def start(group):
                started.callback(group.stop)
                return group

            groups = (
                start(
                    RolloutGroup(
                        config.rollout,
                        **where,
                        share=shares.get("rollout"),
                        model=student,
                        teacher=mixed,
                        end_tokens=prepared.end_tokens,
                        **engine,
                    )
                ),
                start(
                    TeacherGroup(
                        config.teacher,
                        **where,
                        share=shares.get("teacher"),
                        as_finished=config.teacher.score_as_finished and not config.deterministic,
                        model=teacher,
                        **scored,
                    )
                ),
                start(
                    LearnerGroup(
                        self._setup(student, teacher, training=training, objective=objective, temperature=temperature),
                        config.cluster,
                        shares.get("learner"),
                    )
                ),
            )
            for group in groups:
                group.wait_started()
            yield groups

    def _core_shares(self, training: OptimizerStageConfig | None) -> dict[str, CoreShare]:
        """Nothing where the roles take turns, or where each has devices of its own, or where Ray spreads them over other machines."""
        config = self.config
        overlapping = isinstance(training, DistillConfig) and training.max_staleness > 0
        if not overlapping or self.device != "cpu" or os.environ.get("RAY_ADDRESS"):
            return {}
        roles = {"rollout": config.rollout, "teacher": config.teacher, "learner": config.learner}
        return at_once(config.cluster, roles, sorted(os.sched_getaffinity(0)))

    def _setup(
        self,
        model: str,
        teacher: str | None,
        *,
        training: OptimizerStageConfig | None = None,
        objective: ObjectiveConfig | None = None,
        dropout: bool = False,
        temperature: float = 1.0,
    ) -> LearnerSetup:
        config = self.config
        return LearnerSetup(
            model=model, teacher=teacher, vocabulary=self.prepared.vocabulary, config=config.learner, device=self.device, threads=1,
            seed=config.seed, training=training, objective=objective, temperature=temperature, teacher_share=config.rollout.teacher_share,
            teacher_dtype=config.teacher.dtype, behavior_dtype=config.rollout.dtype, dropout=dropout, deterministic=config.deterministic,
        )  # fmt: skip


def logical_cpus(prepared: Prepared) -> int:
    """CPUs for Ray's bookkeeping, when the run starts a cluster of its own: what the three groups reserve."""
    config = prepared.config
    return sum(role.workers * role.cpus_per_worker for role in (config.rollout, config.teacher, config.learner))


def object_store_bytes(prepared: Prepared) -> int:
    """Room for the teacher states of the iterations under way and the versions of the weights between them, with a margin."""
    config, tokens, versions = prepared.config, 0, 3
    if distill := config.stages.distill:
        tokens = distill.responses_per_iteration * config.data.max_response_tokens * (1 + distill.max_staleness)
        versions += distill.max_staleness
        if config.corpus and config.objective.pretrain_kd_share > 0:
            tokens += config.corpus.blocks_per_update * config.corpus.block_tokens * distill.updates_per_iteration
    if evaluate := config.stages.evaluate:
        tokens = max(tokens, 2 * evaluate.prompts * prepared.max_model_len)
    payload = tokens * (prepared.teacher_width * 4 + 64)
    return int(1.25 * payload + versions * prepared.student_bytes + 256 * MIB)
