"""Every kind of training stage through the real command, one after the other, each going on from the student before it."""

import json
import math

import pytest

from minirl.model.loading import fingerprint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

GIVEN = {"learning_rate": 1e-3, "sequences_per_update": 8, "max_updates": 2, "epochs": 1}
ON_POLICY = {"learning_rate": 1e-3, "iterations": 2, "prompts_per_iteration": 8, "validate_every": 2, "validation_prompts": 4}
STAGES = {
    "kd": {**GIVEN, "soft": {"divergence": {"kind": "jsd", "beta": 0.3}, "hard_weight": 0.25}},
    "seqkd": {**GIVEN, "gold_share": 0.25, "soft": {"divergence": {"kind": "forward_kl", "temperature": 2.0}}},
    "gkd": {**ON_POLICY, "student_share": 0.5, "divergence": {"kind": "skew_reverse_kl", "skew": 0.2}},
    "opd": {**ON_POLICY, "iterations": 1, "leaves": "last"},
    "evaluate": {"seeds": [1], "prompts": 4},
}
LEFT = {"kd": "kd/best", "seqkd": "seqkd/best", "gkd": "gkd/best", "opd": "opd/last"}


@pytest.fixture(scope="module")
def run(experiment, start):
    alone = {role: experiment.settings[role] | {"workers": 1} for role in ("rollout", "learner")}
    config = experiment.config("stages", stages=STAGES, **alone)
    command = start(config)
    assert command.wait() == 0, command.text
    assert command.left() == []
    return experiment.root / "stages"


def records(run, stage):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


def test_every_stage_leaves_a_student_of_its_own_and_has_a_row(run, experiment):
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == ["teacher", "student_init", *LEFT]
    weights = [fingerprint(experiment.settings["student"]["model"]), *(fingerprint(str(run / left)) for left in LEFT.values())]
    assert len(set(weights)) == len(weights)


def test_each_goes_on_from_the_student_before_it(run, experiment):
    before = experiment.settings["student"]["model"]
    for stage, left in LEFT.items():
        manifest = sorted((run / stage / "checkpoints").glob("*/manifest.json"))[-1]
        assert json.loads(manifest.read_text())["state"]["started_from"].split()[0] == fingerprint(str(before)), stage
        before = run / left


def test_soft_targets_are_logged_and_checked_against_the_teacher(run):
    for record in [*records(run, "kd"), *records(run, "seqkd")]:
        assert record["loss/divergence"] > 0 and math.isfinite(record["learner/grad_norm"])
    for record in (r for r in records(run, "gkd") if "time/update" in r):
        assert record["loss/divergence"] > 0 and 0 <= record["learner/teacher_gap"] < 1e-4


def test_kd_mixes_hard_and_soft_as_it_says(run):
    for record in records(run, "kd"):
        mixed = 0.25 * record["loss/hard"] + 0.75 * record["loss/divergence"]
        assert record["loss/supervised"] == pytest.approx(mixed, rel=1e-4)


def test_the_teachers_responses_say_where_they_come_from(run, experiment):
    rows = [json.loads(line) for line in (run / "seqkd" / "responses.jsonl").read_text().splitlines()]
    about = json.loads((run / "seqkd" / "responses.json").read_text())
    assert about["teacher_weights"] == [fingerprint(experiment.settings["teacher"]["model"])]
    train = json.loads((run / "data.json").read_text())["data"]["train"]
    assert about["prompts"] == len(rows) == train - round(0.25 * train)
    assert len({row["prompt_index"] for row in rows}) == len(rows)
    assert all(1 <= len(row["response_tokens"]) <= 12 and row["prompt_tokens"] for row in rows)


def test_tokens_that_were_learnt_from_are_counted(run):
    for stage in ("kd", "seqkd", "gkd", "opd"):
        counts = [r["learner/target_tokens"] for r in records(run, stage) if "learner/target_tokens" in r]
        assert counts and counts == sorted(counts) and counts[0] > 0, stage


def test_started_again_it_makes_only_what_is_missing(run, experiment, start):
    before = {left: fingerprint(str(run / left)) for left in LEFT.values()}
    written = (run / "seqkd" / "responses.jsonl").read_bytes()
    with (run / "seqkd" / "responses.jsonl").open("rb+") as file:  # what a kill would leave of the last lines
        file.truncate(len(written) - 20)
    command = start(experiment.root / "stages.yaml")
    assert command.wait() == 0, command.text
    assert (run / "seqkd" / "responses.jsonl").read_bytes() == written
    assert {left: fingerprint(str(run / left)) for left in LEFT.values()} == before
    assert len([r for r in records(run, "gkd") if "time/update" in r]) == 2
