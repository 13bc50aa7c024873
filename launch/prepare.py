"""Checks and preparation before any process starts: models, tokenizers, data and the run's directory."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from actors.engine.engine import check_engine_class
from actors.engine.tensor_parallel import check_tensor_parallel
from launch.config import RunConfig, on_policy_stage
from launch.directory import CONFIG_RECORD, file_errors_as_sentences
from launch.dtypes import resolve_dtypes
from launch.identity import PRUNED_STUDENT, Identity
from minirl.config.evaluation import EvaluationSetConfig
from minirl.data.corpus import Corpus, load_corpus
from minirl.data.embedded.assets import materialise_teacher
from minirl.data.examples import Example, InstructionData, load_data
from minirl.data.templates import end_tokens
from minirl.data.tokenizer import read_tokenizer
from minirl.data.vocab import check_ids, shared_vocabulary
from minirl.errors import InputError
from minirl.evaluation.sets import EvaluationSet, evaluation_set, load_sets
from minirl.files import write_json
from minirl.model import lora
from minirl.model.attention import kernel_refusal
from minirl.model.loading import check_supported, resolve_model
from minirl.model.pruning import prune_layers
from minirl.model.weight_accounting import check_weights
from minirl.types import TokenSequence

EMBEDDED_TEACHER = "embedded:smollm2-135m-instruct"


@dataclass(frozen=True)
class PreparedRun:
    """A checked config with everything that the stages need from it.

    directory: absolute. teachers: model directories, one or an ensemble in the order of the config. student: directory of the initial
    student. vocabulary: the number of shared token ids. sets: the evaluation sets of the stage `evaluate`. student_bytes: size of the
    student's weight files. teacher_width: hidden size, summed over all teachers. task_data: the data of the stage `task_sft`. dtype_line:
    what became of `dtype: auto`; None if the config names every dtype.
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
    task_data: InstructionData | None = None
    dtype_line: str | None = None

    @property
    def max_model_len(self) -> int:
        return self.config.data.max_prompt_tokens + self.config.data.max_response_tokens

    @property
    def watched_sequences(self) -> list[TokenSequence]:
        """The sequences of the run's validation data on which `task_sft` measures the KL to the teacher; empty if it does not."""
        task_sft = self.config.stages.task_sft
        gold = [example.sequence for example in self.data.validation if example.sequence.targets]
        return gold[: task_sft.teacher_kl_sequences] if task_sft else []

    def reports(self) -> dict[str, dict[str, int]]:
        """How many records or tokens were read, kept, cut and dropped: {"data": {...}, "corpus": {...}, "task_sft": {...}}."""
        parts = {"data": self.data, "corpus": self.corpus, "task_sft": self.task_data}
        return {name: part.report for name, part in parts.items() if part is not None}


@file_errors_as_sentences()
def prepare(config: RunConfig) -> PreparedRun:
    """Check a config and prepare its models and data. Cheap checks come first. Raises InputError for anything that cannot work.

    The directory's `config.json` is written only after the checks, so that a mistake can be corrected in place.
    """
    disable_progress_bar()  # transformers draws one bar per weight file, which would break the panel
    directory = Path(config.directory).resolve()  # workers may have another working directory
    teachers = _teacher_directories(config, directory)
    teacher = next(iter(teachers.values()))
    named_student, student_config, teacher_configs = _check_models(config, teachers)
    tokenizers = [read_tokenizer(path, key) for key, path in teachers.items()]
    tokenizer = tokenizers[0]
    student_tokenizer = tokenizer if named_student is None else read_tokenizer(named_student, "student.model")
    vocabulary = min(
        shared_vocabulary(student_tokenizer, teacher_tokenizer, student_config.vocab_size, network.vocab_size)
        for teacher_tokenizer, network in zip(tokenizers, teacher_configs, strict=True)
    )
    ends = end_tokens(tokenizer, teacher, config.data.template_arguments)
    check_ids(ends, vocabulary, tokenizer, "the list of tokens that end a response (eos_token, or eos_token_id in generation_config.json)")
    ids = tuple(member.id for member in config.teacher.members) if config.teacher.selected_by_record else ()
    data = load_data(config.data, tokenizer, ends, ids, vocabulary)
    _check_responses(config, data)
    corpus = None if config.corpus is None else load_corpus(config.corpus, tokenizer, vocabulary)
    evaluate = config.stages.evaluate
    sets = [] if evaluate is None else load_sets(evaluate, config.data, data.test, tokenizer, ends, ids, vocabulary)
    task_data = None
    if config.stages.task_sft is not None:
        task_config = config.data.with_records(config.stages.task_sft.data)
        task_data = load_data(task_config, tokenizer, ends, ids, vocabulary, key="stages.task_sft.data")
        _check_task_responses(config, data, task_data)
        sets += _task_set(config, task_data)
    models = teachers | ({} if named_student is None else {"student.model": named_student})
    identity = Identity(config, directory, models, data, corpus)
    identity.check()
    config, dtype_line = resolve_dtypes(config, directory)
    student = named_student or _prune_teacher(config, teacher, directory, identity)
    write_json(directory / CONFIG_RECORD, config.model_dump())
    identity.write()
    student_bytes = sum(file.stat().st_size for file in Path(student).glob("*.safetensors"))
    prepared = PreparedRun(
        config, directory, tuple(teachers.values()), student, tokenizer, ends, vocabulary, data, corpus, sets, student_bytes,
        sum(network.hidden_size for network in teacher_configs), task_data, dtype_line,
    )  # fmt: skip
    write_json(directory / "data.json", prepared.reports())
    return prepared


