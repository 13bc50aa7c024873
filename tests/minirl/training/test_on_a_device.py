"""The learner's whole computation on the pretended device: values, waits of the host, copies, and operations by the response's length."""

from contextlib import nullcontext
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch

from minirl.config.objective import ObjectiveConfig
from minirl.model.lora import trainable_parameters
from minirl.model.student import StudentModule
from minirl.training.update import diagnose, frozen_advantages
from tests.minirl.training.micro_batches import BOTH, BY_RECORD, CASES, OBJECTIVES, on_policy, rollouts, student, texts
from tests.pretend_device import DEVICE, Accelerator, Pretended, moved_to_device


def pretended_student(**switches) -> StudentModule:
    return moved_to_device(student(Pretended, **switches))


def on_device(compute, module: StudentModule) -> tuple[Accelerator, torch.Tensor, dict[str, torch.Tensor]]:
    """The device after forward, loss and backward; the loss; the sums that are logged."""
    with Accelerator() as device:
        loss, sums = compute(module, DEVICE)
        loss.backward()
    return device, loss.held, {name: getattr(value, "held", value) for name, value in sums.items()}


@pytest.mark.parametrize(
    "switch", [name for name, field in ObjectiveConfig.model_fields.items() if get_origin(field.annotation) is Literal]
)
def test_every_choice_of_the_objective_is_among_the_cases(switch):
    assert {getattr(config, switch) for config in OBJECTIVES.values()} == set(get_args(ObjectiveConfig.model_fields[switch].annotation))


@pytest.mark.parametrize("name", CASES)
def test_a_micro_batch_has_the_values_of_the_cpu_and_makes_the_host_wait_for_nothing(name):
    compute, copies, switches = CASES[name]
    module, plain = pretended_student(**switches), student(**switches)
    device, loss, sums = on_device(compute, module)
    assert not device.waits and not device.nondeterministic
    assert device.copies_to_device == copies
    expected, expected_sums = compute(plain, "cpu")
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-6, equal_nan=True)
    for there, here in zip(trainable_parameters(module), trainable_parameters(plain), strict=True):
        torch.testing.assert_close(there.grad.held, here.grad, rtol=1e-6, atol=1e-6)


# Results are fetched at the end, by one copy


def fetches(device: Accelerator) -> list[tuple[str, str, str, int]]:
    return [(reason, place.file, place.function, count) for (reason, place), count in device.waits.items()]


@pytest.mark.parametrize("scoring", [None, BOTH, BY_RECORD])
def test_frozen_advantages_are_fetched_once(scoring):
    switches, items = {"teachers": 2 if scoring else 1}, rollouts(scoring=scoring)
    with Accelerator() as device:
        rows, _ = frozen_advantages(pretended_student(**switches), items, OBJECTIVES["lmops"], device=DEVICE, temperature=1.0)
    assert fetches(device) == [("a copy from the device", "training/update.py", "frozen_advantages", 1)]
    assert not device.nondeterministic
    expected, _ = frozen_advantages(student(**switches), items, OBJECTIVES["lmops"], device="cpu", temperature=1.0)
    for row, expected_row in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row, expected_row, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scoring", [None, BOTH, BY_RECORD])
def test_diagnostics_are_fetched_once(scoring):
    switches, items = {"teachers": 2 if scoring else 1, "chunk": 20}, texts(scoring)
    with torch.no_grad(), Accelerator() as device:
        rows, _ = diagnose(pretended_student(**switches), items, DEVICE, 5)
    assert fetches(device) == [("a copy from the device", "model/token_diagnostics.py", "split", 1)]
    with torch.no_grad():
        expected, _ = diagnose(student(**switches), items, "cpu", 5)
    for row, expected_row in zip(rows, expected, strict=True):
        for field, values in vars(expected_row).items():
            np.testing.assert_allclose(getattr(row, field), values, rtol=1e-5, atol=1e-6)


# Operations by the response's length


def operations(config: ObjectiveConfig, length: int) -> int:
    items = rollouts((length, length), frozen=config.credit == "frozen")
    return sum(on_device(on_policy(config, items), pretended_student())[0].operations.values())


@pytest.mark.parametrize("name, by_doubling", [("paper", 4), ("lmops", 0), ("gkd", 4), ("opd", 0), ("exact", 6), ("frozen, white", 0)])
def test_operations_grow_by_a_few_with_each_doubling_of_the_response(name, by_doubling):
    """A step of the scan for returns has four, one of the scan for weights has two; from 64 to 1,024 tokens there are four steps more."""
    few, many = (operations(OBJECTIVES[name], length) for length in (64, 1024))
    assert many - few == 4 * by_doubling


# Planted faults, each of which the tests above would report


def test_a_wait_inside_the_loss_is_seen(monkeypatch):
    monkeypatch.setattr("minirl.training.update.on_policy_losses", lambda config, **grids: grids["mask"].sum().item())
    with Accelerator() as device, pytest.raises(AttributeError):
        on_policy(OBJECTIVES["paper"], rollouts())(pretended_student(), DEVICE)
    assert [reason for reason, _ in device.waits] == ["a value read by Python"]


def test_the_question_of_transformers_about_packing_is_seen_where_it_is_asked(monkeypatch):
    monkeypatch.setattr("minirl.model.student.known_sequences", lambda ids: nullcontext())
    device = on_device(CASES["paper"].compute, pretended_student())[0]
    assert [(place.file, place.function) for _, place in device.waits] == [("model/student.py", "hidden_states")]
