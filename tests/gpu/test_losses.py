"""Each kind of micro-batch on a GPU: the values of the CPU, no wait of the host, and no operation without a deterministic kernel."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from minirl.model.lora import trainable_parameters
from minirl.model.student import StudentModule
from minirl.training.update import diagnose, frozen_advantages
from tests.minirl.training.micro_batches import BOTH, BY_RECORD, CASES, OBJECTIVES, Compute, on_policy, rollouts, student, texts

DEVICE = "cuda"
TOLERANCE = 1e-4  # of float32, for another order of sums


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """torch refuses what has no deterministic kernel, as with `deterministic: true`."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def student_there(**switches) -> StudentModule:
    return student(lambda tensor: tensor.to(DEVICE), **switches).to(DEVICE)


def step(compute: Compute, module: StudentModule, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module.zero_grad()
    loss, sums = compute(module, device)
    loss.backward()
    return loss.detach(), sums


def with_waits(call: Callable[..., Any], *arguments) -> tuple[Any, list[str]]:
    """The result of the call, and torch's warning about each wait of the host in it. A first call loads the kernels."""
    call(*arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = call(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return result, [str(warning.message) for warning in caught if "synchronizing" in str(warning.message)]


def test_a_wait_is_noticed():
    """The tests below would pass if torch did not warn."""
    assert len(with_waits(lambda: torch.ones(2, device=DEVICE).sum().item())[1]) == 1


@pytest.mark.parametrize("name", CASES)
def test_a_micro_batch_has_the_values_of_the_cpu_and_makes_the_host_wait_for_nothing(name):
    compute, _, switches = CASES[name]
    module, plain = student_there(**switches), student(**switches)
    (loss, sums), waits = with_waits(step, compute, module, DEVICE)
    assert not waits
    expected, expected_sums = step(compute, plain, "cpu")
    torch.testing.assert_close(loss.cpu(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close({k: v.cpu() for k, v in sums.items()}, expected_sums, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    for there, here in zip(trainable_parameters(module), trainable_parameters(plain), strict=True):
        torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_a_repeated_step_has_the_same_bits(name):
    compute, _, switches = CASES[name]
    module = student_there(**switches)
    first = step(compute, module, DEVICE)[0], [p.grad.clone() for p in trainable_parameters(module)]
    again = step(compute, module, DEVICE)[0], [p.grad for p in trainable_parameters(module)]
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("scoring", [None, BOTH, BY_RECORD])
def test_advantages_and_diagnostics_make_the_host_wait_once(scoring):
    switches, on_policy_items = {"teachers": 2 if scoring else 1}, rollouts(scoring=scoring)
    module, plain = student_there(**switches), student(**switches)

    def advantages(module: StudentModule, device: str) -> list[np.ndarray]:
        return frozen_advantages(module, on_policy_items, OBJECTIVES["lmops"], device=device, temperature=1.0)[0]

    @torch.no_grad()
    def divergences(module: StudentModule, device: str) -> list[np.ndarray]:
        return [sequence.reverse_kl for sequence in diagnose(module, texts(scoring), device, 5)[0]]

    for call in (advantages, divergences):
        rows, waits = with_waits(call, module, DEVICE)
        assert len(waits) == 1
        for row, expected in zip(rows, call(plain, "cpu"), strict=True):
            np.testing.assert_allclose(row, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["paper", "exact"])
def test_kernels_grow_by_a_few_with_each_doubling_of_the_response(name):
    """From 64 to 1,024 tokens there are four doublings; a loop over tokens would start thousands of kernels."""
    few, many = (kernels(on_policy(OBJECTIVES[name], rollouts((length, length)))) for length in (64, 1024))
    assert few > 100 and many - few < 4 * 20


def kernels(compute: Compute) -> int:
    """How many kernels, copies and fills of memory a step starts on the GPU."""
    module = student_there()
    step(compute, module, DEVICE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(compute, module, DEVICE)
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


@pytest.mark.skipif(not is_flash_attn_2_available(), reason="flash-attn is not installed here; install it to test waits on it")
@pytest.mark.parametrize("packed", [False, True])
def test_flash_attention_makes_the_host_wait_for_nothing(packed):
    """It would read from the device where the sequences of a row start, in every layer, if `flash_arguments` did not tell it."""
    compute = CASES["paper"].compute
    flash = student_there(packed=packed, kernel="flash_attention_2").bfloat16()
    (loss, _), waits = with_waits(step, compute, flash, DEVICE)
    assert not waits
    expected, _ = step(compute, student_there(packed=packed).bfloat16(), DEVICE)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
