"""A run that samples at another temperature than 1 with the real command, in the preset that also scores plain text."""

import json

import pytest

pytestmark = pytest.mark.slow

DISTILL = {"learning_rate": 1e-3, "iterations": 2, "prompts_per_iteration": 8, "validate_every": 2, "validation_prompts": 2}


def test_lmops_at_another_temperature(experiment, start):
    """The teacher scores rollouts at the run's temperature, and blocks of the corpus at 1. The learner checks both with its own."""
    one_worker = {role: experiment.settings[role] | {"workers": 1} for role in ("rollout", "learner")}
    one_worker["rollout"]["temperature"] = 0.7
    objective = {"preset": "lmops", "pretrain_coefficient": 1.0}
    command = start(experiment.config("lmops_temperature", objective=objective, stages={"distill": DISTILL}, **one_worker))
    assert command.wait() == 0, command.text
    lines = (experiment.root / "lmops_temperature" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "rollout/behavior_gap" in record]
    assert len(records) == 2
    for record in records:
        assert record["loss/pretrain"] > 0
        assert record["rollout/behavior_gap"] < 1e-3, "the engines sample at another temperature than the learner computes"
