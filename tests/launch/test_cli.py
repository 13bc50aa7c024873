"""Bad input to the real command: it prints one sentence and exits with 2 before any process starts."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma2Config, GPTNeoConfig, GPTNeoForCausalLM

import launch.run.stages
from launch.cli import main
from launch.config import RunConfig
from launch.directory import claim_directory
from minirl.config.reader import read_config
from minirl.errors import RunError
from tests.deadlines import deadline
from tests.families.models import family_model
from tests.launch.conftest import COMMAND, VOCABULARY
from tests.minirl.data.reference_writer import write_indexed, write_split
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The initial student of each run that passed its checks; no stage runs."""
    runs: list[str] = []
    monkeypatch.setattr(launch.run.stages.Recipe, "run", lambda recipe: runs.append(recipe.student))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield runs
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def minirl(monkeypatch, capsys, started):
    """Calls the command in this process. Returns its exit code and its standard error."""

    def call(config: Path, *overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["minirl", "run", str(config), *overrides])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        return exit_info.value.code, capsys.readouterr().err

    return call


@pytest.fixture
def config(experiment, tmp_path) -> Path:
    """The tiny experiment in the test's directory, without the stage `evaluate`, for which the command would print a summary."""
    file = tmp_path / "config.yaml"
    settings = experiment.settings | {"directory": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump(settings | {"stages": settings["stages"] | {"evaluate": None}}))
    return file


