"""A run's identity is its content: replaced data, models, tokenizers and templates are named, with both ways on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from launch.config import RunConfig
from launch.directory import claim_directory
from launch.prepare import prepare
from minirl.config.reader import read_config
from minirl.errors import InputError
from tests.launch.conftest import VOCABULARY, Experiment
from tests.tiny import tiny_model


@pytest.fixture
def run(experiment: Experiment, tmp_path):
    """A run whose models and data are copies of its own. A call prepares it, as every command does first."""
    settings = json.loads(json.dumps(experiment.settings))
    for role in ("teacher", "student"):
        settings[role]["model"] = str(shutil.copytree(settings[role]["model"], tmp_path / role))
    for file in ("records.jsonl", "corpus.txt"):
        shutil.copy(experiment.root / file, tmp_path / file)
    settings["data"]["train"], settings["corpus"]["source"] = str(tmp_path / "records.jsonl"), str(tmp_path / "corpus.txt")
    settings["directory"] = str(tmp_path / "run")
    file = tmp_path / "config.yaml"

    def call(*overrides: str) -> str:
        """Returns the sentence of a refusal, "" if the run may start."""
        file.write_text(yaml.safe_dump(settings))
        config = read_config(RunConfig, file, list(overrides))
        try:
            with claim_directory(config):
                prepare(config)
        except InputError as error:
            assert "\n" not in str(error)
            return str(error)
        return ""

    return call


def began(tmp_path: Path, *stages: str) -> None:
    for stage in stages:
        (tmp_path / "run" / stage / "checkpoints").mkdir(parents=True, exist_ok=True)


def with_other_responses(file: Path) -> None:
    rows = [json.loads(line) | {"completion": "t9 t9"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def append(name: str, text: str = " "):
    def change(root: Path) -> None:
        file = root / name
        file.write_text(file.read_text() + text)

    return change


def set_json(name: str, **values):
    def change(root: Path) -> None:
        file = root / name
        file.write_text(json.dumps((json.loads(file.read_text()) if file.is_file() else {}) | values))

    return change


CHANGES = {
    "data": (lambda root: with_other_responses(root / "records.jsonl"), "records.jsonl of data.train", ("sft", "distill")),
    "corpus": (append("corpus.txt"), "corpus.txt of corpus.source", ("distill",)),
    "student": (
        lambda root: tiny_model(root / "student", "gpt2", vocab=VOCABULARY, seed=7), "weights of student.model", ("sft", "distill"),
    ),
    "teacher": (lambda root: tiny_model(root / "teacher", "llama", vocab=VOCABULARY, seed=7), "weights of teacher.model", ("distill",)),
    "template": (append("teacher/chat_template.jinja", "{# new #}"), "chat_template.jinja of teacher.model", ("sft", "distill")),
    "template is gone": (
        lambda root: (root / "student/chat_template.jinja").unlink(), "chat_template.jinja of student.model", ("sft", "distill"),
    ),
    "tokenizer": (append("teacher/tokenizer.json"), "tokenizer.json of teacher.model", ("sft", "distill")),
    "end tokens": (set_json("teacher/generation_config.json", eos_token_id=[1, 0]), "generation_config.json of teacher.model", ("sft",)),
    "model config": (set_json("student/config.json", layer_norm_epsilon=1e-3), "config.json of student.model", ("sft", "distill")),
}  # fmt: skip


@pytest.mark.parametrize(("change", "part", "stages"), CHANGES.values(), ids=CHANGES)
def test_replaced_content_is_named_with_both_ways_on(run, tmp_path, change, part, stages):
    assert run() == ""
    began(tmp_path, "sft", "distill")
    assert run() == ""
    change(tmp_path)
    sentence = run()
    assert part in sentence and "give another directory=..." in sentence
    named = [stage for stage in ("sft", "distill") if str(tmp_path / "run" / stage) in sentence]
    assert set(stages) <= set(named) and (stages != ("distill",) or named == ["distill"])
    assert run() == sentence  # a refused start records nothing
    assert run(f"directory={tmp_path / 'other'}") == ""
    for stage in named:
        shutil.rmtree(tmp_path / "run" / stage)
    assert run() == "" and run() == ""


def test_before_a_stage_has_started_content_may_change(run, tmp_path):
    assert run() == ""
    with_other_responses(tmp_path / "records.jsonl")
    assert run() == ""


def test_a_copy_and_a_rewritten_file_are_the_same(run, tmp_path):
    assert run() == ""
    began(tmp_path, "sft", "distill")
    (tmp_path / "records.jsonl").write_text((tmp_path / "records.jsonl").read_text())
    set_json("teacher/config.json", transformers_version="99.0")(tmp_path)
    assert run() == ""


def test_a_directory_without_digests_is_resumed_and_remembers_from_now_on(run, tmp_path):
    assert run() == ""
    began(tmp_path, "sft")
    (tmp_path / "run" / "identity.json").unlink()
    assert run() == ""
    with_other_responses(tmp_path / "records.jsonl")
    assert "records.jsonl of data.train" in run()


def test_later_stages_that_start_from_a_repeated_one_are_named_too(run, tmp_path):
    assert run() == ""
    began(tmp_path, "sft", "distill")
    record = tmp_path / "run" / "identity.json"
    stages = json.loads(record.read_text())
    stages["sft"]["data.train"]["records.jsonl"] = "other"  # distill was started again later, with the new data
    record.write_text(json.dumps(stages))
    assert str(tmp_path / "run" / "distill") in run()


def test_a_student_is_pruned_again_from_a_replaced_teacher(run, tmp_path):
    layers = ("student.model=null", "student.layers=[0]")
    weights = tmp_path / "run" / "models" / "student_init" / "model.safetensors"
    assert run(*layers) == ""
    before = weights.read_bytes()
    tiny_model(tmp_path / "teacher", "llama", vocab=VOCABULARY, seed=7)
    assert run(*layers) == "" and weights.read_bytes() != before
    began(tmp_path, "sft")
    tiny_model(tmp_path / "teacher", "llama", vocab=VOCABULARY, seed=8)
    assert "weights of teacher.model" in run(*layers) and f"delete {tmp_path / 'run' / 'sft'} to repeat that stage" in run(*layers)


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_a_record_that_cannot_be_read(run, tmp_path, text):
    assert run() == ""
    (tmp_path / "run" / "identity.json").write_text(text)
    assert "identity.json is not the record of a run" in run()


def test_records_that_come_from_no_file_are_compared_as_read(run, tmp_path, monkeypatch):
    """As those of a hub data set, which changes under the same name."""
    texts = ["t9 t8"]
    monkeypatch.setattr(
        "minirl.data.records.read_rows",
        lambda *arguments: ((f"row {n}", {"prompt": f"t{6 + n} t3", "completion": texts[0]}) for n in range(60)),
    )
    hub = "data.train=owner/name"
    assert run(hub) == ""
    began(tmp_path, "sft")
    assert run(hub) == ""
    texts[0] = "t9 t7"
    assert "records of data" in run(hub)


def test_replaced_data_of_a_task_concerns_its_stage_alone(run, tmp_path):
    task = Path(shutil.copy(tmp_path / "records.jsonl", tmp_path / "task.jsonl"))
    stage = f"stages.task_sft={json.dumps({'learning_rate': 1e-3, 'data': {'train': str(task)}})}"
    assert run(stage) == ""
    began(tmp_path, "sft", "distill", "task_sft")
    with_other_responses(task)
    sentence = run(stage)
    assert "task.jsonl of stages.task_sft.data.train; give another directory" in sentence
    assert f"delete {tmp_path / 'run' / 'task_sft'} to repeat that stage" in sentence


def test_the_stages_to_repeat_follow_the_order_of_a_list(run, tmp_path):
    """What comes before the stage whose data was replaced stays valid."""
    task = Path(shutil.copy(tmp_path / "records.jsonl", tmp_path / "task.jsonl"))
    stages = [{"task_sft": {"learning_rate": 1e-3, "data": {"train": str(task)}}}, {"sft": {"learning_rate": 1e-3}}]
    for order in (stages, stages[::-1]):
        assert run(f"stages={json.dumps(order)}") == ""
        began(tmp_path, "sft", "task_sft")
        with_other_responses(task)
        sentence = run(f"stages={json.dumps(order)}")
        assert str(tmp_path / "run" / "task_sft") in sentence and (str(tmp_path / "run" / "sft") in sentence) == (order is stages)
        shutil.rmtree(tmp_path / "run")
        shutil.copy(tmp_path / "records.jsonl", task)
