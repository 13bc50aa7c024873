"""A student with LoRA adapters and the real command: fine-tuning, then distillation of the merged model that it left."""

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


def test_each_stage_leaves_a_merged_model_and_its_adapter(experiment, start):
    """Base model plus adapter equals the merged model, where the base is the student before the stage."""
    base_directory = experiment.settings["student"]["model"]
    student = {"model": base_directory, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    learner = experiment.settings["learner"] | {"workers": 1, "zero_stage": 0}
    command = start(experiment.config("lora", student=student, learner=learner, stages=STAGES))
    assert command.wait() == 0, command.text
    run = experiment.root / "lora"
    for directory in (run / "sft" / "best", run / "distill" / "last"):
        base, merged = tensors(base_directory), tensors(directory)
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        assert changed and all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in changed)
        base_model = AutoModelForCausalLM.from_pretrained(base_directory, dtype=torch.float32)
        merged_by_peft = PeftModel.from_pretrained(base_model, str(directory / "adapter")).merge_and_unload().state_dict()
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, merged_by_peft[name], rtol=1e-6, atol=1e-6)
        base_directory = directory
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [record["rollout/behavior_gap"] for record in records if "rollout/behavior_gap" in record]
    assert len(gaps) == 2 and max(gaps) < 1e-3, "the engines do not sample with the learner's weights"
