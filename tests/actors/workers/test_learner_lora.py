"""A student with LoRA adapters under real DeepSpeed: training, publishing, saving and resuming."""

from pathlib import Path

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from minirl.config.objective import ObjectiveConfig
from minirl.config.student import LoraConfig
from minirl.model.loading import load_causal_lm
from minirl.model.lora import attach_adapters, student_weights
from minirl.model.output_head import read_head
from minirl.model.student import StudentModule
from minirl.training.update import LossDivisors, UpdateStep, on_policy_loss, supervised_loss
from tests.actors.learners import VOCABULARY, blocks, learner_group, lengths_of, on_policy_items, weights

pytestmark = pytest.mark.slow

LORA = LoraConfig(rank=4, alpha=8.0)
UPDATES = 2  # the first one moves only B, because B starts at zero
LEARNING_RATE = 0.5


@pytest.fixture(scope="module")
def models(model_directory):
    student = model_directory("llama", vocab=VOCABULARY, hidden=32, seed=1)
    return student, model_directory("llama", vocab=VOCABULARY, hidden=48, seed=2)


@pytest.fixture(scope="module")
def items(models):
    """Twelve rollouts with the teacher's scores, and three blocks of plain text."""
    return on_policy_items(models[1]), blocks()


@pytest.fixture(scope="module")
def scale(items):
    on_policy, supervised = items
    return LossDivisors(sum(len(i.rollout.response_tokens) for i in on_policy), sum(i.sequence.targets for i in supervised))


@pytest.fixture(scope="module")
def expected(models, items, scale):
    """Weights and gradient norm after each update, from autograd and torch's SGD in one process."""
    model = load_causal_lm(models[0], torch.float32, dropout=False)
    attach_adapters(model, LORA, seed=0, dropout=False)
    module = StudentModule(model, vocabulary=VOCABULARY, chunk_tokens=4096, teacher_head=read_head(models[1], VOCABULARY))
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    optimizer, steps = torch.optim.SGD(adapters, LEARNING_RATE), []
    for _ in range(UPDATES):
        loss, _ = on_policy_loss(module, items[0], ObjectiveConfig(), scale, device="cpu", temperature=1.0, teacher_share=0.2)
        (loss + supervised_loss(module, items[1], scale, device="cpu")[0]).backward()
        norm = torch.cat([parameter.grad.flatten() for parameter in adapters]).norm().item()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(({weight.name: weight.merged().clone() for weight in student_weights(model)}, norm))
    return steps


def moved(before: dict, after: dict) -> torch.Tensor:
    return torch.cat([(after[name] - before[name]).flatten().double() for name in sorted(before)])


@pytest.mark.parametrize(("workers", "stage", "tokens"), [(1, 0, 4096), (2, 2, 100), (2, 3, 64)])
def test_two_updates_equal_plain_autograd_and_published_weights_equal_exported_ones(
    workers, stage, tokens, ray_cluster, models, items, scale, expected, tmp_path
):
    on_policy, supervised = items
    with learner_group(*models, lora=LORA, workers=workers, zero_stage=stage, tokens_per_microbatch=tokens) as group:
        start = weights(group)
        base = dict(AutoModelForCausalLM.from_pretrained(models[0]).named_parameters())
        assert all(torch.equal(start[name], tensor) for name, tensor in base.items())
        for update, (reference, norm) in enumerate(expected):
            sums = group.update(UpdateStep(0, update, LEARNING_RATE, scale), on_policy, supervised, lengths_of(on_policy))
            change = moved(start, reference)
            assert change.norm() > 0.1
            assert (moved(start, weights(group)) - change).norm() <= 1e-4 * change.norm()
            assert sums["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert_published_is_exported(group, models[0], tmp_path / "best")
        if stage == 0:
            plain, heads = group.baseline_seconds(on_policy, lengths_of(on_policy))[0], group.head_seconds(30)
            assert min(plain, *heads.values()) > 0, "the benchmark baselines also run with a frozen head"


def assert_published_is_exported(group, base: str, directory: Path, dtype: str = "float32"):
    """Exported and published tensors are equal. The exported adapter, put onto the base model by peft, gives the same model."""
    group.export(base, str(directory))
    published = {name: tensor.clone() for ref, *_ in group.pack_weights(dtype) for name, tensor in ray.get(ref).tensors()}
    exported = dict(AutoModelForCausalLM.from_pretrained(directory, dtype="auto").named_parameters())
    assert set(exported) == set(published)
    assert all(torch.equal(exported[name], tensor) for name, tensor in published.items())
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base_model, str(directory / "adapter")).merge_and_unload().state_dict()
    tolerance = {"float32": 1e-6, "bfloat16": 8e-3}[dtype]
    for name, tensor in published.items():
        torch.testing.assert_close(tensor.float(), merged[name], rtol=tolerance, atol=tolerance)


def optimizer_contents(worker) -> dict:
    """Numbers of elements that this rank's optimizer holds, their dtypes, and whether frozen weights have gradients."""
    learner = worker.learner
    outer = learner.engine.optimizer
    groups = getattr(outer, "optimizer", outer).param_groups
    masters = getattr(outer, "fp32_partitioned_groups_flat", None)  # ZeRO 3 lends them to the optimizer for its step
    masters = masters or [parameter for group in groups for parameter in group["params"]]
    adapters = [parameter for name, parameter in learner.model.named_parameters() if "lora_" in name]
    frozen = [parameter for name, parameter in learner.model.named_parameters() if "lora_" not in name]
    return {
        "adapters": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in adapters),
        "masters": sum(parameter.numel() for parameter in masters),
        "master_dtypes": {str(parameter.dtype) for parameter in masters},
        "gradients": {parameter.grad is None for parameter in frozen},
    }


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_resumed_run_with_dropout_equals_the_uninterrupted_one_and_its_optimizer_holds_only_adapters(
    stage, ray_cluster, models, tmp_path
):
    plain = blocks((30, 17, 9, 25))
    scale = LossDivisors(supervised=sum(item.sequence.targets for item in plain))
    lora = LORA.model_copy(update={"dropout": 0.2})
    switches = {"dtype": "bfloat16", "optimizer": "adamw", "workers": 2, "zero_stage": stage, "dropout": True, "deterministic": True}

    def updates(group, start: int, end: int) -> list[float]:
        return [group.update(UpdateStep(0, number, 1e-2, scale), [], plain, [])["supervised"] for number in range(start, end)]

    with learner_group(models[0], lora=lora, **switches) as group:
        fresh = weights(group)
        losses = updates(group, 0, 2)
        group.save(str(tmp_path / "checkpoint"))
        uninterrupted = updates(group, 2, 4), weights(group)
        for rank in group.get([worker.__ray_call__.remote(optimizer_contents) for worker in group.workers], "inspect"):
            assert rank["master_dtypes"] == {"torch.float32"} and rank["gradients"] == {True}
            share = rank["adapters"] // (2 if stage else 1)
            assert share <= rank["masters"] <= share + 64  # padding, if the ranks divide them
        assert uninterrupted[0][-1] < losses[0]
        group.load_model(models[0])
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in weights(group).items())
        group.load(str(tmp_path / "checkpoint"))
        resumed = updates(group, 2, 4), weights(group)
        assert_published_is_exported(group, models[0], tmp_path / "best", "bfloat16")
    assert resumed[0] == uninterrupted[0]
    assert all(torch.equal(resumed[1][name], uninterrupted[1][name]) for name in fresh)
    assert any(not torch.equal(resumed[1][name], fresh[name]) for name in fresh)