def _check_models(config: RunConfig, teachers: dict[str, str]) -> tuple[str | None, PretrainedConfig, list[PretrainedConfig]]:
    """Raises InputError if a model cannot be loaded, sampled from, scored or trained. teachers: config key -> directory.

    Returns the directory of `student.model` (None if the student is made of the teacher's layers), and the configs of student and teachers.
    """
    learns, teacher = config.stages.sft_teacher is not None, next(iter(teachers.values()))
    teacher_configs = [check_supported(path, key, learns=learns) for key, path in teachers.items()]
    named_student = None if config.student.model is None else resolve_model(config.student.model, "student.model")
    student_config = check_supported(named_student or teacher, "student.model" if named_student else "student.layers")
    for key, network in (*zip(teachers, teacher_configs, strict=True), ("student.model", student_config)):
        check_engine_class(network, key)
        check_positions(config, key, network)
        if key == "student.model" or config.stages.sft_teacher or config.stages.evaluate:  # the learner computes these
            check_attention(config, key, network)
    _check_engine_sizes(
        config, "student.model" if named_student else "student.layers", student_config, dict(zip(teachers, teacher_configs, strict=True))
    )
    for key, path in (*teachers.items(), *([] if named_student is None else [("student.model", named_student)])):
        check_weights(path, key)
    if config.student.lora is not None:
        lora.check_targets(named_student or teacher, config.student.lora)
    return named_student, student_config, teacher_configs


def _check_engine_sizes(config: RunConfig, student_key: str, student: PretrainedConfig, teachers: dict[str, PretrainedConfig]) -> None:
    """Raises InputError if the engines of the config's stages hold a model that does not divide among their processes."""
    stages = config.stages
    loops = stages.gkd or stages.opd or stages.distill or stages.evaluate
    sampled = {student_key: student} if loops else {}
    mixed = stages.distill and on_policy_stage(config, "distill").teacher_share > 0
    if mixed or stages.seqkd or (stages.evaluate and len(teachers) == 1):
        sampled |= teachers
    scoring = loops or stages.kd or (stages.seqkd and stages.seqkd.soft) or (stages.task_sft and stages.task_sft.teacher_kl_sequences)
    for role, models in (("rollout", sampled), ("teacher", teachers if scoring else {})):
        for key, network in models.items():
            check_tensor_parallel(network, key, getattr(config, role).tensor_parallel, f"{role}.tensor_parallel")


def _task_set(config: RunConfig, task_data: InstructionData) -> list[EvaluationSet]:
    """The evaluation set of the task's test split; empty if nothing is evaluated, or if the config has a set of that name."""
    evaluate = config.stages.evaluate
    if evaluate is None or "task_sft" in evaluate.sets:
        return []
    about = EvaluationSetConfig(source="stages.task_sft.data, the test split")
    return [evaluation_set("task_sft", about, task_data.test, evaluate.prompts)]


def _teacher_directories(config: RunConfig, directory: Path) -> dict[str, str]:
    """Config key -> model directory of every teacher."""
    directories = {}
    for index, member in enumerate(config.teacher.members):
        key = f"teacher.ensemble.{index}.model" if config.teacher.ensemble else "teacher.model"
        embedded = member.model == EMBEDDED_TEACHER
        directories[key] = materialise_teacher(directory / "models" / "teacher") if embedded else resolve_model(member.model, key)
    return directories