def lines(path: Path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_the_tiny_experiment_is_accepted(minirl, config, started):
    assert minirl(config) == (0, "") and len(started) == 1


def test_a_warning_is_one_line_without_the_code_that_gave_it(minirl, config, started, monkeypatch):
    """The driver repeats the warnings of workers, and says if GPUs stay unused."""
    monkeypatch.setattr(launch.run.stages.Recipe, "run", lambda recipe: warnings.warn("node a has a GPU [unused]", stacklevel=1))
    assert minirl(config) == (0, "warning: node a has a GPU [unused]\n")


# --- mistakes in the config ---

FROM_THE_CONFIG = {
    "unknown key": (["stages.distill.learning_rat=1"], "stages.distill.learning_rat is not a known key; did you mean learning_rate?"),
    "mistyped value": (["rollout.workers=two"], "rollout.workers = 'two' does not fit"),
    "not an override": (["rollout.workers"], "the override 'rollout.workers' must have the form key.path=value"),
    "top_p with mixing": (["rollout.top_p=0.9"], "rollout.top_p must be 1: with mixing"),
    "responses that do not divide": (["stages.distill.updates_per_epoch=5"], "12 responses per iteration do not divide into 5 updates"),
    "no corpus": (["corpus=null"], "the pre-training loss needs a corpus"),
    "missing data file": (["data.train=nowhere.jsonl"], "cannot read the data file nowhere.jsonl: No such file"),
    "missing held-out file": (["data.test=nowhere.parquet"], "cannot read the data file nowhere.parquet: No such file"),
    "unknown kind of data": (["data.train=records.xml"], "cannot tell what the data source 'records.xml' is"),
    "missing corpus": (["corpus.source=nowhere.txt"], "cannot read the data file nowhere.txt: No such file"),
    "short corpus": (["corpus.block_tokens=400", "corpus.source={short}"], "fewer than one block"),
    "an argument that no template has": (
        ["data.template_arguments={thinkng: off}"],
        "the chat template has no argument thinkng; leave data.",
    ),
    "overlong prompt": (["data.max_prompt_tokens=6"], "more than data.max_prompt_tokens = 6; raise it, or set data.overlong_prompts: drop"),
    "a directory without a model": (["teacher.model={empty}"], "teacher.model: {empty} is a directory but holds no config.json"),
    "a path that leads nowhere": (["student.model=./nowhere"], "student.model: ./nowhere is not a model: there is no such directory"),
    "layers that are not there": (
        ["student.model=null", "student.layers=[0, 7]"],
        "student.layers must name some of the teacher's",
    ),
    "adapters on no layer": (["student.lora={target_modules: [nowhere]}"], "student.lora.target_modules does not fit the student"),
    "adapters on the head": (["student.lora={target_modules: [lm_head]}"], "includes lm_head, the student's output head"),
    "longer than the model reads": (["data.max_response_tokens=500"], "the model reads at most 512 tokens, but data.max_prompt_tokens"),
    "an engine of more parts than heads": (
        ["rollout.tensor_parallel=3"],
        "rollout.tensor_parallel = 3 does not divide the 2 attention heads of student.model; possible values are 1, 2",
    ),
    "a teacher's engine of more parts than heads": (
        ["teacher.tensor_parallel=4"],
        "teacher.tensor_parallel = 4 does not divide the 2 attention heads of teacher.model; possible values are 1, 2",
    ),
    "blocks longer than the model reads": (
        ["corpus.block_tokens=600"],
        "reads at most 512 tokens, but corpus.block_tokens = 600",
    ),
}


@pytest.mark.parametrize(("overrides", "sentence"), FROM_THE_CONFIG.values(), ids=FROM_THE_CONFIG)
def test_one_sentence_and_exit_code_two(minirl, config, started, tmp_path, overrides, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "short.txt").write_text("t7 t8")
    names = {"{empty}": str(tmp_path / "empty"), "{short}": str(tmp_path / "short.txt")}
    for name, path in names.items():
        overrides, sentence = [o.replace(name, path) for o in overrides], sentence.replace(name, path)
    code, error = minirl(config, *overrides)
    assert code == 2 and sentence in error
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert not started


@pytest.mark.parametrize("stage", ["sft_teacher", "distill"])
def test_a_named_attention_kernel_must_compute_the_models_that_the_learner_loads(minirl, config, started, tmp_path, stage):
    """SDPA leaves out the soft-cap of a Gemma 2. The learner loads the student and, to fine-tune or evaluate it, the teacher."""
    settings = yaml.safe_load(config.read_text())
    role = "teacher" if stage == "sft_teacher" else "student"
    shutil.copytree(settings[role]["model"], tmp_path / "gemma2")
    network = Gemma2Config(vocab_size=VOCABULARY, max_position_embeddings=512)
    network.architectures = ["Gemma2ForCausalLM"]
    network.save_pretrained(tmp_path / "gemma2")
    overrides = [f"{role}.model={tmp_path / 'gemma2'}", "learner.attention=sdpa"]
    if stage == "sft_teacher":
        overrides += ["stages.sft_teacher={learning_rate: 1.0e-3, epochs: 1}"]
    code, error = minirl(config, *overrides)
    assert code == 2 and not started
    assert error == (
        f"error: learner.attention: sdpa does not fit {role}.model: the sdpa kernel leaves out the attention soft-cap of "
        "Gemma2ForCausalLM; set learner.attention: auto\n"
    )


def test_a_missing_config(minirl, tmp_path):
    code, error = minirl(tmp_path / "absent.yaml")
    assert (code, error) == (2, f"error: cannot read the config {tmp_path / 'absent.yaml'}: No such file or directory\n")


# --- mistakes in the data ---

GOOD = [{"prompt": f"t{6 + n}", "completion": "t9"} for n in range(60)]
FROM_THE_DATA = {
    "malformed line": ([*GOOD[:2], '{"prompt": "t3", ', *GOOD[2:]], "{file} line 3 is not valid JSON"),
    "not an object": ([*GOOD, "[1, 2]"], "{file} line 61 holds a list"),
    "unknown columns": ([{"query": "t3", "reply": "t4"}], "{file} line 1 has the columns query, reply, which are not understood"),
    "an unused column": ([{"prompt": "t3", "category": "a"}], "{file} line 1 has the column category, which is not used here"),
    "empty": ([], "the data set {file} is empty"),
    "too few to split": (GOOD[:1] * 3, "has too few different prompts to split"),
    "no responses": ([{"prompt": row["prompt"]} for row in GOOD], "no record of the train data has a response, and stages.sft needs some"),
}


@pytest.mark.parametrize(("rows", "sentence"), FROM_THE_DATA.values(), ids=FROM_THE_DATA)
def test_bad_data_is_named_with_file_and_line(minirl, config, started, tmp_path, rows, sentence):
    file = lines(tmp_path / "bad.jsonl", *rows)
    code, error = minirl(config, f"data.train={file}")
    assert code == 2 and sentence.replace("{file}", file) in error and error.count("\n") == 1
    assert not started


def test_overlong_prompts_can_be_dropped(minirl, config, started):
    assert minirl(config, "data.max_prompt_tokens=9", "data.overlong_prompts=drop")[0] == 0 and started


def test_what_the_reference_tokenised_is_data_and_corpus(minirl, config, started, tmp_path, experiment):
    tokenizer = AutoTokenizer.from_pretrained(experiment.settings["teacher"]["model"])
    rows = [{"instruction": f"t{n} t7", "input": "", "output": f"t8 t{n}"} for n in range(6, 12)]
    for split in ("train", "valid"):
        write_split(tmp_path / "full", split, rows, tokenizer)
    write_indexed(tmp_path / "plain" / "train_0.bin", [list(range(6, 70))] * 8)
    sources = [f"data.train={tmp_path / 'full'}", f"data.validation={tmp_path / 'full'}", f"data.test={tmp_path / 'full' / 'valid_0.bin'}"]
    sources += ["data.max_prompt_tokens=64", f"corpus.source={tmp_path / 'plain'}"]
    assert minirl(config, *sources) == (0, "") and len(started) == 1
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["data"]["records"] == 18 and report["corpus"] == {"documents": 8, "blocks": 5, "test_blocks": 16, "tokens_dropped": 8}
    write_indexed(tmp_path / "full" / "train_0.bin", [[6, 65535, 900, 1]] * 6)
    code, error = minirl(config, *sources, f"directory={tmp_path / 'other'}")
    assert code == 2 and "has the token id 900, and the tokenizer has ids below 192" in error


def test_data_without_responses_is_accepted_if_no_stage_needs_them(minirl, config, started, tmp_path):
    prompts_only = lines(tmp_path / "prompts.jsonl", *({"prompt": row["prompt"]} for row in GOOD))
    held_out = lines(tmp_path / "held.jsonl", *GOOD[:5])
    code, error = minirl(config, f"data.train={prompts_only}", f"data.validation={held_out}", "stages.sft=null")
    assert (code, error) == (0, "")
    elsewhere = f"directory={tmp_path / 'elsewhere'}"
    assert "stages.distill needs some" in minirl(config, f"data.train={prompts_only}", "stages.sft=null", elsewhere)[1]


def test_a_gold_share_that_the_data_does_not_have(minirl, config, started, tmp_path):
    half = lines(tmp_path / "half.jsonl", *({key: row[key] for key in list(row)[: 1 + n % 2]} for n, row in enumerate(GOOD)))
    sources = [f"data.train={half}", f"data.validation={lines(tmp_path / 'held.jsonl', *GOOD[:5])}"]
    code, error = minirl(config, *sources, "stages.seqkd={learning_rate: 1e-3, gold_share: 0.9}")
    proposal = re.search(r"stages.seqkd.gold_share = 0.9 needs \d+ gold responses, .* lower it to (0\.\d+), or give more records", error)
    assert code == 2 and proposal and not started
    assert minirl(config, *sources, f"stages.seqkd={{learning_rate: 1e-3, gold_share: {proposal[1]}}}")[0] == 0


# --- the data of the stage task_sft ---


def task_sft(source: str, **settings) -> str:
    return f"stages.task_sft={json.dumps({'learning_rate': 1e-3, 'data': {'train': source}} | settings)}"


def test_the_data_of_a_task_is_read_beside_that_of_the_run_and_counted(minirl, config, started, tmp_path):
    assert minirl(config, task_sft(lines(tmp_path / "task.jsonl", *GOOD))) == (0, "") and len(started) == 1
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["task_sft"]["records"] == 60 and report["data"]["records"] == 90


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        (["{"], {}, "{file} line 1 is not valid JSON"),
        (GOOD[:1] * 3, {}, "is empty; raise stages.task_sft.data.validation_share or set stages.task_sft.data.validation"),
        ([{"prompt": r["prompt"]} for r in GOOD], {}, "no record of the train data of stages.task_sft.data has a response"),
        ([{"prompt": "t7 " * 40, "completion": "t9"}], {}, "more than data.max_prompt_tokens = 16"),
        (GOOD, {"datum": 1}, "stages.task_sft.datum is not a known key; did you mean data?"),
    ],
)
def test_mistakes_in_the_data_of_a_task(minirl, config, started, tmp_path, rows, settings, sentence):
    file = lines(tmp_path / "task.jsonl", *rows)
    code, error = minirl(config, task_sft(file, **settings))
    assert code == 2 and sentence.replace("{file}", file) in error and error.count("\n") == 1
    assert not started


