"""Runs the stages of a config one after the other; each resumes where it stopped."""

from collections.abc import Sequence

from actors.groups.publishing import make_publisher
from launch.config import STUDENT_STAGES, on_policy_stage
from launch.evaluation.evaluate import Evaluation
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from launch.run.on_policy import make_loop
from launch.run.stage import Stage
from launch.run.teacher_responses import TeacherResponses
from launch.run.validation import OnPolicyValidation
from minirl.data.examples import InstructionData
from minirl.files import file_sha256, write_json
from minirl.model.loading import fingerprint
from minirl.training.supervised_loop import SupervisedLoop
from minirl.types import TokenSequence


class Recipe:
    """`run` does the stages of the config in order. Each starts from the student that the stage before it left."""

    def __init__(self, prepared: PreparedRun, observer: Observer):
        self.prepared, self.config, self.observer = prepared, prepared.config, observer
        self.teachers, self.student = prepared.teachers, prepared.student

    def run(self) -> None:
        runners = {
            "sft_teacher": self.sft_teacher,
            "sft": self.sft_or_kd,
            "kd": self.sft_or_kd,
            "seqkd": self.seqkd,
            "gkd": self.on_policy,
            "opd": self.on_policy,
            "distill": self.on_policy,
            "task_sft": self.task_sft,
            "evaluate": self.evaluate,
        }
        with Groups(self.prepared) as self.groups:
            for name in self.config.stages.in_order():
                runners[name](name)

    def sft_teacher(self, name: str) -> None:
        self.teachers = (self._train_supervised(name, self.teachers[0], self.prepared.data),)

    def sft_or_kd(self, name: str) -> None:
        self.student = self._train_supervised(name, self.student, self.prepared.data)

    def seqkd(self, name: str) -> None:
        responses = TeacherResponses(self.prepared, self.config.stages.seqkd, self.teachers, self.prepared.directory / name)
        responses.sample_missing(self.groups, self.observer)
        train, data_sha256 = responses.sequences(), file_sha256(responses.responses_file)
        self.student = self._train_supervised(name, self.student, self.prepared.data, train=train, data_sha256=data_sha256)

    def task_sft(self, name: str) -> None:
        data, watched = self.prepared.task_data, self.prepared.watched_sequences
        self.student = self._train_supervised(name, self.student, data, watched=watched, data_sha256=data.training_sha256)

    def evaluate(self, name: str) -> None:
        rows = Evaluation(self.prepared, self.groups, self.observer, self.teachers, self._evaluated_models()).run()
        write_json(self.prepared.directory / "summary.json", rows)

    def _train_supervised(
        self,
        name: str,
        model: str,
        data: InstructionData,
        *,
        train: list[TokenSequence] | None = None,
        watched: Sequence[TokenSequence] = (),
        data_sha256: str | None = None,
    ) -> str:
        """Trains `model` on fixed responses. Returns the model directory with the lowest validation loss.

        train: sequences that replace those of `data.train`. watched: sequences on which the KL to the teacher is measured. data_sha256: of
        the training data if it may change between starts of the same run.
        """
        config = getattr(self.config.stages, name)
        soft = getattr(config, "soft", None)
        started_from = [fingerprint(model), *(map(fingerprint, self.teachers) if soft else []), *([data_sha256] if data_sha256 else [])]
        roles = ("teacher", "learner") if soft else ("learner",)  # the KL of `watched` sequences is only logged
        stage = Stage(self.prepared, self.observer, name, "update", " ".join(started_from), roles)
        loop = SupervisedLoop(
            config,
            name=name,
            train=[example.sequence for example in data.train] if train is None else train,
            validation=[example.sequence for example in data.validation],
            watched=watched,
            seed=self.config.seed,
            metrics=stage.metrics,
        )
        best = str(stage.student_directory("best"))
        if not stage.resume(loop):
            return best
        teachers = self.teachers if soft or watched else None
        stage.doing("starting the " + ("teacher and learner groups" if teachers else "learner group"))
        lora = self.config.student.lora if name in STUDENT_STAGES else None
        with self.groups.learner(model, teachers, training=config, soft=soft, lora=lora) as (learner, teacher):
            stage.start(learner)
            loop.connect(learner, teacher if soft else None, watched_teacher=None if soft else teacher)
            with stage.checkpoint_when_interrupted():
                for progress in loop.run():
                    if progress.is_best:
                        learner.export(model, best)
                    stage.checkpoint()
        return best

    def on_policy(self, name: str) -> None:
        """Leaves two students: `best` has the best validation by `select_by`, `last` is the final one."""
        settings = on_policy_stage(self.config, name)
        config = settings.config
        started_from = " ".join(map(fingerprint, (self.student, *self.teachers)))
        stage = Stage(self.prepared, self.observer, name, "iteration", started_from, ("rollout", "teacher", "learner"))
        loop = make_loop(self.prepared, settings, stage.metrics)
        source, self.student = self.student, str(stage.student_directory(config.leaves))
        if not stage.resume(loop):
            return
        stage.doing(f"starting the rollout{', teacher' if settings.needs_teacher_group else ''} and learner groups")
        with self.groups.rollout_teacher_learner(source, self.teachers, on_policy=settings) as (rollout, teacher, learner):
            loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
            stage.start(learner)
            validation = OnPolicyValidation(self.prepared, config, (rollout, None if loop.scores_from_sampling else teacher, learner))
            with stage.checkpoint_when_interrupted(keep=config.keep_checkpoints):
                for progress in loop.run():
                    if loop.finished or progress.iteration % config.validate_every == 0:
                        self._validate(stage, validation, source)
                    if loop.finished:
                        learner.export(source, str(stage.student_directory("last")))
                    if loop.finished or progress.iteration % config.checkpoint_every == 0:
                        stage.doing("checkpoint")
                        stage.checkpoint(keep=config.keep_checkpoints)

    def _validate(self, stage: Stage, validation: OnPolicyValidation, source: str) -> None:
        """Logs the validation's metrics, and exports the student to `best` if it is the best so far."""
        progress, select_by = stage.loop.progress, stage.loop.config.select_by
        stage.doing("validate")
        metrics = validation.measure(progress.weight_version)
        stage.metrics.write(progress.iteration - 1, {f"eval/{name}": value for name, value in metrics.items()})
        if progress.add_validation(progress.iteration, metrics, select_by):
            stage.learner.export(source, str(stage.student_directory("best")))
        if (warning := progress.selection_warning(select_by)) and (stage.loop.finished or progress.validations == 2):
            self.observer.warn(stage.name, warning)

    def _evaluated_models(self) -> dict[str, str]:
        """Row of the closing table -> model directory."""
        students = {name: str(self.prepared.directory / path) for name, path in self.config.stages.student_directories().items()}
        teacher = {"teacher": self.teachers[0]} if len(self.teachers) == 1 else {}  # no engine samples from an average of teachers
        return teacher | {"student_init": self.prepared.student} | students
