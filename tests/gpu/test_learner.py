"""The learner on a GPU: its float32 step is the CPU's, and packed flash attention learns what padded eager attention learns."""

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from minirl.training.update import LossDivisors, UpdateStep
from tests.actors.learners import VOCABULARY, learner_group, lengths_of, on_policy_items, weights
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

DEVICE = "cuda"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[str, str]:
    """A student and a wider teacher. Their heads have 32 elements, which flash attention computes."""
    student, teacher = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("teacher")
    return tiny_model(student, vocab=VOCABULARY, seed=1), tiny_model(teacher, vocab=VOCABULARY, hidden=96, heads=3, seed=2)


def step(models: tuple[str, str], **settings) -> tuple[torch.Tensor, dict[str, float]]:
    """One SGD step over twelve rollouts: the change of all weights, and the sums of the step."""
    items = on_policy_items(models[1])
    divisors = LossDivisors(sum(len(item.rollout.response_tokens) for item in items))
    with learner_group(*models, **settings) as group:
        before = weights(group)
        sums = group.update(UpdateStep(0, 0, 1.0, divisors), items, [], lengths_of(items))
        after = weights(group)
    sums.pop("busy_seconds")
    return torch.cat([(after[name] - before[name]).flatten().double() for name in sorted(before)]), sums


def assert_same(step_taken, expected, tolerance: float, change_tolerance: float) -> None:
    """tolerance: of the sums. change_tolerance: of the change of the weights, relative to its norm."""
    change, sums = step_taken
    expected_change, expected_sums = expected
    assert expected_change.norm() > 0.1
    assert (change - expected_change).norm() <= change_tolerance * expected_change.norm()
    assert set(sums) == set(expected_sums)
    for name in ("response_tokens", "reverse_kl", "grad_norm"):
        assert sums[name] == pytest.approx(expected_sums[name], rel=tolerance), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_float32_step_is_the_cpus(stage, ray_cluster, models):
    assert_same(step(models, device=DEVICE, zero_stage=stage), step(models), 1e-3, 1e-3)


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed here; install it to test packing on it")
def test_packed_flash_attention_learns_what_padded_eager_attention_learns(ray_cluster, models):
    settings = {"device": DEVICE, "dtype": "bfloat16", "checksum_tolerance": 0.03}
    flash = step(models, attention="flash_attention_2", packing="on", **settings)
    assert_same(flash, step(models, attention="eager", packing="off", **settings), 0.02, 0.15)  # the weights themselves are bfloat16
