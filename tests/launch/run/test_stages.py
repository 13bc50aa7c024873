"""The stages kd, seqkd, gkd, opd and evaluate of one run with the real command, each from the student of the stage before it."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirl.config.data import DataConfig
from minirl.data.examples import load_data
from minirl.model.loading import fingerprint
from tests.tiny import END_TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUPERVISED = {"learning_rate": 1e-3, "sequences_per_update": 8, "max_updates": 2, "epochs": 1}
ON_POLICY = {"learning_rate": 1e-3, "iterations": 2, "prompts_per_iteration": 8, "validate_every": 2, "validation_prompts": 4}
STAGES = {
    "kd": {**SUPERVISED, "soft": {"divergence": {"kind": "jsd", "beta": 0.3}, "hard_weight": 0.25}},
    "seqkd": {**SUPERVISED, "gold_share": 0.25, "soft": {"divergence": {"kind": "forward_kl", "temperature": 2.0}}},
    "gkd": {
        **ON_POLICY, "student_share": 0.5, "divergence": {"kind": "skew_reverse_kl", "skew": 0.2}, "validate_every": 1,
        "select_by": "validation_loss",
    },
    "opd": {**ON_POLICY, "iterations": 1, "leaves": "last"},
    "evaluate": {"seeds": [1], "prompts": 4},
}  # fmt: skip
STUDENTS = {"kd": "kd/best", "seqkd": "seqkd/best", "gkd": "gkd/best", "opd": "opd/last"}


@pytest.fixture(scope="module")
def run(experiment, start):
    one_worker_each = {role: experiment.settings[role] | {"workers": 1} for role in ("rollout", "learner")}
    config = experiment.config("stages", stages=STAGES, **one_worker_each)
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
