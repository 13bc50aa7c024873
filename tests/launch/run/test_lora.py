"""A student with adapters through the real command: fine-tuned, then distilled from the merged model that fine-tuning left."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STAGES = {
    "sft": {"learning_rate": 2e-2, "sequences_per_update": 8, "max_updates": 2, "epochs": 1},
    "distill": {
        "learning_rate": 2e-2, "iterations": 2, "prompts_per_iteration": 8, "validate_every": 2, "validation_prompts": 2, "leaves": "last",
    },
}  # fmt: skip


def tensors(directory: str | Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


def test_each_stage_leaves_a_merged_model_and_the_adapter_that_makes_it_of_the_one_before(experiment, start):
    before = experiment.settings["student"]["model"]
    student = {"model": before, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    learner = experiment.settings["learner"] | {"workers": 1, "zero_stage": 0}
    command = start(experiment.config("lora", student=student, learner=learner, stages=STAGES))
    assert command.wait() == 0, command.text
    run = experiment.root / "lora"
    for left in (run / "sft" / "best", run / "distill" / "last"):
        base, merged = tensors(before), tensors(left)
        moved = {name for name in base if not torch.equal(base[name], merged[name])}
        assert moved and all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in moved)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(before, dtype=torch.float32), str(left / "adapter"))
        theirs = model.merge_and_unload().state_dict()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)
        before = left
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [record["rollout/behavior_gap"] for record in records if "rollout/behavior_gap" in record]
    assert len(gaps) == 2 and max(gaps) < 1e-3, "the engines sampled with what the learner computes"
