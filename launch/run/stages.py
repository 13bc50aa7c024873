"""The stages of a run, one after the other, each going on where it stopped."""

from functools import partial

from actors.groups.publishing import make_publisher
from actors.groups.rollout_group import RolloutGroup
from launch.config import STUDENT_STAGES, on_policy_stage
from launch.evaluation.evaluate import Evaluation
from launch.evaluation.measure_model import sample, texts_of, with_references
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from launch.run.on_policy import make_driver
from launch.run.stage import Stage
from launch.run.teacher_responses import TeacherResponses
from minirl.config.objective import SoftTargetsConfig
from minirl.config.stages import SftConfig
from minirl.evaluation.text import rouge_l
from minirl.files import digest, write_json
from minirl.model.loading import fingerprint
from minirl.training.supervised_loop import SupervisedLoop
from minirl.types import TokenSequence


class Recipe:
    """`run` takes the stages that the config names, in order; each goes on from the student that the one before it left."""

    def __init__(self, prepared: PreparedRun, observer: Observer):
        self.prepared, self.config, self.observer = prepared, prepared.config, observer
        self.teachers, self.student = prepared.teachers, prepared.student

    def run(self) -> None:
        stages = self.config.stages
        with Groups(self.prepared) as self.groups:
            given = {"sft_teacher": self.sft_teacher, "sft": self.sft, "kd": self.kd, "seqkd": self.seqkd}
            for name in ("sft_teacher", *STUDENT_STAGES):
                if getattr(stages, name):
                    given.get(name, partial(self.on_policy, name))()
            if stages.evaluate:
                rows = Evaluation(self.prepared, self.groups, self.observer, self.teachers, self._models()).run()
                write_json(self.prepared.directory / "summary.json", rows)

    def sft_teacher(self) -> None:
        self.teachers = (self._supervised("sft_teacher", self.config.stages.sft_teacher, self.teachers[0], self._gold()),)

    def sft(self) -> None:
        self.student = self._supervised("sft", self.config.stages.sft, self.student, self._gold())

    def kd(self) -> None:
        config = self.config.stages.kd
        self.student = self._supervised("kd", config, self.student, self._gold(), soft=config.soft)

    def seqkd(self) -> None:
        config = self.config.stages.seqkd
        written = TeacherResponses(self.prepared, config, self.teachers, self.prepared.directory / "seqkd")
        written.make(self.groups, self.observer)
        self.student = self._supervised("seqkd", config, self.student, written.sequences(), soft=config.soft, data=digest(written.rows))

    def _gold(self) -> list[TokenSequence]:
        return [example.sequence for example in self.prepared.data.train]

    def _supervised(
        self, name: str, config: SftConfig, model: str, train: list[TokenSequence], *, soft: SoftTargetsConfig | None = None, data: str = ""
    ) -> str:
        """Train `model` on given responses; returns the directory of the checkpoint with the lowest validation loss."""
        started_from = " ".join([fingerprint(model), *(map(fingerprint, self.teachers) if soft else []), *([data] if data else [])])
        stage = Stage(self.prepared, self.observer, name, "update", started_from)
        validation = [example.sequence for example in self.prepared.data.validation]
        driver = SupervisedLoop(config, name=name, train=train, validation=validation, seed=self.config.seed, metrics=stage.metrics)
        best = str(stage.student("best"))
        if not stage.resume(driver):
            return best
        stage.doing("starting the " + ("teacher and learner groups" if soft else "learner group"))
        lora = self.config.student.lora if name in STUDENT_STAGES else None
        teachers = self.teachers if soft else None
        with self.groups.learner(model, teachers, training=config, soft=soft, lora=lora) as (learner, teacher):
            stage.start(learner)
            driver.connect(learner, teacher)
            for progress in driver.run():
                if progress.is_best:
                    learner.export(model, best)
                stage.checkpoint()
        return best

    def on_policy(self, name: str) -> None:
        """`best` is the student with the highest validation Rouge-L, `last` the final one."""
        kind = on_policy_stage(self.config, name)
        config = kind.config
        stage = Stage(self.prepared, self.observer, name, "iteration", " ".join(map(fingerprint, (self.student, *self.teachers))))
        driver = make_driver(self.prepared, kind, stage.metrics)
        source, self.student = self.student, str(stage.student(config.leaves))
        if not stage.resume(driver):
            return
        stage.doing("starting the rollout, teacher and learner groups")
        with self.groups.rollout_teacher_learner(source, self.teachers, on_policy=kind) as (rollout, teacher, learner):
            driver.connect(rollout, teacher, learner, publish=make_publisher(learner, rollout).publish)
            stage.start(learner)
            for progress in driver.run():
                if driver.finished or progress.iteration % config.validate_every == 0:
                    self._validate(stage, rollout, source)
                if driver.finished:
                    learner.export(source, str(stage.student("last")))
                if driver.finished or progress.iteration % config.checkpoint_every == 0:
                    stage.doing("checkpoint")
                    stage.checkpoint(keep=config.keep_checkpoints)

    def _validate(self, stage: Stage, rollout: RolloutGroup, source: str) -> None:
        progress, config = stage.driver.progress, stage.driver.config
        stage.doing("validate")
        examples = with_references(self.prepared.data.validation)[: config.validation_prompts]
        version = progress.weight_version
        sampled = sample(self.prepared, rollout, examples, seed=self.config.seed, teacher_share=0.0, weight_version=version)
        texts = texts_of(self.prepared, rollout.fetch(sampled))
        score = sum(rouge_l(text, e.prompt.references) for text, e in zip(texts, examples, strict=True)) / len(examples)
        stage.metrics.write(progress.iteration - 1, {"eval/rouge_l": score})
        if progress.best_rouge_l is None or score > progress.best_rouge_l:
            progress.best_rouge_l, progress.best_iteration = score, progress.iteration
            stage.learner.export(source, str(stage.student("best")))

    def _models(self) -> dict[str, str]:
        """The rows of the closing table."""
        students = {name: str(self.prepared.directory / left) for name, left in self.config.stages.students().items()}
        teacher = {"teacher": self.teachers[0]} if len(self.teachers) == 1 else {}  # an average is sampled by no engine
        return teacher | {"student_init": self.prepared.student} | students
