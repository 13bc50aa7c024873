"""Everything that can be checked or made before a process starts: models, tokenizer, data, and where the run keeps its files."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from launch.config import RunConfig
from minirl.data.corpus import Corpus, load_corpus
from minirl.data.embedded.assets import materialise_teacher
from minirl.data.examples import InstructionData, load_data
from minirl.data.templates import end_tokens
from minirl.data.vocab import shared_vocabulary
from minirl.errors import InputError
from minirl.evaluation.sets import EvaluationSet, load_sets
from minirl.files import write_json
from minirl.model import lora
from minirl.model.loading import check_supported, prune_layers, resolve_model

EMBEDDED_TEACHER = "embedded:smollm2-135m-instruct"
RECORD = "config.json"
# A directory belongs to one experiment: these may not change between starts. Workers, limits and lengths of stages may.
IDENTITY = ("seed", "student", "data", "corpus", "objective")


@dataclass(frozen=True)
class PreparedRun:
    """What the stages work with. teachers: one, or an ensemble in the order of the config; student: the initial one; vocabulary: the
    number of shared token ids; sets: those of `evaluate`; teacher_width: of the hidden states of all teachers together.
    """

    config: RunConfig
    directory: Path
    teachers: tuple[str, ...]
    student: str
    tokenizer: PreTrainedTokenizerBase
    end_tokens: tuple[int, ...]
    vocabulary: int
    data: InstructionData
    corpus: Corpus | None
    sets: list[EvaluationSet]
    student_bytes: int
    teacher_width: int

    @property
    def max_model_len(self) -> int:
        return self.config.data.max_prompt_tokens + self.config.data.max_response_tokens

    def reports(self) -> dict[str, dict[str, int]]:
        """What was read, kept, cut and dropped, of each source."""
        return {"data": self.data.report} | ({"corpus": self.corpus.report} if self.corpus else {})


def prepare(config: RunConfig) -> PreparedRun:
    """Raises InputError for anything that cannot work, in the order in which it is cheap to find out.

    Only a config that passed is recorded as the directory's, so that a mistake can be corrected in place.
    """
    disable_progress_bar()  # one bar a file of weights would run through the panel
    directory = Path(config.directory).resolve()  # workers may stand in another one
    teachers = _teachers(config, directory)
    teacher, teacher_configs = next(iter(teachers.values())), [check_supported(path, key) for key, path in teachers.items()]
    named_student = None if config.student.model is None else resolve_model(config.student.model, "student.model")
    student_config = teacher_configs[0] if named_student is None else check_supported(named_student, "student.model")
    for key, network in (*zip(teachers, teacher_configs, strict=True), ("student.model", student_config)):
        check_positions(config, key, network)
    if config.student.lora is not None:
        lora.check_targets(named_student or teacher, config.student.lora)
    tokenizers = [read_tokenizer(path, key) for key, path in teachers.items()]
    tokenizer = tokenizers[0]
    student_tokenizer = tokenizer if named_student is None else read_tokenizer(named_student, "student.model")
    vocabulary = min(
        shared_vocabulary(student_tokenizer, own, student_config.vocab_size, network.vocab_size)
        for own, network in zip(tokenizers, teacher_configs, strict=True)
    )
    ends = end_tokens(tokenizer, teacher)
    ids = tuple(member.id for member in config.teacher.members) if config.teacher.selected_by_record else ()
    data = load_data(config.data, tokenizer, ends, ids)
    _check_responses(config, data)
    corpus = None if config.corpus is None else load_corpus(config.corpus, tokenizer)
    evaluate = config.stages.evaluate
    sets = [] if evaluate is None else load_sets(evaluate, config.data, data.test, tokenizer, ends, ids)
    student = named_student or _pruned(config, teacher, directory)
    write_json(directory / RECORD, config.model_dump())
    size = sum(file.stat().st_size for file in Path(student).glob("*.safetensors"))
    prepared = PreparedRun(
        config, directory, tuple(teachers.values()), student, tokenizer, ends, vocabulary, data, corpus, sets, size,
        sum(network.hidden_size for network in teacher_configs),
    )  # fmt: skip
    write_json(directory / "data.json", prepared.reports())
    return prepared


def _teachers(config: RunConfig, directory: Path) -> dict[str, str]:
    """Config key -> model directory of every teacher."""
    found = {}
    for place, member in enumerate(config.teacher.members):
        key = f"teacher.ensemble.{place}.model" if config.teacher.ensemble else "teacher.model"
        embedded = member.model == EMBEDDED_TEACHER
        found[key] = materialise_teacher(directory / "models" / "teacher") if embedded else resolve_model(member.model, key)
    return found


def _pruned(config: RunConfig, teacher: str, directory: Path) -> str:
    target = directory / "models" / "student_init"
    if target.is_dir() and (directory / RECORD).is_file():  # else it may be a refused config's
        return str(target.resolve())
    return prune_layers(teacher, config.student.layers, str(target.resolve()))


def check_positions(config: RunConfig, key: str, network: PretrainedConfig) -> None:
    lengths = {"data.max_prompt_tokens + data.max_response_tokens": config.data.max_prompt_tokens + config.data.max_response_tokens}
    if config.corpus:
        lengths["corpus.block_tokens"] = config.corpus.block_tokens
    positions = getattr(network, "max_position_embeddings", None)
    for name, length in lengths.items():
        if positions is not None and positions < length:
            raise InputError(f"{key}: the model reads at most {positions} tokens, but {name} = {length}; lower it or take another model")


def _check_responses(config: RunConfig, data: InstructionData) -> None:
    """Gold responses are what fine-tuning learns, and what Rouge-L and forward KL compare with."""
    stages, learn, compare = config.stages, (lambda e: e.sequence.targets), (lambda e: e.prompt.references)
    needs = [(stage, split, learn) for stage in ("sft_teacher", "sft", "kd") for split in ("train", "validation")]
    needs += [("seqkd", "validation", learn), *((stage, "validation", compare) for stage in ("gkd", "opd", "distill"))]
    if stages.gkd and stages.gkd.student_share < 1:
        needs.append(("gkd", "train", learn))
    for stage, split, has_response in needs:
        if getattr(stages, stage) and not any(map(has_response, getattr(data, split))):
            raise InputError(
                f"no record of the {split} data has a response, and stages.{stage} needs some; give data with responses, "
                f"or set stages.{stage}: null"
            )
    if stages.seqkd:
        prompts, answered = len(data.train), sum(map(bool, map(learn, data.train)))
        if (wanted := round(stages.seqkd.gold_share * prompts)) > answered:
            raise InputError(
                f"stages.seqkd.gold_share = {stages.seqkd.gold_share:g} wants {wanted} gold responses, and {answered} of {prompts} records "
                f"of the train data have one; lower it to {100 * answered // prompts / 100:g}, or give more records with responses"
            )


def read_tokenizer(path: str, key: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{key}: {path} has no tokenizer that transformers reads ({' '.join(str(error).split())[:120]})") from None


@contextmanager
def claim_directory(config: RunConfig) -> Iterator[Path]:
    """The run's directory, for this process alone. Raises InputError where another run is in it, or where it is another experiment's."""
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = f" (process {owner})" if (owner := lock.read().strip()) else ""
            raise InputError(f"another run{holder} is working in {directory}; wait for it, or give another directory=...") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _check_same_experiment(config, directory)
        yield directory


def _check_same_experiment(config: RunConfig, directory: Path) -> None:
    record = directory / RECORD
    if not record.is_file():
        return
    before, now = json.loads(record.read_text()), config.model_dump()
    changed = [key for key in IDENTITY if before.get(key) != now[key]]
    changed += [f"teacher.{key}" for key in ("model", "ensemble") if before["teacher"].get(key) != now["teacher"][key]]
    if changed:
        raise InputError(f"{directory} holds a run with another {changed[0]}; give another directory=..., or delete that one")
