"""The stage and the command `evaluate`: each model by its own samples on named sets of prompts, judged by references and the teacher."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.groups.publishing import make_publisher
from launch.evaluation.given_models import given_models, trained_teachers
from launch.evaluation.measure_model import ModelMeasurer
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from minirl.evaluation.figures import figures_of, rouge_scores
from minirl.evaluation.plots import TEACHER
from minirl.evaluation.report import EvaluatedModel, EvaluationReport, Row, row_of
from minirl.evaluation.samples import EvaluatedSamples, sequences_of
from minirl.evaluation.sets import EvaluationSet
from minirl.files import digest, write_json
from minirl.model.loading import architecture_signature, fingerprint
from minirl.types import TokenSequence


class Evaluation:
    """models: the directory of each row, the teacher's first, which is left out where there are several. A row that stands for these
    settings, data and weights is not made again.

    <directory>/<model>.json                    the row of the closing table, every figure, and what they stand for
    <directory>/<set>/<model>.npz               every response and what was measured of its tokens (`EvaluatedSamples.arrays`)
    <directory>/<set>/<model>.samples.jsonl     the first seed's responses, to read
    <directory>/evaluation.json, .md, *.png     all of it together
    """

    def __init__(
        self,
        prepared: PreparedRun,
        groups: Groups,
        observer: Observer,
        teachers: tuple[str, ...],
        models: dict[str, str],
        directory: Path | None = None,
    ):
        self.prepared, self.groups, self.observer, self.teachers, self.models = prepared, groups, observer, teachers, models
        self.config, self.directory = prepared.config.stages.evaluate, directory or prepared.directory / "evaluate"

    def run(self) -> dict[str, Row]:
        """Measure what is not there yet and write the report; returns the rows of the closing table."""
        self.directory.mkdir(parents=True, exist_ok=True)
        missing, self._done = [name for name in self.models if self._found(name) is None], 0
        if missing:
            self.observer.stage_started("evaluate", len(missing), 0, "model")
        for names in self._alike(missing):
            self._measure(names)
        self._report().save(self.directory)
        return {name: self._found(name)["row"] for name in self.models}

    def _alike(self, missing: list[str]) -> list[list[str]]:
        """Models that an engine can hold one after another, since they have one shape; the teacher's row comes before all others."""
        alike: dict[str, list[str]] = {}
        for name in missing:
            if name != TEACHER:
                alike.setdefault(architecture_signature(self.models[name]), []).append(name)
        runs = list(alike.values())
        return runs if TEACHER not in missing else [[TEACHER, *(runs[0] if runs else [])], *runs[1:]]

    def _measure(self, names: list[str]) -> None:
        self.observer.doing("evaluate", "starting the rollout, teacher and learner groups")
        students = [name for name in (*names, *self.models) if name != TEACHER]
        blocking = self.config.no_repeat_ngram
        with self.groups.rollout_teacher_learner(
            self.models[students[0]], self.teachers, teacher_in_rollout=TEACHER in names, no_repeat_ngram=blocking
        ) as groups:
            rollout, _, learner = groups
            publisher = make_publisher(learner, rollout)
            measuring = ModelMeasurer(self.prepared, groups)
            for version, name in enumerate(names, start=1):
                self.observer.doing("evaluate", name)
                learner.load_model(self.models[name])
                if name != TEACHER:
                    publisher.publish(version).wait()
                self._measure_one(name, version, measuring)
                self._done += 1
                self.observer.progressed(self._done)

    def _measure_one(self, name: str, version: int, measuring: ModelMeasurer) -> None:
        # The engines hold the teacher too: with a share of 1 they sample from it alone. Its row comes before anything is published.
        share, version = (1.0, 0) if name == TEACHER else (0.0, version)
        found = {}
        for asked in self.prepared.sets:
            samples = self._teachers_samples(asked) if self.config.exposure_bias and name != TEACHER else None
            judged = measuring.judge(asked, teacher_share=share, weight_version=version, teachers_samples=samples)
            scores = rouge_scores(judged, asked.references)
            found[asked.name] = figures_of(judged, asked.references, scores, top_k=self.config.top_k)
            self._write_samples(name, asked, judged, scores)
        row = {"row": row_of(next(iter(found.values()))), "lm_loss_corpus": measuring.corpus_loss(), "sets": found}
        about = {"directory": self.models[name], "weights_sha256": _hashes(self.models[name])}
        write_json(self.directory / f"{name}.json", self._identity(name) | about | row)

    def _write_samples(self, name: str, asked: EvaluationSet, judged: EvaluatedSamples, scores: np.ndarray) -> None:
        folder = self.directory / asked.name
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", **judged.arrays(scores))
        prompts = self.prepared.tokenizer.batch_decode([example.prompt.tokens for example in asked.examples])
        with (folder / f"{name}.samples.jsonl").open("w") as file:
            for prompt, text, example in zip(prompts, judged.texts[0], asked.examples, strict=True):
                said = {"question": example.prompt.text, "prompt": prompt, "response": text, "references": example.prompt.references}
                file.write(json.dumps(said) + "\n")

    def _teachers_samples(self, asked: EvaluationSet) -> list[list[TokenSequence]]:
        """As the teacher's row left them, so that rows which are made later have the same."""
        with np.load(self.directory / asked.name / f"{TEACHER}.npz") as arrays:
            return sequences_of(arrays, [example.prompt for example in asked.examples])

    def _found(self, name: str) -> dict[str, Any] | None:
        path = self.directory / f"{name}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return found if all(found.get(key) == value for key, value in self._identity(name).items()) else None

    def _identity(self, name: str) -> dict[str, Any]:
        """What a row stands for, as it comes back from JSON."""
        return {
            "settings": self.config.model_dump(),
            "decoding": self._decoding(),
            "data": {asked.name: asked.sha256 for asked in self.prepared.sets},
            "weights": fingerprint(self.models[name]),
            "teachers": [fingerprint(path) for path in self.teachers],
        }

    def _decoding(self) -> dict[str, Any]:
        data = self.prepared.config.data
        return {
            "temperature": 1.0, "top_p": 1.0, "no_repeat_ngram": self.config.no_repeat_ngram, "seeds": self.config.seeds,
            "template": data.template, "system_prompt": data.system_prompt, "max_prompt_tokens": data.max_prompt_tokens,
            "max_response_tokens": data.max_response_tokens, "end_tokens": list(self.prepared.end_tokens),
            "shared_vocabulary": self.prepared.vocabulary, "dtype": self.prepared.config.rollout.dtype,
        }  # fmt: skip

    def _report(self) -> EvaluationReport:
        prepared, fields = self.prepared, EvaluatedModel.__dataclass_fields__
        found = {name: self._found(name) for name in self.models}
        data = {one.name: {"source": one.source, "prompts": len(one.examples), "sha256": one.sha256} for one in prepared.sets}
        if prepared.corpus and len(blocks := prepared.corpus.test_blocks):
            hashed = hashlib.sha256(np.ascontiguousarray(blocks, np.int32)).hexdigest()
            data["corpus"] = {"source": prepared.config.corpus.source, "blocks": len(blocks), "sha256": hashed}
        return EvaluationReport(
            {"run": str(prepared.directory), "teacher": ", ".join(self.teachers)},
            self._decoding(),
            data,
            {name: EvaluatedModel(**{key: one[key] for key in fields}) for name, one in found.items()},
        )


def evaluate_models(prepared: PreparedRun, given: list[str], directory: Path, observer: Observer) -> dict[str, Row]:
    """The command: the teacher and the given models (`launch.evaluation.given_models`), in `directory`."""
    teachers, models = trained_teachers(prepared), given_models(given, prepared)
    if len(teachers) == 1:  # an average is sampled by no engine
        models = {TEACHER: teachers[0]} | models
    with Groups(prepared) as groups:
        return Evaluation(prepared, groups, observer, teachers, models, directory).run()


def _hashes(directory: str) -> dict[str, str]:
    return {file.name: digest(file) for file in sorted(Path(directory).glob("*.safetensors"))}
