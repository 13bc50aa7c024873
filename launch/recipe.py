"""The stages of a run, one after the other, each going on where it stopped."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from actors.config import LearnerSetup
from actors.placement import cluster, device_of
from actors.publishing import publish
from actors.roles import LearnerGroup, RolloutGroup, TeacherGroup
from actors.rollout import weight_transfer
from launch.prepare import Prepared
from minirl import checkpoint
from minirl.config import ObjectiveConfig, OptimizerStageConfig, SftConfig
from minirl.driver import Driver, Sampled, sampling_requests
from minirl.errors import InputError
from minirl.evaluation.table import Judged, row_of
from minirl.evaluation.text import rouge_l
from minirl.metrics import MetricsLog, Record
from minirl.prompts import Example
from minirl.rollout import Rollout
from minirl.sft import SftDriver
from minirl.update import SupervisedItem

MIB = 2**20


class Watcher(Protocol):
    """Who is told how the run goes: every record, what is being done, and how far a stage is when it begins."""

    def record(self, record: Record) -> None: ...
    def doing(self, stage: str, what: str) -> None: ...
    def total_of(self, stage: str, total: int, done: int) -> None: ...


class Recipe:
    """`run` takes the stages that the config names, in order; each leaves its student in `<directory>/<stage>/best`."""

    def __init__(self, prepared: Prepared, watcher: Watcher):
        self.prepared, self.config, self.directory, self.watcher = prepared, prepared.config, prepared.directory, watcher
        self.teacher, self.student = prepared.teacher, prepared.student

    def run(self) -> None:
        stages = self.config.stages
        with cluster(self._logical_cpus(), self._object_store_bytes()):
            self.device = device_of(self.config.cluster)
            weight_transfer(self.config.rollout, self.device)  # refuses at once, and not after the fine-tuning stages
            if stages.sft_teacher:
                self.teacher = self.sft("sft_teacher", stages.sft_teacher, self.teacher)
            if stages.sft:
                self.student = self.sft("sft", stages.sft, self.student)
            if stages.distill:
                self.distill()
            if stages.evaluate:
                self.evaluate()

    def sft(self, stage: str, config: SftConfig, model: str) -> str:
        """Fine-tune `model`; returns the directory of the checkpoint with the lowest validation loss."""
        directory, data = self.directory / stage, self.prepared.data
        best = directory / "best"
        metrics = MetricsLog(self.directory / "metrics.jsonl", stage, "update", listener=self.watcher.record)
        found = checkpoint.latest(directory / "checkpoints")
        train, validation = ([example.sequence for example in examples] for examples in (data.train, data.validation))
        driver = SftDriver(config, learner=None, train=train, validation=validation, seed=self.config.seed, metrics=metrics)
        if found:
            self._load_state(driver, found[1])
            if driver.progress.updates >= driver.total_updates:
                return str(best)
        metrics.resume_at(driver.progress.updates)
        self.watcher.total_of(stage, driver.total_updates, driver.progress.updates)
        driver.watch.listener = lambda verb: self.watcher.doing(stage, verb)
        with self._learner(stage, model, training=config, dropout=True) as learner:
            driver.learner = learner
            if found:
                learner.load(str(found[0]))
            for progress in driver.run():
                if progress.is_best:
                    learner.export(model, str(best))
                self._checkpoint(directory, progress.updates, driver, learner, keep=1)
        return str(best)

    def distill(self) -> None:
        """On-policy distillation; `best` is the student with the highest validation Rouge-L, `last` the final one."""
        config, prepared, directory = self.config.stages.distill, self.prepared, self.directory / "distill"
        metrics = MetricsLog(self.directory / "metrics.jsonl", "distill", "iteration", listener=self.watcher.record)
        driver = Driver(
            config,
            self.config.objective,
            prompts=[example.prompt for example in prepared.data.train],
            corpus=prepared.corpus,
            blocks_per_update=self.config.corpus.blocks_per_update if self.config.corpus else 0,
            max_response_tokens=self.config.data.max_response_tokens,
            teacher_share=self.config.rollout.teacher_share,
            seed=self.config.seed,
            metrics=metrics,
        )
        driver.watch.listener = lambda verb: self.watcher.doing("distill", verb)
        found = checkpoint.latest(directory / "checkpoints")
        if found:
            self._load_state(driver, found[1])
            if driver.progress.iteration >= config.iterations:
                return
        metrics.resume_at(driver.progress.iteration)
        self.watcher.total_of("distill", config.iterations, driver.progress.iteration)
        with self._groups("distill", self.student, training=config) as (rollout, teacher, learner):
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
                    self._checkpoint(directory, progress.iteration, driver, learner, keep=config.keep_checkpoints)

    def evaluate(self) -> None:
        """The closing table: every model of the run, on held-out prompts, by its own samples."""
        config, prepared, directory = self.config.stages.evaluate, self.prepared, self.directory / "evaluate"
        models = self._models()
        wanted = {name: {"settings": config.model_dump(), "weights": _fingerprint(path)} for name, path in models.items()}
        missing = [name for name in models if not _is_row(directory / f"{name}.json", wanted[name])]
        if missing:
            examples = [example for example in prepared.data.test if example.prompt.references][: config.prompts]
            with self._groups("evaluate", self.student, teacher_in_rollout=True, temperature=1.0) as groups:
                gold = self._score_gold(examples, groups[1])
                self.watcher.total_of("evaluate", 0, 0)
                for version, name in enumerate(missing, start=1):
                    self.watcher.doing("evaluate", name)
                    row = self._row(name, models[name], version, examples, gold, groups)
                    checkpoint.write_json(_made(directory) / f"{name}.json", wanted[name] | {"row": row})
        rows = {name: json.loads((directory / f"{name}.json").read_text())["row"] for name in models}
        checkpoint.write_json(self.directory / "summary.json", rows)

    def _models(self) -> dict[str, str]:
        stages = {"sft": self.directory / "sft" / "best", "distill": self.directory / "distill" / self.config.stages.evaluate.distilled}
        trained = {name: str(path) for name, path in stages.items() if getattr(self.config.stages, name)}
        return {"teacher": self.teacher, "student_init": self.prepared.student} | trained

    def _row(self, name: str, path: str, version: int, examples: list[Example], gold: list[SupervisedItem], groups: tuple) -> dict:
        rollout, teacher, learner = groups
        learner.load_model(path)
        share, version = (1.0, 0) if name == "teacher" else (0.0, version)  # the teacher comes first, before anything is published
        if name != "teacher":
            publish(learner, rollout, version)
        texts, rollouts, divergences = [], [], []
        for seed in self.config.stages.evaluate.seeds:
            sampled = self._sample(rollout, examples, seed, share, version)
            tokens = [s.summary.tokens for s in sampled]
            scores = teacher.score([s.rollout for s in sampled], tokens)
            rollouts.append(rollout.fetch(sampled))
            items = [SupervisedItem(r.sequence, score) for r, score in zip(rollouts[-1], scores, strict=True)]
            divergences.append(learner.divergences(items, tokens))
            texts.append(self._texts(rollouts[-1]))
        judged = Judged(texts, rollouts, divergences, learner.divergences(gold, [len(item.sequence.tokens) for item in gold]))
        self._write_samples(name, examples, texts[0])
        return row_of(judged, [example.prompt.references for example in examples])

    def _score_gold(self, examples: list[Example], teacher: TeacherGroup) -> list[SupervisedItem]:
        sequences = [example.sequence for example in examples if example.sequence.targets]
        scores = teacher.score(sequences, [len(s.tokens) for s in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def _validate(self, driver: Driver, rollout: RolloutGroup, learner: LearnerGroup, directory: Path, metrics: MetricsLog) -> None:
        progress, config = driver.progress, self.config.stages.distill
        self.watcher.doing("distill", "validate")
        examples = [example for example in self.prepared.data.validation if example.prompt.references][: config.validation_prompts]
        sampled = self._sample(rollout, examples, self.config.seed, 0.0, progress.weight_version)
        texts = self._texts(rollout.fetch(sampled))
        score = sum(rouge_l(text, e.prompt.references) for text, e in zip(texts, examples, strict=True)) / len(examples)
        metrics.write(progress.iteration - 1, {"eval/rouge_l": score})
        if progress.best_rouge_l is None or score > progress.best_rouge_l:
            progress.best_rouge_l, progress.best_iteration = score, progress.iteration
            learner.export(self.student, str(directory / "best"))

    def _sample(self, rollout: RolloutGroup, examples: list[Example], seed: int, teacher_share: float, version: int) -> list[Sampled]:
        return rollout.sample(
            sampling_requests([example.prompt for example in examples], 1, seed, 0),
            teacher_share=teacher_share,
            max_response_tokens=self.config.data.max_response_tokens,
            weight_version=version,
        )

    def _texts(self, rollouts: list[Rollout]) -> list[str]:
        return self.prepared.tokenizer.batch_decode([rollout.response_tokens for rollout in rollouts], skip_special_tokens=True)

    def _write_samples(self, name: str, examples: list[Example], texts: list[str]) -> None:
        prompts = self.prepared.tokenizer.batch_decode([example.prompt.tokens for example in examples])
        with (_made(self.directory / "evaluate") / f"{name}.samples.jsonl").open("w") as file:
            for prompt, text, example in zip(prompts, texts, examples, strict=True):
                file.write(json.dumps({"prompt": prompt, "response": text, "references": example.prompt.references}) + "\n")

    def _checkpoint(self, directory: Path, number: int, driver: Driver | SftDriver, learner: LearnerGroup, *, keep: int) -> None:
        layout = {"workers": self.config.learner.workers, "zero_stage": self.config.learner.zero_stage}
        state = {"driver": driver.state_dict(), "learner": layout}
        checkpoint.write(directory / "checkpoints", number, state, learner.save, keep=keep)

    def _load_state(self, driver: Driver | SftDriver, state: dict) -> None:
        for key, value in state["learner"].items():
            if getattr(self.config.learner, key) != value:
                raise InputError(f"the checkpoint was written with learner.{key} = {value}; set that to go on, or give another directory")
        driver.load_state_dict(state["driver"])

    @contextmanager
    def _learner(self, stage: str, model: str, *, training: OptimizerStageConfig, dropout: bool) -> Iterator[LearnerGroup]:
        self.watcher.doing(stage, "starting the learner group")
        learner = LearnerGroup(self._setup(model, None, training, None, dropout), self.config.cluster)
        try:
            learner.wait_started()
            yield learner
        finally:
            learner.stop()

    @contextmanager
    def _groups(
        self,
        stage: str,
        student: str,
        *,
        training: OptimizerStageConfig | None = None,
        teacher_in_rollout: bool = False,
        temperature: float | None = None,
    ) -> Iterator[tuple[RolloutGroup, TeacherGroup, LearnerGroup]]:
        """All three groups, started side by side, gone when the block ends."""
        config, prepared = self.config, self.prepared
        temperature = temperature or config.rollout.temperature
        engine = {"max_model_len": prepared.max_model_len, "shared_vocabulary": prepared.vocabulary, "temperature": temperature}
        scored = engine | {"max_model_len": max(prepared.max_model_len, config.corpus.block_tokens if config.corpus else 0)}
        mixed = self.teacher if teacher_in_rollout or config.rollout.teacher_share > 0 else None
        objective = config.objective if training else None
        self.watcher.doing(stage, "starting the rollout, teacher and learner groups")
        with ExitStack() as started:

            def start(group):
                started.callback(group.stop)
                return group

            where = {"cluster": config.cluster, "device": self.device}
            rollout = start(RolloutGroup(config.rollout, **where, model=student, teacher=mixed, end_tokens=prepared.end_tokens, **engine))
            teacher = start(TeacherGroup(config.teacher, **where, model=self.teacher, **scored))
            learner = start(LearnerGroup(self._setup(student, self.teacher, training, objective, False, temperature), config.cluster))
            for group in (rollout, teacher, learner):
                group.wait_started()
            yield rollout, teacher, learner

    def _setup(
        self,
        model: str,
        teacher: str | None,
        training: OptimizerStageConfig | None,
        objective: ObjectiveConfig | None,
        dropout: bool,
        temperature: float = 1.0,
    ) -> LearnerSetup:
        config = self.config
        return LearnerSetup(
            model=model, teacher=teacher, vocabulary=self.prepared.vocabulary, config=config.learner, device=self.device, threads=1,
            seed=config.seed, training=training, objective=objective, temperature=temperature, teacher_share=config.rollout.teacher_share,
            teacher_dtype=config.teacher.dtype, behavior_dtype=config.rollout.dtype, dropout=dropout, deterministic=config.deterministic,
        )  # fmt: skip

    def _logical_cpus(self) -> int:
        config = self.config
        return sum(role.workers * role.cpus_per_worker for role in (config.rollout, config.teacher, config.learner))

    def _object_store_bytes(self) -> int:
        """Room for one iteration's teacher states and two versions of the weights, with a margin."""
        config, tokens = self.config, 0
        if distill := config.stages.distill:
            tokens = distill.responses_per_iteration * config.data.max_response_tokens
            if config.corpus and config.objective.pretrain_kd_share > 0:
                tokens += config.corpus.blocks_per_update * config.corpus.block_tokens * distill.updates_per_iteration
        if evaluate := config.stages.evaluate:
            tokens = max(tokens, 2 * evaluate.prompts * self.prepared.max_model_len)
        payload = tokens * (self.prepared.teacher_width * 4 + 64)
        return int(1.25 * payload + 3 * self.prepared.student_bytes + 256 * MIB)


def _fingerprint(path: str) -> list:
    return sorted([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in Path(path).glob("*.safetensors"))


def _is_row(path: Path, wanted: dict) -> bool:
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    return all(found.get(key) == value for key, value in wanted.items())


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
