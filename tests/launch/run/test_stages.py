"""The stages seqkd, kd, gkd, opd, task_sft and evaluate of one run with the real command, each from the student of the stage before it.

They come as a list, whose order is not the default one.
"""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch.config import RunConfig
from launch.prepare import prepare
from minirl.config.data import DataConfig
from minirl.config.reader import read_config
from minirl.data.examples import load_data
from minirl.model.loading import fingerprint
from minirl.training import checkpoint
from tests.launch.conftest import NO_CLUSTER, VOCABULARY
from tests.tiny import END_TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUPERVISED = {"learning_rate": 1e-3, "sequences_per_update": 8, "max_updates": 2, "epochs": 1}
ON_POLICY = {"learning_rate": 1e-3, "iterations": 2, "prompts_per_iteration": 8, "validate_every": 2, "validation_prompts": 4}
GKD = {"student_share": 0.5, "divergence": {"kind": "skew_reverse_kl", "skew": 0.2}, "validate_every": 1, "select_by": "validation_loss"}
STAGES = [
    {"seqkd": {**SUPERVISED, "gold_share": 0.25, "soft": {"divergence": {"kind": "forward_kl", "temperature": 2.0}}}},
    {"kd": {**SUPERVISED, "soft": {"divergence": {"kind": "jsd", "beta": 0.3}, "hard_weight": 0.25}}},
    {"gkd": {**ON_POLICY, **GKD}},
    {"opd": {**ON_POLICY, "iterations": 1, "leaves": "last"}},
    {"task_sft": {**SUPERVISED, "learning_rate": 2e-2, "max_updates": 4, "validations_per_epoch": 8, "teacher_kl_sequences": 5}},
    {"evaluate": {"seeds": [1], "prompts": 4}},
]
STUDENTS = {"seqkd": "seqkd/best", "kd": "kd/best", "gkd": "gkd/best", "opd": "opd/last", "task_sft": "task_sft/best"}
FIRST_UPDATES = 2  # of task_sft in the first of two commands