def test_the_kl_to_the_teacher_needs_responses_of_the_runs_own_data(minirl, config, started, tmp_path):
    prompts_only = lines(tmp_path / "prompts.jsonl", *({"prompt": row["prompt"]} for row in GOOD))
    changes = [f"data.train={prompts_only}", "stages.sft=null", "stages.distill=null"]
    task = lines(tmp_path / "task.jsonl", *GOOD)
    code, error = minirl(config, *changes, task_sft(task))
    assert code == 2 and "give data.validation with responses, or set stages.task_sft.teacher_kl_sequences: 0" in error and not started
    assert minirl(config, *changes, task_sft(task, teacher_kl_sequences=0)) == (0, "") and started


# --- mistakes in the models ---


def test_different_tokenizers(minirl, config, started, tmp_path):
    student = tiny_model(tmp_path / "other", "llama", vocab=VOCABULARY + 8)
    code, error = minirl(config, f"student.model={student}")
    assert code == 2 and "the tokenizers of student and teacher differ in 8 of 200 tokens" in error and not started


def test_a_padded_vocabulary_is_no_difference(minirl, config, started, tmp_path):
    student = tiny_model(tmp_path / "padded", "llama", vocab=VOCABULARY + 8, tokenizer_vocab=VOCABULARY)
    assert minirl(config, f"student.model={student}") == (0, "") and started == [student]


