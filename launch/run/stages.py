"""Runs the stages of a config one after the other; each resumes where it stopped."""

from functools import partial

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
from minirl.config.objective import SoftTargetsConfig
from minirl.config.stages import SftConfig
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
        stages = self.config.stages
        with Groups(self.prepared) as self.groups:
            supervised = {"sft_teacher": self.sft_teacher, "sft": self.sft, "kd": self.kd, "seqkd": self.seqkd}
            for name in ("sft_teacher", *STUDENT_STAGES):
                if getattr(stages, name):
                    supervised.get(name, partial(self.on_policy, name))()
            if stages.evaluate:
                rows = Evaluation(self.prepared, self.groups, self.observer, self.teachers, self._evaluated_models()).run()
                write_json(self.prepared.directory / "summary.json", rows)

    def sft_teacher(self) -> None:
        self.teachers = (self._train_supervised("sft_teacher", self.config.stages.sft_teacher, self.teachers[0], self._gold_sequences()),)

    def sft(self) -> None:
        self.student = self._train_supervised("sft", self.config.stages.sft, self.student, self._gold_sequences())

    def kd(self) -> None:
        config = self.config.stages.kd
        self.student = self._train_supervised("kd", config, self.student, self._gold_sequences(), soft=config.soft)

    def seqkd(self) -> None:
        config = self.config.stages.seqkd
        responses = TeacherResponses(self.prepared, config, self.teachers, self.prepared.directory / "seqkd")
        responses.sample_missing(self.groups, self.observer)
        self.student = self._train_supervised(
            "seqkd", config, self.student, responses.sequences(), soft=config.soft, data=file_sha256(responses.responses_file)
        )

    def _gold_sequences(self) -> list[TokenSequence]:
        return [example.sequence for example in self.prepared.data.train]

    def _train_supervised(
        self, name: str, config: SftConfig, model: str, train: list[TokenSequence], *, soft: SoftTargetsConfig | None = None, data: str = ""
    ) -> str:
        """Trains `model` on fixed responses. Returns the model directory with the lowest validation loss.

        data: fingerprint of `train` if it may change between starts of the same run.
        """
        started_from = " ".join([fingerprint(model), *(map(fingerprint, self.teachers) if soft else []), *([data] if data else [])])
        stage = Stage(self.prepared, self.observer, name, "update", started_from)
        validation = [example.sequence for example in self.prepared.data.validation]
        loop = SupervisedLoop(config, name=name, train=train, validation=validation, seed=self.config.seed, metrics=stage.metrics)
        best = str(stage.student_directory("best"))
        if not stage.resume(loop):
            return best
        stage.doing("starting the " + ("teacher and learner groups" if soft else "learner group"))
        lora = self.config.student.lora if name in STUDENT_STAGES else None
        teachers = self.teachers if soft else None
        with self.groups.learner(model, teachers, training=config, soft=soft, lora=lora) as (learner, teacher):
            stage.start(learner)
            loop.connect(learner, teacher)
            for progress in loop.run():
                if progress.is_best:
                    learner.export(model, best)
                stage.checkpoint()
        return best

    def on_policy(self, name: str) -> None:
        """Leaves two students: `best` has the best validation by `select_by`, `last` is the final one."""
        settings = on_policy_stage(self.config, name)
        config = settings.config
        stage = Stage(self.prepared, self.observer, name, "iteration", " ".join(map(fingerprint, (self.student, *self.teachers))))
        loop = make_loop(self.prepared, settings, stage.metrics)
        source, self.student = self.student, str(stage.student_directory(config.leaves))
        if not stage.resume(loop):
            return
        stage.doing("starting the rollout, teacher and learner groups")
        with self.groups.rollout_teacher_learner(source, self.teachers, on_policy=settings) as (rollout, teacher, learner):
            loop.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
            stage.start(learner)
            validation = OnPolicyValidation(self.prepared, config, (rollout, teacher, learner))
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
