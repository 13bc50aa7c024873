"""DeepSpeed's optimizer at every ZeRO stage, in float32 and bfloat16, equals torch's AdamW on float32 weights."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from minirl.config.stages import SftConfig
from minirl.model.loading import load_causal_lm
from minirl.model.student import StudentModule
from minirl.training.update import LossDivisors, UpdateStep, supervised_loss
from tests.actors.learners import VOCABULARY, blocks, learner_group

pytestmark = pytest.mark.slow

WORKERS, UPDATES = 2, 10
TRAINING = SftConfig(learning_rate=2e-3, weight_decay=0.1, betas=[0.9, 0.95], max_grad_norm=0.5)
RATES = [TRAINING.learning_rate * factor for factor in (0.5, 1, 1, 0.9, 0.8, 0.6, 0.5, 0.3, 0.2, 0.1)]  # warm-up, then decay
# SIZE: how much longer or shorter a displacement may be than torch's, along torch's. DIFFERENCE: how far the displacements may lie apart,
# relative to torch's. It is large in bfloat16: a first update moves a weight by the sign of its gradient, and rounding flips some signs.
SIZE = {"float32": 1e-3, "bfloat16": 0.05}
DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.25}


@pytest.fixture(scope="module")
def student(model_directory) -> str:
    return model_directory("llama", vocab=VOCABULARY, hidden=32, seed=1)


def shares() -> list[list]:
    """The items of each rank."""
    items = blocks((30, 17, 9, 25))
    return [items[rank::WORKERS] for rank in range(WORKERS)]


def divisors() -> LossDivisors:
    return LossDivisors(supervised=sum(item.sequence.targets for share in shares() for item in share))


def torch_displacements(student: str, dtype: str) -> dict[int, torch.Tensor]:
    """Update number -> how far torch's AdamW has moved float32 weights, of which the model holds a copy in `dtype`."""
    module = StudentModule(
        load_causal_lm(student, getattr(torch, dtype), dropout=False), vocabulary=VOCABULARY, chunk_tokens=4096, teacher_head=None
    )
    module.attention_by_width = True  # as in the learner, since kernels round differently
    parameters = list(module.parameters())
    wide = [p.detach().clone().float().requires_grad_() for p in parameters]
    start = torch.cat([p.detach().flatten() for p in wide]).clone()
    optimizer = torch.optim.AdamW(wide, betas=TRAINING.betas, weight_decay=TRAINING.weight_decay)
    displacements = {}
    for number, rate in enumerate(RATES):
        for weight in wide:
            weight.grad = torch.zeros_like(weight)
        for share in shares():
            module.zero_grad()
            supervised_loss(module, share, divisors(), device="cpu")[0].backward()
            for weight, parameter in zip(wide, parameters, strict=True):
                weight.grad += parameter.grad
        norm = torch.nn.utils.clip_grad_norm_(wide, TRAINING.max_grad_norm)
        assert norm > TRAINING.max_grad_norm  # so clipping is part of what is compared
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        for weight, parameter in zip(wide, parameters, strict=True):
            parameter.data.copy_(weight.data)
        displacements[number] = torch.cat([p.detach().flatten() for p in wide]) - start
    return displacements


def learner_displacements(worker, student: str, stage: int, dtype: str, items: list, scale: LossDivisors) -> dict[int, torch.Tensor]:
    """The same for the learner, in its own process. All ranks call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    learner = worker.learner
    learner.setup = dataclasses.replace(learner.setup, config=learner.setup.config.model_copy(update={"zero_stage": stage, "dtype": dtype}))
    learner.load_model(student)

    def wide_weights() -> Iterator[torch.Tensor]:
        optimizer = learner.engine.optimizer
        if stage == 0 and dtype == "bfloat16":
            narrow, wide = (sum(groups, []) for groups in (optimizer.fp16_groups, optimizer.fp32_groups))
            wide_of = {id(n): w for n, w in zip(narrow, wide, strict=True)}
        for parameter in learner.module.parameters():
            if stage > 0:
                yield safe_get_full_fp32_param(parameter).detach().flatten().clone()
            else:
                yield (wide_of[id(parameter)] if dtype == "bfloat16" else parameter).detach().flatten().clone()

    if stage == 3:  # the weights themselves are sharded
        import deepspeed

        parameters = list(learner.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters):
            start = torch.cat([p.detach().float().flatten() for p in parameters])
    else:
        start = torch.cat([p.detach().float().flatten() for p in learner.module.parameters()])
    displacements = {}
    for number, rate in enumerate(RATES):
        learner.update(UpdateStep(0, number, rate, scale), [], [items])
        displacements[number] = torch.cat(list(wide_weights())) - start
    return displacements


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ten_updates_equal_torchs_adamw_at_every_stage(dtype, ray_cluster, student):
    expected = torch_displacements(student, dtype)
    with learner_group(student, dtype=dtype, optimizer="adamw", workers=WORKERS, training=TRAINING) as group:
        for stage in range(4):
            calls = [
                worker.__ray_call__.remote(learner_displacements, student, stage, dtype, share, divisors())
                for worker, share in zip(group.workers, shares(), strict=True)
            ]
            for displacements in group.get(calls, "update"):
                for number in (0, 1, UPDATES - 1):
                    moved, torchs = displacements[number], expected[number]
                    size = float(moved @ torchs / (torchs @ torchs))
                    difference = float((moved - torchs).norm() / torchs.norm())
                    print(f"ZeRO {stage}, {dtype}, update {number}: size {size:.4f}, difference {difference:.1e}")
                    assert abs(size - 1) < SIZE[dtype] and difference < DIFFERENCE[dtype], (stage, number)