def test_a_model_without_a_tokenizer(minirl, config, started, tmp_path, experiment):
    model = tmp_path / "without_tokenizer"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(experiment.settings["teacher"]["model"]) / name, model / name)
    code, error = minirl(config, f"teacher.model={model}")
    assert code == 2 and f"teacher.model: {model} has no tokenizer" in error and error.count("\n") == 1 and not started


def test_a_tokenizer_without_a_chat_template(minirl, config, started, tmp_path, experiment):
    directory = shutil.copytree(experiment.settings["teacher"]["model"], tmp_path / "plain")
    tiny_tokenizer(directory, VOCABULARY)
    (directory / "chat_template.jinja").unlink()
    code, error = minirl(config, f"teacher.model={directory}", f"student.model={directory}")
    assert code == 2 and "the tokenizer has no chat template" in error and not started


def test_a_mixture_of_experts_may_teach_but_not_be_trained(minirl, config, started, tmp_path):
    experts = family_model(tmp_path / "experts", "qwen3_moe", vocabulary=VOCABULARY)
    for overrides, key in (
        ([f"student.model={experts}"], "student.model"),
        ([f"teacher.model={experts}", "student.model=null", "student.layers=[0]"], "student.layers"),
        ([f"teacher.model={experts}", "stages.sft_teacher={learning_rate: 1e-3}"], "teacher.model"),
    ):
        code, error = minirl(config, *overrides)
        assert code == 2 and f"{key}: Qwen3MoeForCausalLM is a mixture of experts" in error and not started
    assert minirl(config, f"teacher.model={experts}") == (0, "") and started