def _prune_teacher(config: RunConfig, teacher: str, directory: Path, identity: Identity) -> str:
    """Directory of the initial student, which has only the layers `student.layers` of the teacher; an earlier start's is used again."""
    target = directory / PRUNED_STUDENT
    has_record = (directory / CONFIG_RECORD).is_file()  # without the record, the student may come from a refused config
    if target.is_dir() and has_record and identity.pruned_student_is_current():
        check_weights(str(target.resolve()), "student.layers")
        return str(target.resolve())
    return prune_layers(teacher, config.student.layers, str(target.resolve()))


def check_positions(config: RunConfig, key: str, network: PretrainedConfig) -> None:
    """Raises InputError if the model of config key `key` reads fewer positions than the data or the corpus needs."""
    lengths = {"data.max_prompt_tokens + data.max_response_tokens": config.data.max_prompt_tokens + config.data.max_response_tokens}
    if config.corpus:
        lengths["corpus.block_tokens"] = config.corpus.block_tokens
    positions = getattr(network, "max_position_embeddings", None)
    for name, length in lengths.items():
        if positions is not None and positions < length:
            raise InputError(f"{key}: the model reads at most {positions} tokens, but {name} = {length}; lower it or take another model")


def check_attention(config: RunConfig, key: str, network: PretrainedConfig) -> None:
    """Raises InputError if the config names an attention kernel that does not compute the model of config key `key`."""
    kernel = config.learner.attention
    if kernel != "auto" and (refusal := kernel_refusal(network, kernel)):
        raise InputError(f"learner.attention: {kernel} does not fit {key}: {refusal}; set learner.attention: auto")


def _check_responses(config: RunConfig, data: InstructionData) -> None:
    """Raises InputError if a stage lacks gold responses: fine-tuning learns them, Rouge-L and the validation loss compare with them."""
    stages = config.stages

    def has_targets(example: Example) -> bool:
        return bool(example.sequence.targets)

    def has_references(example: Example) -> bool:
        return bool(example.prompt.references)

    needs = [(stage, split, has_targets) for stage in ("sft_teacher", "sft", "kd") for split in ("train", "validation")]
    needs.append(("seqkd", "validation", has_targets))
    selecting = {"rouge_l": has_references, "validation_loss": has_targets}
    for stage in ("gkd", "opd", "distill"):
        if (select_by := getattr(getattr(stages, stage), "select_by", None)) in selecting:
            needs.append((stage, "validation", selecting[select_by]))
    if stages.gkd and stages.gkd.student_share < 1:
        needs.append(("gkd", "train", has_targets))
    for stage, split, has_response in needs:
        if getattr(stages, stage) and not any(map(has_response, getattr(data, split))):
            selection = getattr(getattr(stages, stage), "select_by", None) if split == "validation" else None
            raise InputError(
                f"no record of the {split} data has a response, and stages.{stage} needs some; give data with responses, "
                + (f"set stages.{stage}.select_by: reverse_kl, " if selection else "")
                + f"or set stages.{stage}: null"
            )
    if stages.seqkd:
        prompts, answered = len(data.train), sum(map(has_targets, data.train))
        if (needed := round(stages.seqkd.gold_share * prompts)) > answered:
            raise InputError(
                f"stages.seqkd.gold_share = {stages.seqkd.gold_share:g} needs {needed} gold responses, and {answered} of {prompts} records "
                f"of the train data have one; lower it to {100 * answered // prompts / 100:g}, or give more records with responses"
            )


def _check_task_responses(config: RunConfig, data: InstructionData, task_data: InstructionData) -> None:
    """Raises InputError if the stage `task_sft` lacks gold responses: it learns those of its data, and evaluation compares with them.

    The KL to the teacher is measured on those of the run's own validation data.
    """
    usable = {split: [e for e in getattr(task_data, split) if e.sequence.targets] for split in ("train", "validation")}
    if config.stages.evaluate:
        usable["test"] = [example for example in task_data.test if example.prompt.references]
    for split, examples in usable.items():
        if not examples:
            raise InputError(
                f"no record of the {split} data of stages.task_sft.data has a response, and the stage needs some; give data with "
                "responses, or set stages.task_sft: null"
            )
    if config.stages.task_sft.teacher_kl_sequences and not any(example.sequence.targets for example in data.validation):
        raise InputError(
            "stages.task_sft measures the KL to the teacher on responses of the run's own validation data, and no record of it has one; "
            "give data.validation with responses, or set stages.task_sft.teacher_kl_sequences: 0"
        )
