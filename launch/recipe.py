"""The stages of a run, one after the other, each going on where it stopped."""

from functools import partial
from pathlib import Path

from actors.placement import cluster, device_of
from actors.publishing import publish
from actors.roles import LearnerGroup, RolloutGroup
from actors.rollout import weight_transfer
from launch.distillation import make_driver
from launch.evaluate import Evaluation, sample, texts_of, with_references
from launch.groups import Groups, logical_cpus, object_store_bytes
from launch.prepare import Prepared
from launch.watcher import Watcher
from minirl import checkpoint
from minirl.config import SftConfig
from minirl.driver import Driver
from minirl.errors import InputError
from minirl.evaluation.text import rouge_l
from minirl.metrics import MetricsLog
from minirl.models import fingerprint
from minirl.sft import SftDriver


class Recipe:
    """`run` takes the stages that the config names, in order; each leaves its student in `<directory>/<stage>/best`."""

    def __init__(self, prepared: Prepared, watcher: Watcher):
        self.prepared, self.config, self.directory, self.watcher = prepared, prepared.config, prepared.directory, watcher
        self.teacher, self.student = prepared.teacher, prepared.student

    def run(self) -> None:
        stages = self.config.stages
        with cluster(logical_cpus(self.prepared), object_store_bytes(self.prepared)):
            device = device_of(self.config.cluster)
            weight_transfer(self.config.rollout, device)  # refuses at once, and not after the fine-tuning stages
            self.groups = Groups(self.prepared, device)
            if stages.sft_teacher:
                self.teacher = self.sft("sft_teacher", stages.sft_teacher, self.teacher)
            if stages.sft:
                self.student = self.sft("sft", stages.sft, self.student)
            if stages.distill:
                self.distill()
            if stages.evaluate:
                Evaluation(self.prepared, self.groups, self.watcher, self._models()).run(self.student)

    def sft(self, stage: str, config: SftConfig, model: str) -> str:
        """Fine-tune `model`; returns the directory of the checkpoint with the lowest validation loss."""
        directory, data = self.directory / stage, self.prepared.data
        best, started_from = directory / "best", fingerprint(model)
        metrics = MetricsLog(self.directory / "metrics.jsonl", stage, "update", listener=self.watcher.record)
        found = checkpoint.latest(directory / "checkpoints")
        train, validation = ([example.sequence for example in examples] for examples in (data.train, data.validation))
        driver = SftDriver(config, learner=None, train=train, validation=validation, seed=self.config.seed, metrics=metrics)
        if found:
            self._load_state(stage, driver, found[1], started_from)
            if driver.progress.updates >= driver.total_updates:
                return str(best)
        metrics.resume_at(driver.progress.updates)
        self.watcher.total_of(stage, driver.total_updates, driver.progress.updates)
        driver.watch.listener = lambda verb: self.watcher.doing(stage, verb)
        self.watcher.doing(stage, "starting the learner group")
        with self.groups.learner(model, config) as learner:
            driver.learner = learner
            if found:
                learner.load(str(found[0]))
            for progress in driver.run():
                if progress.is_best:
                    learner.export(model, str(best))
                self._checkpoint(directory, progress.updates, driver, learner, started_from, keep=1)
        return str(best)

    def distill(self) -> None:
        """On-policy distillation; `best` is the student with the highest validation Rouge-L, `last` the final one."""
        config, prepared, directory = self.config.stages.distill, self.prepared, self.directory / "distill"
        started_from = f"{fingerprint(self.student)} {fingerprint(self.teacher)}"
        metrics = MetricsLog(self.directory / "metrics.jsonl", "distill", "iteration", listener=self.watcher.record)
        driver = make_driver(prepared, metrics)
        driver.watch.listener = lambda verb: self.watcher.doing("distill", verb)
        found = checkpoint.latest(directory / "checkpoints")
        if found:
            self._load_state("distill", driver, found[1], started_from)
            if driver.progress.iteration >= config.iterations:
                return
        metrics.resume_at(driver.progress.iteration)
        self.watcher.total_of("distill", config.iterations, driver.progress.iteration)
        self.watcher.doing("distill", "starting the rollout, teacher and learner groups")
        with self.groups.all(self.student, self.teacher, training=config) as (rollout, teacher, learner):
            driver.connect(rollout, teacher, learner, publish=partial(publish, learner, rollout))
            if found:
                learner.load(str(found[0]))
            for progress in driver.run():
                last = progress.iteration == config.iterations
                if last or progress.iteration % config.validate_every == 0:
                    self._validate(driver, rollout, learner, directory, metrics)
                if last:
                    learner.export(self.student, str(directory / "last"))
                if last or progress.iteration % config.checkpoint_every == 0:
                    self.watcher.doing("distill", "checkpoint")
                    self._checkpoint(directory, progress.iteration, driver, learner, started_from, keep=config.keep_checkpoints)

    def _models(self) -> dict[str, str]:
        """The rows of the closing table."""
        stages = {"sft": self.directory / "sft" / "best", "distill": self.directory / "distill" / self.config.stages.evaluate.distilled}
        trained = {name: str(path) for name, path in stages.items() if getattr(self.config.stages, name)}
        return {"teacher": self.teacher, "student_init": self.prepared.student} | trained

    def _validate(self, driver: Driver, rollout: RolloutGroup, learner: LearnerGroup, directory: Path, metrics: MetricsLog) -> None:
        progress, config = driver.progress, self.config.stages.distill
        self.watcher.doing("distill", "validate")
        examples = with_references(self.prepared.data.validation)[: config.validation_prompts]
        version = progress.weight_version
        sampled = sample(self.prepared, rollout, examples, seed=self.config.seed, teacher_share=0.0, weight_version=version)
        texts = texts_of(self.prepared, rollout.fetch(sampled))
        score = sum(rouge_l(text, e.prompt.references) for text, e in zip(texts, examples, strict=True)) / len(examples)
        metrics.write(progress.iteration - 1, {"eval/rouge_l": score})
        if progress.best_rouge_l is None or score > progress.best_rouge_l:
            progress.best_rouge_l, progress.best_iteration = score, progress.iteration
            learner.export(self.student, str(directory / "best"))

    def _checkpoint(
        self, directory: Path, number: int, driver: Driver | SftDriver, learner: LearnerGroup, started_from: str, *, keep: int
    ) -> None:
        layout = {"workers": self.config.learner.workers, "zero_stage": self.config.learner.zero_stage}
        state = {"driver": driver.state_dict(), "learner": layout, "started_from": started_from}
        checkpoint.write(directory / "checkpoints", number, state, learner.save, keep=keep)

    def _load_state(self, stage: str, driver: Driver | SftDriver, state: dict, started_from: str) -> None:
        if state["started_from"] != started_from:
            raise InputError(
                f"{self.directory / stage} goes on from other weights than the stage before it left; delete that directory to do the "
                "stage anew, or give another directory=..."
            )
        for key, value in state["learner"].items():
            if getattr(self.config.learner, key) != value:
                raise InputError(f"the checkpoint was written with learner.{key} = {value}; set that to go on, or give another directory")
        driver.load_state_dict(state["driver"])