@pytest.mark.parametrize("key", ["teacher.model", "student.model"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda weights: {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, "strip `_orig_mod.` from the names"),
        (lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}, "set tie_word_embeddings: false"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_before_anything_starts(minirl, config, started, tmp_path, key, change, sentence):
    model = tiny_model(tmp_path / "model", "llama", vocab=VOCABULARY)
    save_file(change(load_file(f"{model}/model.safetensors")), f"{model}/model.safetensors", {"format": "pt"})
    code, error = minirl(config, f"{key}={model}")
    assert code == 2 and f"{key}: " in error and sentence in error and error.count("\n") == 1 and not started


def test_a_family_that_vllm_lacks(minirl, config, started, tmp_path):
    network = GPTNeoConfig(vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global"], 2]])
    GPTNeoForCausalLM(network).save_pretrained(tmp_path / "neo")
    code, error = minirl(config, f"student.model={tmp_path / 'neo'}")
    assert code == 2 and "student.model: vLLM has no model class for GPTNeoForCausalLM" in error and not started


def test_a_record_with_a_token_beyond_the_models_is_named(minirl, config, started, tmp_path, experiment):
    teacher = shutil.copytree(experiment.settings["teacher"]["model"], tmp_path / "extended")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(teacher)
    models = [f"teacher.model={teacher}", f"student.model={teacher}"]
    assert minirl(config, *models) == (0, "") and len(started) == 1
    data = lines(tmp_path / "images.jsonl", *GOOD[:40], {"prompt": "t3 <image>", "completion": "t9"}, *GOOD[40:])
    code, error = minirl(config, *models, f"data.train={data}", f"directory={tmp_path / 'other'}")
    assert code == 2 and f"{data} line 41 contains the token '<image>' (id {VOCABULARY})" in error and len(started) == 1
    (tmp_path / "text.txt").write_text("t8 " * 2000 + "<image>")
    code, error = minirl(config, *models, f"corpus.source={tmp_path / 'text.txt'}", f"directory={tmp_path / 'other'}")
    assert code == 2 and "document 1 of the corpus" in error and "'<image>'" in error
    (teacher / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, VOCABULARY]}))
    code, error = minirl(config, *models, f"directory={tmp_path / 'other'}")
    assert code == 2 and "the list of tokens that end a response" in error and "'<image>'" in error


# --- the run's directory ---


def test_a_directory_in_use_is_refused(minirl, config, started):
    with claim_directory(read_config(RunConfig, config, [])):
        code, error = minirl(config)
    assert code == 2 and "another run (process " in error and not started
    assert minirl(config)[0] == 0 and started


@pytest.mark.parametrize("override", ["seed=4", "objective.preset=opd", "data.max_response_tokens=11", "corpus.blocks_per_update=2"])
def test_a_directory_of_another_experiment_is_refused(minirl, config, started, override):
    assert minirl(config)[0] == 0
    code, error = minirl(config, override)
    assert code == 2 and f"holds a run with another {override.split('=')[0].split('.')[0]}" in error and len(started) == 1