@pytest.fixture(scope="module")
def run(experiment, start):
    """The directory of the run. A first command ends in the middle of task_sft, a second one resumes there."""
    generator = np.random.default_rng(7)
    words = (" ".join(f"t{token}" for token in generator.integers(6, VOCABULARY // 4, 6)) for _ in range(80))
    task = experiment.root / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": f"t9 {text}", "completion": "t8 t7 t8"}) + "\n" for text in words))
    one_worker_each = {role: experiment.settings[role] | {"workers": 1} for role in ("rollout", "learner")}
    data = {"task_sft": {"data": {"train": str(task), "validation_share": 0.2}}}
    stages = [{name: settings | data.get(name, {})} for item in STAGES for name, settings in item.items()]
    config = experiment.config("stages", stages=stages, **one_worker_each)
    command = start(config, f"stages.task_sft.max_updates={FIRST_UPDATES}", "stages.evaluate=null")
    assert command.wait() == 0, command.text
    assert command.leftover_processes() == []
    command = start(config)
    assert command.wait() == 0, command.text
    assert command.leftover_processes() == []
    return experiment.root / "stages"


def records(run, stage):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


def test_every_stage_leaves_its_own_student_and_has_a_row(run, experiment):
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == ["teacher", "student_init", *STUDENTS]
    weights = [fingerprint(experiment.settings["student"]["model"]), *(fingerprint(str(run / path)) for path in STUDENTS.values())]
    assert len(set(weights)) == len(weights)


def test_each_stage_starts_from_the_student_of_the_stage_before_it(run, experiment):
    previous_student = experiment.settings["student"]["model"]
    for stage, path in STUDENTS.items():
        manifest = sorted((run / stage / "checkpoints").glob("*/manifest.json"))[-1]
        assert json.loads(manifest.read_text())["state"]["started_from"].split()[0] == fingerprint(str(previous_student)), stage
        previous_student = run / path


def teacher_kl(student: str, teacher: str, sequences) -> tuple[float, float]:
    """Forward and reverse KL per target token, with torch's own functions on the logits of transformers."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval() for model in (student, teacher))
    forward = reverse = tokens = 0
    for sequence in sequences:
        ids, predicting = torch.from_numpy(sequence.tokens)[None], torch.from_numpy(sequence.is_target)[1:]
        with torch.no_grad():
            q, p = (model(ids).logits[0, :-1][predicting].double().log_softmax(-1) for model in (student, teacher))
        forward += torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
        reverse += torch.nn.functional.kl_div(p, q, reduction="sum", log_target=True).item()
        tokens += len(q)
    return forward / tokens, reverse / tokens


def test_task_sft_learns_the_task_and_logs_the_kl_to_the_teacher(run, experiment):
    logged, teacher = records(run, "task_sft"), experiment.settings["teacher"]["model"]
    assert [r["update"] for r in logged] == [0, 1, 2, 3] and all("loss/divergence" not in r for r in logged)
    losses = [r["eval/validation_loss"] for r in logged]
    assert losses[-1] == min(losses) < losses[0] - 0.1  # four large steps of a tiny model need not fall one after the other
    watched = prepare(read_config(RunConfig, run.with_suffix(".yaml"), [])).watched_sequences
    assert len(watched) == 5
    at_start = logged[0]["eval/forward_kl_gold_at_start"], logged[0]["eval/reverse_kl_gold_at_start"]
    assert at_start == pytest.approx(teacher_kl(str(run / "opd" / "last"), teacher, watched), rel=1e-4)
    at_end = logged[-1]["eval/forward_kl_gold"], logged[-1]["eval/reverse_kl_gold"]
    assert at_end == pytest.approx(teacher_kl(str(run / "task_sft" / "best"), teacher, watched), rel=1e-4)
    assert at_end[0] > at_start[0] and all("eval/forward_kl_gold_at_start" not in r for r in logged[1:])


def test_task_sft_resumes_in_the_middle_and_refuses_other_data(run, experiment, start):
    _, state = checkpoint.latest(run / "task_sft" / "checkpoints")
    assert state["driver"]["updates"] == 4 and state["driver"]["best_update"] == 4
    other = experiment.root / "other_task.jsonl"
    other.write_text((experiment.root / "task.jsonl").read_text().replace("t8 t7 t8", "t8 t7 t7"))
    command = start(run.with_suffix(".yaml"), f"stages.task_sft.data.train={other}", "stages.task_sft.max_updates=5", cluster=NO_CLUSTER)
    assert command.wait() == 2, command.text
    assert "task.jsonl of stages.task_sft.data.train; give another directory" in " ".join(command.text.split())


def test_the_evaluation_has_a_set_of_the_tasks_test_split(run):
    report = json.loads((run / "evaluate" / "evaluation.json").read_text())
    assert list(report["data"])[:2] == ["test", "task_sft"]
    assert all(list(model["sets"]) == ["test", "task_sft"] for model in report["models"].values())
    task_loss = {name: model["sets"]["task_sft"]["lm_loss_gold"] for name, model in report["models"].items()}
    assert min(task_loss, key=task_loss.get) == "task_sft"


def test_soft_targets_are_logged_and_checked_against_the_teacher(run):
    for record in [*records(run, "kd"), *records(run, "seqkd")]:
        assert record["loss/divergence"] > 0 and math.isfinite(record["learner/grad_norm"])
    for record in (r for r in records(run, "gkd") if "time/update" in r):
        assert record["loss/divergence"] > 0 and 0 <= record["learner/teacher_gap"] < 1e-4


def test_validations_measure_reverse_kl_and_the_metric_that_selects(run, experiment):
    """The validation loss of the best student is its cross-entropy in transformers, on the gold responses of four prompts."""
    validations = [r for r in records(run, "gkd") if "eval/validation_loss" in r]
    assert len(validations) == 2 and all(r["eval/reverse_kl"] > 0 and "eval/rouge_l" in r for r in validations)
    manifest = json.loads(sorted((run / "gkd" / "checkpoints").glob("*/manifest.json"))[-1].read_text())["state"]["driver"]
    losses = [r["eval/validation_loss"] for r in validations]
    assert (manifest["best_validation_loss"], manifest["best_iteration"]) == (min(losses), losses.index(min(losses)) + 1)
    tokenizer = AutoTokenizer.from_pretrained(experiment.settings["teacher"]["model"])
    examples = load_data(DataConfig(**experiment.settings["data"]), tokenizer, (END_TOKEN,)).validation[:4]
    best, total = AutoModelForCausalLM.from_pretrained(run / "gkd" / "best").eval(), 0.0
    for example in examples:
        tokens, predicting = torch.from_numpy(example.sequence.tokens), torch.from_numpy(example.sequence.is_target)
        with torch.no_grad():
            logprobs = best(tokens[None]).logits[0, :-1].log_softmax(-1)
        total -= logprobs.gather(1, tokens[1:, None])[predicting[1:]].sum().item()
    assert min(losses) == pytest.approx(total / sum(example.sequence.targets for example in examples), rel=1e-4)


def test_kd_weights_hard_and_soft_losses_by_hard_weight(run):
    for record in records(run, "kd"):
        mixed = 0.25 * record["loss/hard"] + 0.75 * record["loss/divergence"]
        assert record["loss/supervised"] == pytest.approx(mixed, rel=1e-4)


def test_the_teachers_responses_have_their_provenance(run, experiment):
    rows = [json.loads(line) for line in (run / "seqkd" / "responses.jsonl").read_text().splitlines()]
    provenance = json.loads((run / "seqkd" / "responses.json").read_text())
    assert provenance["teacher_weights"] == [fingerprint(experiment.settings["teacher"]["model"])]
    train = json.loads((run / "data.json").read_text())["data"]["train"]
    assert provenance["prompts"] == len(rows) == train - round(0.25 * train)
    assert len({row["prompt_index"] for row in rows}) == len(rows)
    assert all(1 <= len(row["response_tokens"]) <= 12 and row["prompt_tokens"] for row in rows)


def test_target_tokens_are_counted(run):
    for stage in ("kd", "seqkd", "gkd", "opd"):
        counts = [r["learner/target_tokens"] for r in records(run, stage) if "learner/target_tokens" in r]
        assert counts and counts == sorted(counts) and counts[0] > 0, stage


def test_started_again_it_makes_only_what_is_missing(run, experiment, start):
    fingerprints = {path: fingerprint(str(run / path)) for path in STUDENTS.values()}
    responses = (run / "seqkd" / "responses.jsonl").read_bytes()
    with (run / "seqkd" / "responses.jsonl").open("rb+") as file:  # a kill would leave the last line incomplete like this
        file.truncate(len(responses) - 20)
    command = start(experiment.root / "stages.yaml")
    assert command.wait() == 0, command.text
    assert (run / "seqkd" / "responses.jsonl").read_bytes() == responses
    assert {path: fingerprint(str(run / path)) for path in STUDENTS.values()} == fingerprints
    assert len([r for r in records(run, "gkd") if "time/update" in r]) == 2
