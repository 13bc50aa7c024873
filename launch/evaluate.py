"""The stage `evaluate`: every model of a run on held-out prompts, by its own samples, judged by the teacher; one row each."""

import json

from actors.publishing import publish
from actors.roles import LearnerGroup, RolloutGroup, TeacherGroup
from launch.groups import Groups
from launch.prepare import Prepared
from launch.watcher import Watcher
from minirl.checkpoint import write_json
from minirl.driver import sampling_requests
from minirl.evaluation.table import Judged, row_of
from minirl.models import fingerprint
from minirl.prompts import Example
from minirl.protocols import Sampled
from minirl.rollout import Rollout
from minirl.update import SupervisedItem

TEACHER = "teacher"


class Evaluation:
    """`models`: the directory of each row, the teacher's first, which is left out where there are several.

    A row that stands for these settings and weights is not made again.
    """

    def __init__(self, prepared: Prepared, groups: Groups, watcher: Watcher, teachers: tuple[str, ...], models: dict[str, str]):
        self.prepared, self.groups, self.watcher, self.teachers, self.models = prepared, groups, watcher, teachers, models
        self.config, self.directory = prepared.config.stages.evaluate, prepared.directory / "evaluate"
        self.examples = with_references(prepared.data.test)[: self.config.prompts]

    def run(self, student: str) -> None:
        """Write `evaluate/<model>.json` for every row, and `summary.json`. student: any directory of the student's shape."""
        self.directory.mkdir(parents=True, exist_ok=True)
        missing = [name for name in self.models if self._found(name) is None]
        if missing:
            self.watcher.total_of("evaluate", 0, 0)
            self.watcher.doing("evaluate", "starting the rollout, teacher and learner groups")
            with self.groups.all(student, self.teachers, teacher_in_rollout=TEACHER in missing) as (rollout, teacher, learner):
                gold = self._score_gold(teacher)
                for version, name in enumerate(missing, start=1):
                    self.watcher.doing("evaluate", name)
                    learner.load_model(self.models[name])
                    if name != TEACHER:
                        publish(learner, rollout, version).wait()
                    judged = self._judge(name, version, gold, rollout, teacher, learner)
                    row = row_of(judged, [example.prompt.references for example in self.examples])
                    write_json(self.directory / f"{name}.json", self._identity(name) | {"row": row})
        write_json(self.prepared.directory / "summary.json", {name: self._found(name) for name in self.models})

    def _judge(
        self, name: str, version: int, gold: list[SupervisedItem], rollout: RolloutGroup, teacher: TeacherGroup, learner: LearnerGroup
    ) -> Judged:
        texts, rollouts, divergences = [], [], []
        # The engines hold the teacher too: with a share of 1 they sample from it alone. Its row comes before anything is published.
        share, version = (1.0, 0) if name == TEACHER else (0.0, version)
        for seed in self.config.seeds:
            sampled = sample(self.prepared, rollout, self.examples, seed=seed, teacher_share=share, weight_version=version)
            tokens = [one.summary.tokens for one in sampled]
            scores = teacher.score([one.rollout for one in sampled], tokens)
            rollouts.append(rollout.fetch(sampled))
            items = [SupervisedItem(one.sequence, score) for one, score in zip(rollouts[-1], scores, strict=True)]
            divergences.append(learner.divergences(items, tokens))
            texts.append(texts_of(self.prepared, rollouts[-1]))
        self._write_samples(name, texts[0])
        return Judged(texts, rollouts, divergences, learner.divergences(gold, [len(item.sequence.tokens) for item in gold]))

    def _score_gold(self, teacher: TeacherGroup) -> list[SupervisedItem]:
        sequences = [example.sequence for example in self.examples if example.sequence.targets]
        scores = teacher.score(sequences, [len(sequence.tokens) for sequence in sequences])
        return [SupervisedItem(sequence, score) for sequence, score in zip(sequences, scores, strict=True)]

    def _write_samples(self, name: str, texts: list[str]) -> None:
        prompts = self.prepared.tokenizer.batch_decode([example.prompt.tokens for example in self.examples])
        with (self.directory / f"{name}.samples.jsonl").open("w") as file:
            for prompt, text, example in zip(prompts, texts, self.examples, strict=True):
                file.write(json.dumps({"prompt": prompt, "response": text, "references": example.prompt.references}) + "\n")

    def _found(self, name: str) -> dict | None:
        path = self.directory / f"{name}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return found["row"] if all(found.get(key) == value for key, value in self._identity(name).items()) else None

    def _identity(self, name: str) -> dict:
        return {"settings": self.config.model_dump(), "weights": fingerprint(self.models[name])}


def with_references(examples: list[Example]) -> list[Example]:
    """Those that Rouge-L can judge."""
    return [example for example in examples if example.prompt.references]


def sample(
    prepared: Prepared, rollout: RolloutGroup, examples: list[Example], *, seed: int, teacher_share: float, weight_version: int
) -> list[Sampled]:
    """One response to each example, at the engine's temperature."""
    return rollout.sample(
        sampling_requests([example.prompt for example in examples], 1, seed, 0),
        teacher_share=teacher_share,
        max_response_tokens=prepared.config.data.max_response_tokens,
        weight_version=weight_version,
    )


def texts_of(prepared: Prepared, rollouts: list[Rollout]) -> list[str]:
    """The responses as a person reads them, end tokens left out."""
    return prepared.tokenizer.batch_decode([one.response_tokens for one in rollouts], skip_special_tokens=True)
