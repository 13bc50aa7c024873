"""A run's identity is its content: digests of data, models, tokenizers and templates, recorded in identity.json."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from launch.config import STUDENT_STAGES, RunConfig
from minirl.config.data import RecordsConfig
from minirl.data.corpus import Corpus
from minirl.data.examples import InstructionData
from minirl.errors import InputError
from minirl.files import file_sha256, write_json
from minirl.model.loading import fingerprint

RECORD = "identity.json"
PRUNED_STUDENT = "models/student_init"
STAGES_WITHOUT_TEACHER = ("sft", "task_sft")
# Files that decide what a text is in tokens, how a conversation is rendered, and where a response ends.
TOKENIZER_FILES = ("tokenizer", "special_tokens", "vocab", "merges", "chat_template", "added_tokens", "generation_config", "spiece")
TOKENIZER_SUFFIXES = (".model", ".jinja", ".tiktoken")
WRITTEN_BY_LIBRARIES = ("transformers_version", "_name_or_path")  # keys of config.json that say nothing about the model

Content = dict[str, dict[str, str]]  # config key -> file or "weights" or "records" -> digest


class Identity:
    """The content that each stage of a run depends on, compared with the record of an earlier start.

    A stage counts as started when its directory exists. One without a record, as an earlier version of the program left it, is taken as
    it is and recorded now.
    """

    def __init__(self, config: RunConfig, directory: Path, models: dict[str, str], data: InstructionData, corpus: Corpus | None):
        """models: config key -> directory of every teacher, first, and of the student, if it has a model of its own."""
        self.config, self.directory = config, directory
        self._content = source_content(config) | _records_read(config, data, corpus)
        for key, path in models.items():
            self._content |= {key: _model_content(path), _tokenizer_key(key): _tokenizer_content(path)}
        self._teachers = [key for key in models if key != "student.model"]
        self._student = ["student.model", _tokenizer_key("student.model")] if "student.model" in models else self._teachers[:1]
        self._record: dict[str, Content] = _read_record(directory / RECORD)

    def check(self) -> None:
        """Raises InputError, which says what changed and names the stages that it concerns, if a started stage had other content."""
        changed, stages, previous_student = {}, [], False
        for name in self._stage_names():
            if not (self.directory / name).is_dir():
                continue
            differences = self._differences(name)
            changed |= dict.fromkeys(differences)
            if differences or (previous_student and name in STUDENT_STAGES):
                stages.append(name)
                previous_student = name in STUDENT_STAGES
        if stages:
            parts, paths = list(changed), [str(self.directory / name) for name in stages]
            more = f" and {len(parts) - 3} more parts" if len(parts) > 3 else ""
            raise InputError(
                f"{self.directory} was made with other content: changed since then: {', '.join(parts[:3])}{more}; give another "
                f"directory=... for a run with the new content, or delete {' and '.join(paths)} to repeat "
                f"{'that stage' if len(paths) == 1 else 'these stages'} with it"
            )

    def pruned_student_is_current(self) -> bool:
        return not self._differences(PRUNED_STUDENT)

    def write(self) -> None:
        """Records the content of this start for every stage of the config, and keeps the record of other stages."""
        current = {name: {key: self._content[key] for key in self._keys(name)} for name in self._stage_names()}
        write_json(self.directory / RECORD, self._record | current | {PRUNED_STUDENT: {k: self._content[k] for k in self._teachers[:1]}})

    def _differences(self, name: str) -> list[str]:
        """What changed in the content of a stage, as "records.jsonl of data.train"."""
        differences = []
        for key, before in self._record.get(name, {}).items():
            now = self._content.get(key, before)
            parts = sorted(part for part in before.keys() | now.keys() if before.get(part) != now.get(part))
            differences += [f"{part} of {key.removesuffix(_tokenizer_key(''))}" for part in parts]
        return differences

    def _keys(self, name: str) -> list[str]:
        """The config keys whose content the stage depends on."""
        if name == PRUNED_STUDENT:
            return self._teachers[:1]
        stage, keys = getattr(self.config.stages, name), [key for key in self._content if key.split(".")[0] == "data"]
        keys.append(_tokenizer_key(self._teachers[0]))
        keys += [key for key in self._content if key.startswith(f"stages.{name}.")]
        if name != "sft_teacher":
            keys += self._student
        if name not in STAGES_WITHOUT_TEACHER or getattr(stage, "soft", None):
            keys += self._teachers
        if name == "distill" and self.config.objective.pretrain_coefficient > 0:
            keys += [key for key in self._content if key.split(".")[0] == "corpus"]
        return list(dict.fromkeys(keys))

    def _stage_names(self) -> list[str]:
        return [name for name in self.config.stages.in_order() if name != "evaluate"]


def source_content(config: RunConfig) -> Content:
    """Digests of the local files that the sources of the config name: of `data`, of the corpus, and of stages with data of their own."""
    sources = dict(_data_sources("data", config.data))
    if config.corpus:
        sources["corpus.source"] = config.corpus.source
    for name in config.stages.in_order():
        for field, value in getattr(config.stages, name):
            if isinstance(value, RecordsConfig):
                sources |= _data_sources(f"stages.{name}.{field}", value)
    content = {key: {file.name: _file_digest(str(file), *_stamp(file)) for file in _files_of(source)} for key, source in sources.items()}
    return {key: digests for key, digests in content.items() if digests}


def _data_sources(prefix: str, data: RecordsConfig) -> dict[str, str]:
    one = len(data.train) == 1
    sources = {f"{prefix}.train" if one else f"{prefix}.train.{i}": source.source for i, source in enumerate(data.train)}
    return sources | {f"{prefix}.{name}": source for name in ("validation", "test") if (source := getattr(data, name))}


def _files_of(source: str) -> list[Path]:
    """The local files behind a source, also in a directory of files that the reference tokenised; none for the hub and for packages."""
    path = Path(source)
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path] if path.is_file() else []


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, modified_ns: int) -> str:
    return file_sha256(Path(path))


def _records_read(config: RunConfig, data: InstructionData, corpus: Corpus | None) -> Content:
    """Digests of what was read from the hub or from packages, where there is no file to compare."""
    content: Content = {}
    if not all(_files_of(source) for source in _data_sources("data", config.data).values()):
        hashed = hashlib.sha256()
        for split in (data.train, data.validation, data.test):
            for example in split:
                # Not the prompt's tokens: a template that prints today's date would make every day another run.
                learnt = example.sequence.tokens[example.sequence.is_target].tobytes()
                hashed.update(learnt + json.dumps([example.prompt.text, example.prompt.references]).encode())
        content["data"] = {"records": hashed.hexdigest()}
    if corpus and not _files_of(config.corpus.source):
        content["corpus"] = {"text": hashlib.sha256(np.ascontiguousarray(corpus.blocks)).hexdigest()}
    return content


def _model_content(path: str) -> dict[str, str]:
    file = Path(path) / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))  # readable: `check_supported` has read it
    values = {key: value for key, value in values.items() if key not in WRITTEN_BY_LIBRARIES}
    return {"weights": fingerprint(path), file.name: hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}


def _tokenizer_key(model_key: str) -> str:
    return f"{model_key} (tokenizer)"


def _tokenizer_content(path: str) -> dict[str, str]:
    files = (file for file in sorted(Path(path).rglob("*")) if file.name.startswith(TOKENIZER_FILES) or file.suffix in TOKENIZER_SUFFIXES)
    return {str(file.relative_to(path)): _file_digest(str(file), *_stamp(file)) for file in files if file.is_file()}


def _read_record(file: Path) -> dict[str, Content]:
    try:
        record: Any = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{file} is not the record of a run; delete it to take the content as it is now, or give another directory=...")
    return record
