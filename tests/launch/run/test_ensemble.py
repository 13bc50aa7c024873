"""Several teachers with the real command: averaged at every token, or each for the records that name it."""

import json
import math

import pytest

from minirl.model.loading import fingerprint
from tests.launch.conftest import VOCABULARY
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SUPERVISED = {"learning_rate": 1e-3, "sequences_per_update": 8, "max_updates": 1, "epochs": 1}
ON_POLICY = {"learning_rate": 1e-3, "iterations": 1, "prompts_per_iteration": 8, "validation_prompts": 4}


@pytest.fixture(scope="module")
def second(experiment):
    """A second teacher, narrower than the first one."""
    return tiny_model(experiment.root / "second", "llama", vocab=VOCABULARY, hidden=32, heads=1, layers=1, seed=8)


def run(experiment, start, name, ensemble, stages, **changes):
    teacher = {key: value for key, value in experiment.settings["teacher"].items() if key != "model"} | {"ensemble": ensemble}
    rollout = experiment.settings["rollout"] | {"teacher_share": 0.0, "workers": 1}
    learner = experiment.settings["learner"] | {"workers": 1}
    command = start(experiment.config(name, teacher=teacher, stages=stages, rollout=rollout, learner=learner, **changes))
    assert command.wait() == 0, command.text
    assert command.leftover_processes() == []
    lines = (experiment.root / name / "metrics.jsonl").read_text().splitlines()
    return experiment.root / name, [json.loads(line) for line in lines]


def test_an_average_of_teachers_samples_scores_and_evaluates(experiment, second, start):
    ensemble = [{"model": experiment.settings["teacher"]["model"], "weight": 3.0}, {"model": second}]
    stages = {"seqkd": {**SUPERVISED, "soft": {}}, "evaluate": {"seeds": [1], "prompts": 4}}
    directory, records = run(experiment, start, "average", ensemble, stages)
    provenance = json.loads((directory / "seqkd" / "responses.json").read_text())
    assert provenance["teacher_weights"] == [fingerprint(member["model"]) for member in ensemble]
    assert next(r for r in records if r["stage"] == "seqkd")["loss/divergence"] > 0
    summary = json.loads((directory / "summary.json").read_text())
    assert list(summary) == ["student_init", "seqkd"]
    assert all(math.isfinite(row["reverse_kl"]) and row["teacher_rouge_l"] is None for row in summary.values())
    assert (
        "greedy answers: not compared, because no engine samples from an average" in (directory / "evaluate" / "evaluation.md").read_text()
    )


def test_each_record_has_its_teacher(experiment, second, start):
    lines = [json.loads(line) for line in (experiment.root / "records.jsonl").read_text().splitlines()]
    named = experiment.root / "named.jsonl"
    named.write_text("".join(json.dumps(r | {"teacher_id": "ab"[n % 2]}) + "\n" for n, r in enumerate(lines)))
    ensemble = [{"model": experiment.settings["teacher"]["model"], "id": "a"}, {"model": second, "id": "b"}]
    stages = {"distill": ON_POLICY | {"samples_per_prompt": 2}}
    _, records = run(experiment, start, "by_record", ensemble, stages, data=experiment.settings["data"] | {"train": str(named)})
    distilled = next(r for r in records if "rollout/reverse_kl" in r)
    assert distilled["rollout/reverse_kl"] > 0 and 0 <= distilled["learner/teacher_gap"] < 1e-4