def test_a_directory_that_cannot_be_made_or_written(minirl, config, started, tmp_path):
    (tmp_path / "file").write_text("x")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    locked = tmp_path / "locked"
    (locked / ".lock").mkdir(parents=True)
    cases = {
        tmp_path / "file": "File exists", tmp_path / "file" / "run": "Not a directory", loop / "run": "symbolic link",
        tmp_path / ("n" * 300): "File name too long", Path("/proc/nowhere/run"): "No such file", locked: "Is a directory",
    }  # fmt: skip
    for directory, reason in cases.items():
        code, error = minirl(config, f"directory={directory}")
        assert code == 2 and str(directory.parent) in error and reason in error and error.count("\n") == 1, error
    assert not started


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_an_error_of_the_disk_while_a_run_is_prepared_is_one_sentence(minirl, config, started, monkeypatch, number):
    def fails(path: Path, value: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("launch.prepare.write_json", fails)
    code, error = minirl(config)
    assert code == 2 and f"config.json: {os.strerror(number)}; " in error and error.count("\n") == 1 and not started


def test_a_full_disk_that_a_library_in_rust_reports(minirl, config, started, monkeypatch):
    def fails(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("launch.prepare.prune_layers", fails)
    code, error = minirl(config, "student.model=null", "student.layers=[0]")
    assert code == 2 and "No space left on device" in error and "free space" in error and error.count("\n") == 1 and not started


def test_a_disk_that_is_full_while_stages_run_is_one_sentence(minirl, config, monkeypatch):
    def fails(recipe):
        raise OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")

    monkeypatch.setattr(launch.run.stages.Recipe, "run", fails)
    assert minirl(config) == (
        1, "stopped: cannot use run/metrics.jsonl: No space left on device; the disk is full; free space or use another disk\n",
    )  # fmt: skip


def test_an_error_of_our_own_is_still_a_traceback(config, started, monkeypatch):
    monkeypatch.setattr("launch.prepare.load_data", lambda *arguments: {}["ours"])
    monkeypatch.setattr(sys, "argv", ["minirl", "run", str(config)])
    with pytest.raises(KeyError):
        main()


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"teacher": 3}', "{"])
def test_a_record_that_is_none(minirl, config, started, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    code, error = minirl(config)
    assert code == 2 and "config.json is not the record of a run" in error and error.count("\n") == 1 and not started


def test_a_record_without_a_key_that_came_later_has_its_default(minirl, config, started, tmp_path):
    assert minirl(config)[0] == 0
    record = tmp_path / "run" / "config.json"
    values = json.loads(record.read_text())
    del values["data"]["overlong_prompts"], values["objective"]["preset"]
    record.write_text(json.dumps(values))
    assert minirl(config) == (0, "")
    assert minirl(config, "data.overlong_prompts=drop")[0] == 2


def test_workers_and_lengths_of_stages_may_change(minirl, config, started):
    overrides = ["rollout.workers=1", "stages.distill.iterations=9", "teacher.workers=2", "stages.sft.max_updates=9"]
    assert minirl(config)[0] == 0 and minirl(config, *overrides) == (0, "") and len(started) == 2


def test_a_mistake_can_be_corrected_in_place(minirl, config, started):
    assert minirl(config, "data.train=nowhere.jsonl")[0] == 2
    assert minirl(config, "student.model=null", "student.layers=[0, 7]")[0] == 2
    assert minirl(config, "student.model=null", "student.layers=[0]") == (0, "") and len(started) == 1


def test_a_student_is_pruned_once_and_pruned_again_after_a_refused_config(minirl, config, started):
    layers = "student.model=null", "student.layers=[1]"
    assert minirl(config, "student.model=null", "student.layers=[0]", "rollout.workers=1")[0] == 0
    weights = Path(started[0]) / "model.safetensors"
    first, stamp = weights.read_bytes(), weights.stat().st_mtime_ns
    assert minirl(config, "student.model=null", "student.layers=[0]")[0] == 0 and weights.stat().st_mtime_ns == stamp
    (weights.parents[2] / "config.json").unlink()  # as if the command had been killed during its checks
    assert minirl(config, *layers)[0] == 0 and weights.read_bytes() != first


# --- a run that stops itself ---


def test_a_run_that_stops_itself_is_one_sentence_and_exit_code_one(minirl, config, monkeypatch):
    def broken(recipe):
        raise RunError("the loss of iteration 3 is not finite")

    monkeypatch.setattr(launch.run.stages.Recipe, "run", broken)
    assert minirl(config) == (1, "stopped: the loss of iteration 3 is not finite\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_one_sentence_and_exit_code_130(minirl, config, monkeypatch, number):
    monkeypatch.setattr(launch.run.stages.Recipe, "run", lambda recipe: signal.raise_signal(number))
    code, error = minirl(config)
    assert code == 130 and error == "interrupted; start the same command again to resume\n"


# --- in a process of its own ---


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("learner.worker=2", "error: learner.worker is not a known key; did you mean workers?\n"),
        (
            "data.train={bad}",
            "error: {bad} line 2 is not valid JSON: Expecting value: line 1 column 1 (char 0) (it was read as JSON lines, because its name "
            "ends in .jsonl)\n",
        ),
    ],
)
def test_the_command_itself(config, tmp_path, change, sentence):
    bad = lines(tmp_path / "bad.jsonl", {"prompt": "t3", "completion": "t4"}, "oops")
    result = subprocess.run([*COMMAND, str(config), change.replace("{bad}", bad)], capture_output=True, text=True, timeout=deadline(12))
    assert (result.returncode, result.stdout, result.stderr) == (2, "", sentence.replace("{bad}", bad))


def test_without_arguments_the_command_prints_its_help():
    result = subprocess.run(COMMAND[:1], capture_output=True, text=True, timeout=deadline(12))
    assert "run" in result.stdout + result.stderr and "Traceback" not in result.stderr
