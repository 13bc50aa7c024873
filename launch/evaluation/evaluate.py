"""The stage and the command `evaluate`: measures models on sets of prompts, against references and teacher."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.groups.publishing import make_publisher
from launch.evaluation.given_models import given_models, trained_teachers
from launch.evaluation.measure_model import ModelMeasurer, decoded
from launch.groups import Groups
from launch.observer import Observer
from launch.prepare import PreparedRun
from minirl.evaluation.agreement import GreedyAnswers, agreement, greedy_tokens
from minirl.evaluation.figures import figures_of, rouge_scores
from minirl.evaluation.plots import TEACHER
from minirl.evaluation.report import EvaluatedModel, EvaluationReport, Row, row_of
from minirl.evaluation.samples import EvaluatedSamples, sequences_from_arrays
from minirl.evaluation.sets import EvaluationSet
from minirl.files import file_sha256, write_json
from minirl.model.loading import architecture_signature, fingerprint
from minirl.types import TokenSequence


class Evaluation:
    """Measures models and writes their files. A model whose file matches the current settings, data and weights is not measured again.

    models: the directory of each model. The teacher comes first; with several teachers it is left out.

    <directory>/<model>.json                    the row of the closing table, every figure, and the settings, data and weights behind them
    <directory>/<set>/<model>.npz               every response and its token diagnostics (`EvaluatedSamples.arrays`), and the greedy answers
    <directory>/<set>/<model>.samples.jsonl     the first seed's responses as text
    <directory>/evaluation.json, .md, *.png     the report on all models
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
        """Measure the models that have no valid file and write the report; returns the rows of the closing table."""
        self.directory.mkdir(parents=True, exist_ok=True)
        missing, self._done = [name for name in self.models if self._saved_model(name) is None], 0
        if missing:
            self.observer.stage_started("evaluate", len(missing), 0, "model")
        for names in self._batches_by_architecture(missing):
            self._measure_models(names)
        self._report().save(self.directory)
        return {name: self._saved_model(name)["row"] for name in self.models}

    def _batches_by_architecture(self, missing: list[str]) -> list[list[str]]:
        """Models of one architecture, which the same engines can load one after another. The teacher comes first of all."""
        batches: dict[str, list[str]] = {}
        for name in missing:
            if name != TEACHER:
                batches.setdefault(architecture_signature(self.models[name]), []).append(name)
        students = list(batches.values())
        return students if TEACHER not in missing else [[TEACHER, *(students[0] if students else [])], *students[1:]]

    def _measure_models(self, names: list[str]) -> None:
        """Start the groups, then load and measure one model after another."""
        self.observer.doing("evaluate", "starting the rollout, teacher and learner groups")
        students = [name for name in (*names, *self.models) if name != TEACHER]
        blocking = self.config.no_repeat_ngram
        with self.groups.rollout_teacher_learner(
            self.models[students[0]], self.teachers, teacher_in_rollout=TEACHER in names, no_repeat_ngram=blocking
        ) as groups:
            rollout, _, learner = groups
            publisher = make_publisher(learner, rollout)
            measurer = ModelMeasurer(self.prepared, groups)
            for version, name in enumerate(names, start=1):
                self.observer.doing("evaluate", name)
                learner.load_model(self.models[name])
                if name != TEACHER:
                    publisher.publish(version).wait()
                self._measure_model(name, version, measurer)
                self._done += 1
                self.observer.progressed(self._done)

    def _measure_model(self, name: str, version: int, measurer: ModelMeasurer) -> None:
        # The engines also hold the teacher; with a teacher_share of 1 they sample from it alone. It is measured before any publish.
        engine = {"teacher_share": 1.0, "weight_version": 0} if name == TEACHER else {"teacher_share": 0.0, "weight_version": version}
        figures = {}
        for evaluation_set in self.prepared.sets:
            teachers_samples = self._teachers_samples(evaluation_set) if self.config.exposure_bias and name != TEACHER else None
            samples = measurer.measure(evaluation_set, **engine, teachers_samples=teachers_samples)
            answers = measurer.greedy_answers(evaluation_set, **engine) if self._compares_greedy_answers else None
            scores = rouge_scores(samples, evaluation_set.references, self.config.rouge_tokenizer)
            alike = None
            if answers is not None:
                teachers_answers = answers if name == TEACHER else self._teachers_answers(evaluation_set)
                alike = agreement(answers, teachers_answers, self.config.rouge_tokenizer)
            figures[evaluation_set.name] = figures_of(
                samples, evaluation_set.references, scores, top_k=self.config.top_k, teacher_agreement=alike
            )
            self._write_samples(name, evaluation_set, samples, scores, answers)
        results = {"row": row_of(next(iter(figures.values()))), "lm_loss_corpus": measurer.corpus_loss(), "sets": figures}
        about = {"directory": self.models[name], "weights_sha256": _weight_hashes(self.models[name])}
        write_json(self.directory / f"{name}.json", self._identity(name) | about | results)

    @property
    def _compares_greedy_answers(self) -> bool:
        return self.config.greedy_agreement and TEACHER in self.models

    def _write_samples(
        self, name: str, evaluation_set: EvaluationSet, samples: EvaluatedSamples, scores: np.ndarray, answers: GreedyAnswers | None
    ) -> None:
        folder = self.directory / evaluation_set.name
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{name}.npz", **samples.arrays(scores), **(answers.arrays() if answers else {}))
        prompts = self.prepared.tokenizer.batch_decode([example.prompt.tokens for example in evaluation_set.examples])
        with (folder / f"{name}.samples.jsonl").open("w") as file:
            for prompt, text, example in zip(prompts, samples.texts[0], evaluation_set.examples, strict=True):
                row = {"question": example.prompt.text, "prompt": prompt, "response": text, "references": example.prompt.references}
                file.write(json.dumps(row) + "\n")

    def _teachers_samples(self, evaluation_set: EvaluationSet) -> list[list[TokenSequence]]:
        """[seeds][prompts], read from the teacher's file, so that models measured later are compared with the same samples."""
        with np.load(self.directory / evaluation_set.name / f"{TEACHER}.npz") as arrays:
            return sequences_from_arrays(arrays, [example.prompt for example in evaluation_set.examples])

    def _teachers_answers(self, evaluation_set: EvaluationSet) -> GreedyAnswers:
        with np.load(self.directory / evaluation_set.name / f"{TEACHER}.npz") as arrays:
            tokens = greedy_tokens(arrays)
        return GreedyAnswers(tokens, decoded(self.prepared, tokens))

    def _saved_model(self, name: str) -> dict[str, Any] | None:
        """The content of `<model>.json`; None without a file, or where it belongs to other settings, data or weights."""
        path = self.directory / f"{name}.json"
        saved = json.loads(path.read_text()) if path.is_file() else {}
        return saved if all(saved.get(key) == value for key, value in self._identity(name).items()) else None

    def _identity(self, name: str) -> dict[str, Any]:
        """The settings, data and weights that a model's file belongs to, in the types that JSON returns."""
        return {
            "settings": self.config.model_dump(),
            "decoding": self._decoding(),
            "data": {evaluation_set.name: evaluation_set.sha256 for evaluation_set in self.prepared.sets},
            "weights": fingerprint(self.models[name]),
            "teachers": [fingerprint(path) for path in self.teachers],
        }

    def _decoding(self) -> dict[str, Any]:
        data = self.prepared.config.data
        return {
            "temperature": 1.0, "top_p": 1.0, "no_repeat_ngram": self.config.no_repeat_ngram, "seeds": self.config.seeds,
            "template": data.template, "template_arguments": data.template_arguments, "system_prompt": data.system_prompt,
            "max_prompt_tokens": data.max_prompt_tokens, "max_response_tokens": data.max_response_tokens,
            "end_tokens": list(self.prepared.end_tokens),
            "shared_vocabulary": self.prepared.vocabulary, "dtype": self.prepared.config.rollout.dtype,
        }  # fmt: skip

    def _report(self) -> EvaluationReport:
        prepared, fields = self.prepared, EvaluatedModel.__dataclass_fields__
        saved = {name: self._saved_model(name) for name in self.models}
        data = {s.name: {"source": s.source, "prompts": len(s.examples), "sha256": s.sha256} for s in prepared.sets}
        if prepared.corpus and len(blocks := prepared.corpus.test_blocks):
            blocks_sha256 = hashlib.sha256(np.ascontiguousarray(blocks, np.int32)).hexdigest()
            data["corpus"] = {"source": prepared.config.corpus.source, "blocks": len(blocks), "sha256": blocks_sha256}
        about = {"run": str(prepared.directory), "teacher": ", ".join(self.teachers)}
        if self.config.greedy_agreement and not self._compares_greedy_answers:
            about["greedy answers"] = "not compared, because no engine samples from an average of teachers"
        return EvaluationReport(
            about,
            self._decoding(),
            data,
            {name: EvaluatedModel(**{key: values[key] for key in fields}) for name, values in saved.items()},
        )


def evaluate_models(prepared: PreparedRun, model_arguments: list[str], directory: Path, observer: Observer) -> dict[str, Row]:
    """The command `evaluate`: measures the teacher and the models on the command line (`given_models`) and writes to `directory`."""
    teachers, models = trained_teachers(prepared), given_models(model_arguments, prepared)
    if len(teachers) == 1:  # no engine can sample from an average of teachers
        models = {TEACHER: teachers[0]} | models
    with Groups(prepared) as groups:
        return Evaluation(prepared, groups, observer, teachers, models, directory).run()


def _weight_hashes(directory: str) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted(Path(directory).glob("*.safetensors"))}
